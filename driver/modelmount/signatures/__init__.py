"""Signatures and attestations: what is said about a manifest, by whom, and whether that is so.

Rule of this room: it finds out, and `policy.signing` decides. Evidence is fetched by `evidence`, judged by a process of
its own without rights (`worker`, `keyless`, `checks`: nobody else imports what they import), and kept with the model by
`records`. No byte of weights is read.
"""
