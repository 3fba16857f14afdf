"""Alert rules and the dashboard against a real Prometheus."""
