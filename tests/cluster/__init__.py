"""A real Kubernetes without a container engine: what brings one up, and scenarios on it. Run by scripts/e2e."""
