"""Targets: the directories that the kubelet names for a mount, below roots that an admin configured.

What lies below the roots may be changed by others while we look (CVE-2017-1002101, CVE-2021-30465), so the text is
judged first, then every step is taken from a descriptor and no symbolic link is followed. Nothing is ever deleted
recursively here: one `rmdir` of an empty directory is all.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NoReturn, Self

from modelmount.errors import Internal, InvalidRequest, NoSpace, Precondition, Unavailable
from modelmount.system import beneath, mount

DIRECTORY_MODE: Final = 0o750
_PATH_BYTES: Final = 4096  # PATH_MAX counts the NUL (linux/limits.h)
_NAME_BYTES: Final = 255
_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Location:
    """A target path that passed the checks of its text: `parts`, never empty, below the resolved root.

    `root` is None while the configured root doesn't exist. `path` is the one spelling to compare, lock and record.
    """

    root: Path | None
    parts: tuple[str, ...]
    path: str

    @property
    def name(self) -> str:
        """The last component."""
        return self.parts[-1]


@dataclass(frozen=True, slots=True)
class TargetState:
    """What stands at a target. `identity` is that of the topmost mount or the directory; None when missing or when the
    mount is dead.
    """

    kind: Literal["missing", "directory", "mount", "other"]
    identity: mount.Identity | None = None


class TargetHandle:
    """An open target: `fd` (O_PATH) is the directory or the root of the mount on it, `parent_fd` the directory that
    holds `name`.

    A context manager, owned by one thread. `created`: we made the directory. `is_mount` is as of the opening; when
    true, close before unmounting, for `fd` keeps the mount busy.
    """

    def __init__(self, location: Location, parent_fd: int, fd: int, *, created: bool) -> None:
        self._location = location
        self.path = location.path
        self.name = location.name
        self.parent_fd = parent_fd
        self.fd = fd
        self.created = created
        self.is_mount = mount.is_mount_root(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def identity(self) -> mount.Identity:
        """Device and inode of what `fd` is. Raises OSError for a dead mount."""
        return mount.identity(self.fd)

    def state(self) -> TargetState:
        """What stands now under `name` in the directory that was opened. Raises like `TargetRoots.state`."""
        return _state(self.parent_fd, self._location)

    def close(self) -> None:
        """Close both descriptors; twice is harmless."""
        for fd in (self.fd, self.parent_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.parent_fd = -1


class _Root:
    """A configured root, as spelled and, from the first time that it exists, as resolved."""

    def __init__(self, configured: Path) -> None:
        if not configured.is_absolute():
            raise ValueError(f"a target root must be an absolute path, not {str(configured)!r}")
        self.spelled = Path(os.path.normpath(configured))
        self._resolved: Path | None = None

    @property
    def resolved(self) -> Path | None:
        if self._resolved is None:
            try:
                self._resolved = self.spelled.resolve(strict=True)
            except OSError:
                return None
        return self._resolved


class TargetRoots:
    """The directories below which targets may lie. Symbolic links in the roots' own paths are resolved once; below them
    none is accepted.

    Holds no descriptors, so that it never keeps a host's mount busy. Threads may share it; per target the caller holds
    a lock.
    """

    def __init__(self, roots: Iterable[Path], *, capabilities: mount.Capabilities | None = None) -> None:
        """Roots needn't exist yet. Raises ValueError for a relative one."""
        self._roots = tuple(_Root(root) for root in roots)
        self._openat2 = (capabilities or mount.probe()).openat2
        for root in self._roots:
            _ = root.resolved
        self._judged = functools.lru_cache(_REMEMBERED)(self._judge)  # one publish asks for its target many times

    def locate(self, path: str) -> Location:
        """Judge the text of a target path. Raises InvalidRequest: relative, `..`, `.`, NUL, too long, or not below one
        of the roots.

        The root is accepted as configured and as resolved. Repeated and trailing slashes are dropped.
        """
        location = self._judged(path)
        if location.root is None:  # it may exist by the next time
            self._judged.cache_clear()
        return location

    def _judge(self, path: str) -> Location:
        parts = _check(path)
        for root in self._roots:
            resolved = root.resolved
            for spelling in {root.spelled, resolved or root.spelled}:
                prefix = spelling.parts[1:]
                if len(parts) > len(prefix) and parts[: len(prefix)] == prefix:
                    below = parts[len(prefix) :]
                    return Location(resolved, below, "/".join((str(resolved or root.spelled).rstrip("/"), *below)))
        allowed = ", ".join(str(root.spelled) for root in self._roots)
        raise InvalidRequest(
            f"target path {_show(path)} does not lie below {allowed}; "
            "publish below it, or have an admin add its root to target_roots"
        )

    def open_target(self, path: str, *, create: bool = True) -> TargetHandle:
        """Open the directory to mount on, making the last component (mode 0750, parents never) when missing and
        `create`.

        A target with a mount on it is opened too: the caller compares `identity`. Raises InvalidRequest like `locate`;
        Precondition for a symbolic link anywhere below the root, something else than a directory, a directory with
        entries and no mount, a missing parent; NoSpace; Internal.
        """
        location = self.locate(path)
        parent_fd = self._open_parent(location)
        try:
            created = create and _make_directory(parent_fd, location)
            fd = self._open(parent_fd, (location.name,), os.O_PATH, location)
        except BaseException:
            os.close(parent_fd)
            raise
        handle = TargetHandle(location, parent_fd, fd, created=created)
        try:
            if created:
                self._set_mode(location, fd)
            elif not handle.is_mount:
                _refuse_entries(location, fd)
        except OSError as e:
            handle.close()
            _translate(e, location)
        except BaseException:
            handle.close()
            raise
        return handle

    def state(self, path: str) -> TargetState:
        """What stands at the target, opening nothing that would keep a mount busy. A missing parent or root counts as
        missing.

        Raises InvalidRequest like `locate`, Precondition for a symbolic link below the root.
        """
        location = self.locate(path)
        parent_fd = self._find_parent(location)
        if parent_fd is None:
            return TargetState("missing")
        try:
            return _state(parent_fd, location)
        finally:
            os.close(parent_fd)

    def unmount_target(self, path: str) -> int:
        """Remove every mount stacked on the target (`mount.unmount`); answers how many. The directory stays. Raises
        like `state`, or Internal.
        """
        location = self.locate(path)
        parent_fd = self._find_parent(location)
        if parent_fd is None:
            return 0
        try:
            return mount.unmount(location.name, dir_fd=parent_fd)
        except OSError as e:
            raise Internal(
                f"cannot unmount {_show(location.path)}: {e.strerror}; look at the mounts on the node"
            ) from e
        finally:
            os.close(parent_fd)

    def remove_target(self, path: str) -> bool:
        """rmdir the target; false when it was gone already. Raises like `state`, and Precondition where it isn't an
        empty directory, Unavailable where something is mounted on it, Internal otherwise. Never deletes anything
        inside.
        """
        location = self.locate(path)
        parent_fd = self._find_parent(location)
        if parent_fd is None:
            return False
        try:
            os.rmdir(location.name, dir_fd=parent_fd)
        except FileNotFoundError:
            return False
        except OSError as e:
            if e.errno == errno.EBUSY:
                raise Unavailable(f"something is still mounted on {_show(location.path)}; try again") from e
            _translate(e, location)
        finally:
            os.close(parent_fd)
        return True

    def _find_parent(self, location: Location) -> int | None:
        try:
            return self._open_parent(location)
        except Precondition as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return None
            raise

    def _open_parent(self, location: Location) -> int:
        root = location.root
        if root is None:
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise Precondition(f"the root above target {_show(location.path)} does not exist on this node") from missing
        return self._open(None, (*root.parts[1:], *location.parts[:-1]), os.O_PATH, location)

    def _open(self, dir_fd: int | None, parts: tuple[str, ...], flags: int, location: Location) -> int:
        try:
            return beneath.open_directory(dir_fd, parts, flags, openat2=self._openat2)
        except OSError as e:
            _translate(e, location)

    def _set_mode(self, location: Location, fd: int) -> None:
        if stat.S_IMODE(os.fstat(fd).st_mode) == DIRECTORY_MODE:
            return
        # mkdir's mode was cut by the umask, and an O_PATH descriptor takes no fchmod.
        readable = self._open(fd, (), os.O_RDONLY, location)
        try:
            os.fchmod(readable, DIRECTORY_MODE)
        finally:
            os.close(readable)


def _check(path: str) -> tuple[str, ...]:
    if not path.startswith("/"):
        raise InvalidRequest(f"target path {_show(path)} is not absolute; the kubelet sends absolute paths")
    if "\0" in path:
        raise InvalidRequest(f"target path {_show(path)} contains a NUL byte")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidRequest(f"target path {_show(path)} is not valid text") from None
    parts = tuple(part for part in path.split("/") if part)
    if ".." in parts or "." in parts:
        raise InvalidRequest(f"target path {_show(path)} contains a `.` or `..` component; name the directory itself")
    if len(encoded) >= _PATH_BYTES or (
        len(encoded) > _NAME_BYTES and any(len(os.fsencode(part)) > _NAME_BYTES for part in parts)
    ):
        raise InvalidRequest(f"target path {_show(path)} is longer than the kernel allows")
    return parts


def _make_directory(parent_fd: int, location: Location) -> bool:
    try:
        os.mkdir(location.name, DIRECTORY_MODE, dir_fd=parent_fd)
    except FileExistsError:
        return False  # the opening that follows says what it is
    except OSError as e:
        _translate(e, location)
    return True


def _refuse_entries(location: Location, fd: int) -> None:
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(readable) as entries:
            if next(entries, None) is not None:
                shown = _show(location.path)
                raise Precondition(f"target {shown} is a directory with files in it; empty it, or mount elsewhere")
    finally:
        os.close(readable)


def _state(parent_fd: int, location: Location) -> TargetState:
    try:
        status = os.stat(location.name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return TargetState("missing")
    except OSError as e:
        if mount.is_mount_root(location.name, dir_fd=parent_fd):  # a dead one answers ENOTCONN or ESTALE for itself
            return TargetState("mount")
        _translate(e, location)
    if stat.S_ISLNK(status.st_mode):
        _translate(OSError(errno.ELOOP, os.strerror(errno.ELOOP)), location)
    identity = mount.Identity(status.st_dev, status.st_ino)
    if mount.is_mount_root(location.name, dir_fd=parent_fd):
        return TargetState("mount", identity)
    return TargetState("directory" if stat.S_ISDIR(status.st_mode) else "other", identity)


def _translate(error: OSError, location: Location) -> NoReturn:
    shown = _show(location.path)
    match error.errno:
        case errno.ELOOP | errno.EXDEV:
            text = f"target {shown} has a symbolic link among its components, and none is followed; remove the link"
        case errno.ENOTDIR:
            text = f"target {shown} is, or lies below, something that is not a directory; remove it"
        case errno.ENOENT:
            text = f"the directory above target {shown} does not exist; the kubelet makes it before it publishes"
        case errno.ENOTEMPTY | errno.EEXIST:
            text = f"target {shown} is a directory with files in it, which are not ours to delete; empty or remove it"
        case errno.ENOSPC | errno.EDQUOT:
            raise NoSpace(f"no space left to make the directory {shown}; free space or inodes on the node") from error
        case _:
            raise Internal(f"cannot use target {shown}: {error.strerror}; look at the node's file system") from error
    raise Precondition(text) from error


def _show(path: str) -> str:
    return repr(path if len(path) <= 300 else path[:300] + "…")
