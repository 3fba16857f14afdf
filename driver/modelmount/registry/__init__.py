"""The OCI distribution specification, spoken as a client: manifests, blobs, tokens, and whose credential is shown.

Rule of this room: an answer becomes a value or one of `modelmount.errors`, and everything about *which* error is
decided in `answers`. Credentials go to the registry they are for and to token servers that `realms` lets pass, nowhere
else. Digests in headers are hints; the digest of the bytes received is the truth.
"""
