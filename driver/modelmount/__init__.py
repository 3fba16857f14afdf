"""modelmount: a model from an OCI registry in a running pod, once per node, verified, read-only."""

__version__ = "0.1.0"
