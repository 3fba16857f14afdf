"""Where bytes come from: anything that can open a blob at an offset.

Rule of this room: a source hands out bytes and promises nothing about them; whoever keeps them verifies them. A source
is one file, knows no other, and passes `tests/conformance/blob_source.py`.
"""
