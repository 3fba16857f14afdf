"""Values of the OCI specifications: digests, references, descriptors, manifests, and what registries say in headers and
error bodies.

Rule of this room: no I/O, no threads. A value that exists is valid, so that a `Digest` may become a file name and a
`Reference` part of a URL without another look. Everything from outside is bounded and read strictly.
"""
