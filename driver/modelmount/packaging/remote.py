"""A directory, or one file, at any URL that fsspec opens: `s3://`, `https://`, `gs://` and so on.

fsspec is no requirement of this package, and what it needs for a scheme is none of its own: both are loaded here, when
a URL is named, and by nobody else.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from modelmount.errors import InvalidRequest, ModelMountError, Unavailable
from modelmount.packaging.files import File, Readable, Wanted, checked

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://", re.ASCII)


def is_url(text: str) -> bool:
    """Whether this names something that `files` looks at."""
    return _URL.match(text) is not None


def files(url: str, wanted: Wanted) -> tuple[File, ...]:
    """The files below `url` that are meant, or the one at it. Credentials and endpoints are fsspec's own matter.

    Raises InvalidRequest when there is nothing, or nothing installed that can look; Unavailable for everything that
    goes wrong over there. No message has anything of the URL's query in it, or of what the other side said.
    """
    shown = _shown(url)
    file_system, root = _file_system(url, shown)
    with _translated(shown):
        found = file_system.find(root, withdirs=False, detail=True)
    if not found:
        raise InvalidRequest(f"{shown} doesn't exist, or can't be listed")
    is_web = shown.startswith(("http://", "https://"))
    listed: list[File] = []
    for place, info in sorted(found.items()):
        path = _relative(str(place), str(root), is_web=is_web)
        if path and _meant(path, wanted):
            listed.append(File(path, _size(file_system, place, info, shown), _opener(file_system, place, shown)))
    return checked(listed, shown)


def _file_system(url: str, shown: str) -> tuple[Any, str]:
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError as e:
        raise InvalidRequest(
            f"{shown} is a URL, which needs fsspec: install modelmount[push] and what fsspec needs for it, or name a "
            "directory"
        ) from e
    try:
        file_system, root = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise InvalidRequest(f"{shown}: fsspec needs a package for it: {e.name or 'see its documentation'}") from e
    except ValueError as e:
        raise InvalidRequest(f"{shown}: fsspec doesn't know such URLs") from e
    return file_system, str(root).rstrip("/")


def _relative(place: str, root: str, *, is_web: bool) -> str:
    """The path below `root`, empty for what isn't below it: a page's links lead anywhere."""
    if place.rstrip("/") == root:
        path = root.rpartition("/")[2]
    elif place.startswith(f"{root}/"):
        path = place[len(root) + 1 :]
    else:
        return ""
    if not is_web:
        return path
    return "" if "?" in path or "#" in path or path.endswith("/") else urllib.parse.unquote(path)


def _meant(path: str, wanted: Wanted) -> bool:
    return wanted.file(path)


def _size(file_system: Any, place: str, info: dict[str, Any], shown: str) -> int:
    size = info.get("size")
    if size is None:
        with _translated(shown):
            size = file_system.size(place)
    if not isinstance(size, int):
        raise Unavailable(f"{shown}: nobody says how large {place.rpartition('/')[2]!a} is; download it first")
    return size


def _opener(file_system: Any, place: str, shown: str) -> Any:
    @contextlib.contextmanager
    def opened() -> Iterator[Readable]:
        with _translated(shown):
            file = file_system.open(place, "rb")
        try:
            yield _Reader(file, shown)
        finally:
            file.close()

    return opened


class _Reader:
    def __init__(self, file: Any, shown: str) -> None:
        self._file, self._shown = file, shown

    def read(self, count: int, /) -> bytes:
        with _translated(self._shown):
            return bytes(self._file.read(count))


@contextlib.contextmanager
def _translated(shown: str) -> Iterator[None]:
    """Each file system raises what its library raises, with URLs and answers in it: only the kind gets out."""
    try:
        yield
    except ModelMountError:
        raise
    except FileNotFoundError as e:
        raise InvalidRequest(f"{shown} doesn't exist, or can't be listed") from e
    except Exception as e:  # there is no list of what they raise
        raise Unavailable(
            f"{shown} can't be read ({type(e).__name__}); look at its address and your credentials"
        ) from e


def _shown(url: str) -> str:
    """Without query and user name, where secrets may be."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0].partition("#")[0]
    authority, slash, path = place.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
