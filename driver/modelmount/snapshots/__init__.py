"""From verified blobs to directories: archives unpacked once, trees of hard links that get mounted.

Archives are read by processes without rights (`worker`): compressed ones are unpacked there (`isolated`), of
uncompressed ones the headers (`headers`).

Rule of this room: a tree never changes. Its id is the hash of its canonical layout, so equal layouts share one tree; it
is made beside its final place and renamed when every link and directory is on disk.
"""
