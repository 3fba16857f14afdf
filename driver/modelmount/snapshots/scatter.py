"""An uncompressed tar, scattered straight into its members while it arrives: nothing is written twice.

    layer/files/<number>    a member; its number is the offset of its bytes in the archive
    layer/rest              everything else, at its own offset, with holes where the members were: headers, padding, end

Where a byte belongs is known once every header before it was read. So there is a front, where the next header is
wanted; whatever lies before it may come in any order and from any number of connections, and nothing behind it can be
written yet. A member of any size moves the front by its whole length at once.

After whatever end the files themselves say what lies where, by their names and sizes; only the journal says what of it
can be believed. Who reads the headers has no rights (`headers`). What they are found to say on the way decides about
places. It is what the layer holds, too, if the bytes that came first are the ones whose digest was verified; where some
came twice, or before, what it holds is read once more, from the disk.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from modelmount.content.ranges import Range
from modelmount.errors import IntegrityError, Internal
from modelmount.formats.base import Member
from modelmount.snapshots import headers, layers, unpack
from modelmount.snapshots.openfiles import FLAGS, Files, OpenFile
from modelmount.system import atomic, disk

GROUP_FILES: Final = 16
"""From so many files on one sync of the file system is faster than one each (measured)."""
WRITEBACK_BYTES: Final = 1 << 20
"""What is smaller waits for the checkpoint: asking the disk to start on it would cost more than it brings."""
_READ_BYTES: Final = 64 << 10
_REST: Final = -1
_FAR: Final = 1 << 63


class Scatter:
    """The body of an ingest (`content.body.Body`) for an archive that isn't compressed. `finish` makes the layer of it
    once everything is verified.
    """

    def __init__(
        self,
        layer: Path,
        size: int,
        limits: unpack.Limits,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        rootfs: bool = False,
        what: str = "the archive",
    ) -> None:
        """Goes on with what lies in the directory `layer`, if `resume` finds anything in it to believe. `what` begins
        the sentences of errors that come from who reads headers.
        """
        self._layer, self._size, self._limits, self._rootfs = layer, size, limits, rootfs
        self._cancelled = cancelled
        self._lock, self._marks = threading.Lock(), threading.Lock()
        self._headers = headers.Front(size, limits, cancelled, rootfs=rootfs, what=what)
        self._front = self._taken = 0
        self._doubtful = False
        self._written: Sequence[Range] = ()
        self._dirty: set[int] = set()
        self._unnamed = True
        self._files = Files()
        self._extents: list[Range] = []
        try:
            self._open()
            self._extents = self._found()
        except BaseException:
            self.close()
            raise

    @property
    def reader(self) -> int | None:
        """The process id of who reads the headers, while there is one."""
        return self._headers.pid

    # -- content.body.Body

    @property
    def front(self) -> int:
        """Where the next header is wanted."""
        return self._front

    def resume(self, written: Sequence[Range]) -> None:
        """See Body. Raises IntegrityError where the headers contradict what lies where."""
        if not written:  # whatever lies here, nobody vouches for it
            self._extents = self._clear()
        with self._lock:
            self._written = written
            self._doubtful = bool(written)
            self._advance()

    def write(self, view: memoryview, offset: int) -> None:
        """See Body. Raises NoSpace where a share that must stay free would be touched; IntegrityError where a header
        contradicts what an earlier attempt was sent; as `headers.Front.feed` does.
        """
        try:
            self._write(view, offset)
        except BaseException:
            self._doubtful = True  # what was read of these bytes may come again, and be others
            raise

    def _write(self, view: memoryview, offset: int) -> None:
        if offset + len(view) <= self._front:
            self._put(view, offset)
            return
        with self._lock:
            while view:
                if offset > self._front:
                    raise Internal(f"refusing to write byte {offset} of an archive that is read up to {self._front}")
                if offset == self._front:
                    self._read_on(view)
                count = min(len(view), self._front - offset)
                self._put(view[:count], offset)
                view, offset = view[count:], offset + count

    def read_into(self, view: memoryview, offset: int) -> int:
        """See Body."""
        if offset >= self._size:
            return 0
        extent, room = self._locate(offset)
        if extent is None:
            return os.preadv(self._files.rest, [view[:room]], offset)
        file = self._files.member(extent[0])
        return os.preadv(file.fd, [view[:room]], offset - extent[0])

    def start_writeback(self, offset: int, length: int) -> None:
        """See Body."""
        end = offset + length
        while offset < end:
            extent, room = self._locate(offset)
            count = min(room, end - offset)
            if extent is not None and count >= WRITEBACK_BYTES:
                file = self._files.member(extent[0])
                disk.sync_range(file.fd, offset - extent[0], count)
            offset += count

    def sync(self, group: atomic.GroupSync | None) -> None:
        """See Body."""
        with self._marks:
            dirty, self._dirty = self._dirty, set()
            unnamed, self._unnamed = self._unnamed, False
        if group is not None and len(dirty) > GROUP_FILES:
            group.sync(self._path(number) for number in dirty)
        else:
            if _REST in dirty:
                os.fdatasync(self._files.rest)
            for number in dirty - {_REST}:
                file = self._files.member(number)
                os.fdatasync(file.fd)
        if unnamed:
            atomic.fsync_directory(self._layer / "files")
            atomic.fsync_directory(self._layer)

    def close(self) -> None:
        """See Body."""
        self._headers.close()
        self._files.close()

    # -- the layer

    def finish(self) -> Path:
        """Everything is written and has its digest: the layer with its index, not synced yet.

        Raises BadArtifact for what the archive's bytes decide; IntegrityError where the layer isn't what they say, and
        then it is of no use; as `headers.read` does.
        """
        members = self._members()
        sizes = {str(member.number): member.size for member in members if member.is_file}
        for name in (name for name, size in sizes.items() if not size):
            os.close(os.open(name, FLAGS | os.O_CREAT, 0o600, dir_fd=self._files.directory))
        for name in os.listdir(self._files.directory):
            size = os.stat(name, dir_fd=self._files.directory, follow_symlinks=False).st_size
            if size != sizes.get(name, 0):
                raise self._contradiction()
            if name in sizes:
                atomic.seal_beneath(self._files.directory, name)
                del sizes[name]
            else:
                os.unlink(name, dir_fd=self._files.directory)
        if sizes:
            raise self._contradiction()
        os.fchmod(self._files.rest, 0o444)
        layers.write_index(self._layer, members)
        return self._layer

    def _members(self) -> list[Member]:
        came_once = not self._doubtful and self._taken == self._size
        if came_once and self._headers.has_followed:
            return self._headers.members()
        self._headers.close()
        with (self._layer / "rest").open("rb", buffering=0) as rest:
            return headers.read(rest.fileno(), self._size, self._limits, self._cancelled, rootfs=self._rootfs)

    # -- what lies where

    def _open(self) -> None:
        for directory in (self._layer, self._layer / "files"):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._files.open(self._layer)

    def _clear(self) -> list[Range]:
        self._files.close()
        shutil.rmtree(self._layer)
        self._open()
        return []

    def _found(self) -> list[Range]:
        """What the files of an earlier attempt hold, sorted. Where they can't be one's files, they go."""
        found: list[Range] = []
        for name in os.listdir(self._files.directory):
            status = os.stat(name, dir_fd=self._files.directory, follow_symlinks=False)
            if not (name.isascii() and name.isdigit() and stat.S_ISREG(status.st_mode)):
                return self._clear()
            if status.st_size:
                found.append((int(name), int(name) + status.st_size))
        found.sort()
        if any(before[1] > after[0] for before, after in itertools.pairwise([*found, (self._size, self._size)])):
            return self._clear()
        return found

    def _locate(self, offset: int) -> tuple[Range | None, int]:
        """The member that has the byte, and how many bytes from there on lie together; None for `rest`."""
        # Only the front's writer inserts, and behind all that anybody else may ask for.
        index = bisect_right(self._extents, (offset, _FAR))
        if index and offset < self._extents[index - 1][1]:
            extent = self._extents[index - 1]
            return extent, extent[1] - offset
        following = self._extents[index][0] if index < len(self._extents) else self._size
        return None, following - offset

    def _put(self, view: memoryview, offset: int) -> None:
        while view:
            extent, room = self._locate(offset)
            part, view = view[:room], view[room:]
            if extent is None:
                disk.write_at(self._files.rest, part, offset)
                number = _REST
            else:
                number = extent[0]
                file = self._member(extent, len(part))
                disk.write_at(file.fd, part, offset - number)
            offset += len(part)
            with self._marks:
                self._dirty.add(number)
                self._taken += len(part)

    def _member(self, extent: Range, count: int) -> OpenFile:
        """The member's file, of which so many bytes are about to be written."""
        found = self._files.known(extent[0])
        if found is not None:
            return found
        try:
            found = self._files.member(extent[0])
        except FileNotFoundError:
            unpack.require_space(self._files.directory, self._limits)
            found = self._files.member(extent[0], os.O_CREAT)
            with self._marks:
                self._unnamed = True
        size = extent[1] - extent[0]
        if count < size and os.fstat(found.fd).st_size < size:
            os.ftruncate(found.fd, size)  # whoever comes after a crash reads from it what lies where
        return found

    def _path(self, number: int) -> Path:
        return self._layer / "rest" if number == _REST else self._layer / "files" / str(number)

    # -- the front; under the lock

    def _read_on(self, data: memoryview) -> None:
        """`data` comes at the front: move that on, over at least one byte."""
        way = self._headers.feed(data)
        if way is None:  # nobody knows what of it was read
            if self._extents and self._extents[-1][1] > self._front:
                raise self._contradiction()
            self._front = self._size
            return
        position = self._front
        for extent in way.places:
            index = self._require_free(position, extent[1], extent)
            leftover = self._leftover(index, extent)
            if leftover and self._extents[index] != extent:
                file = self._files.member(extent[0])
                os.ftruncate(file.fd, extent[1] - extent[0])
            self._extents[index : index + leftover] = [extent]
            position = extent[1]
        self._require_free(position, way.position, None)
        # Where nothing more is wanted, `finish` will say why. Until then everything has its place.
        self._front = self._size if way.over else way.position

    def _advance(self) -> None:
        """Read headers of an earlier attempt, as far as they are there."""
        buffer = memoryview(bytearray(_READ_BYTES)) if self._written else memoryview(b"")
        while (end := self._known_until(self._front)) > self._front:
            count = os.preadv(self._files.rest, [buffer[: end - self._front]], self._front)
            if not count:
                raise OSError(5, "the headers of an archive shrank")
            self._read_on(buffer[:count])

    def _known_until(self, offset: int) -> int:
        index = bisect_right(self._written, (offset, _FAR))
        return self._written[index - 1][1] if index else 0

    def _require_free(self, first: int, last: int, extent: Range | None) -> int:
        """Where in the list `extent` belongs. From `first` to `last` nothing but it may lie in a member's file."""
        index = bisect_right(self._extents, (first, _FAR))
        if index and self._extents[index - 1][1] > first:
            index -= 1
        rest = index + (self._leftover(index, extent) if extent is not None else 0)
        if rest < len(self._extents) and self._extents[rest][0] < last:
            raise self._contradiction()
        return index

    def _leftover(self, index: int, extent: Range) -> int:
        """1 where the list has at `index` what an earlier attempt wrote of the same member, 0 else."""
        if index == len(self._extents):
            return 0
        first, last = self._extents[index]
        return int(first == extent[0] and last <= extent[1])

    def _contradiction(self) -> IntegrityError:
        return IntegrityError(
            "an archive's headers came with other bytes than at an earlier attempt; nothing of it was shown to any "
            "pod, and it is fetched from the beginning the next time"
        )


def build(data: bytes, layer: Path, members: Sequence[Member], limits: unpack.Limits) -> None:
    """Make the layer of the small archive `data`, whose digest was verified and whose `members` are as `headers.read`
    gave them, in the new directory `layer`. Nothing is synced yet. Raises OSError, NoSpace.
    """
    files = Files()
    (layer / "files").mkdir(mode=0o700, parents=True)
    files.open(layer)
    try:
        view, position = memoryview(data), 0
        for member in members:
            disk.write_at(files.rest, view[position : member.number], position)
            position = member.number + member.size
            if member.is_file:
                unpack.require_space(files.directory, limits)
                made = files.member(member.number, os.O_CREAT | os.O_EXCL)
                disk.write_at(made.fd, view[member.number : position], 0)
                atomic.seal_beneath(files.directory, str(member.number))
        disk.write_at(files.rest, view[position:], position)
        os.fchmod(files.rest, 0o444)
        layers.write_index(layer, members)
    finally:
        files.close()
