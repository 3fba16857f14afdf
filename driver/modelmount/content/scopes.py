"""Records of which scope had the bytes of a digest: `scopes/<hex>/<scope>`, an empty file whose name says it all."""

from __future__ import annotations

import os
import stat

from modelmount.system import atomic


def record(root: str, hex_digits: str, scope: str, like: str | None = None) -> str | None:
    """Write down that `scope` had them; not durable yet. Raises OSError.

    A record that is `like` one is another name of the same file: a name takes a tenth of what a file does (measured).
    Returns what the next of a group may be like: this one, if a file was made, else what this one was.
    """
    directory = f"{root}/scopes/{hex_digits}"
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass  # another scope had them before
    path = f"{directory}/{scope}"
    try:
        if like is None:
            os.mknod(path, 0o400 | stat.S_IFREG)
            return path
        os.link(like, path)
    except FileExistsError:
        pass  # this one had, too
    return like


def sync(root: str, hex_digits: str) -> None:
    """Make the records of a digest durable. Raises OSError."""
    atomic.fsync_directory(f"{root}/scopes/{hex_digits}")
    atomic.fsync_directory(f"{root}/scopes")
