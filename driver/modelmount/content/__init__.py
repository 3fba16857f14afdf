"""The content store: verified blobs, downloads under way, who may use what.

Rule of this room: a name that exists under `blobs/` or `unpacked/` is complete and verified; everything unverified
lives in `ingest/`. Present without a scope record is not available to that scope. Nothing here fetches; nothing here
decides what a model is.
"""
