"""An uncompressed tar, scattered straight into its members while it arrives: nothing is written twice.

    layer/files/<number>    a member; its number is the offset of its bytes in the archive
    layer/rest              everything else, at its own offset, with holes where the members were: headers, padding, end

Where a byte belongs is known once every header before it was read. So there is a front, where the next header is
wanted; whatever lies before it may come in any order and from any number of connections, and nothing behind it can be
written yet. A member of any size moves the front by its whole length at once.

After whatever end the files themselves say what lies where, by their names and sizes; only the journal says what of it
can be believed. The headers that were read on the way decide about places only. What the layer holds is read once more
from the disk, from bytes whose digest was verified.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelmount.content.ranges import Range
from modelmount.errors import BadArtifact, IntegrityError, Internal
from modelmount.snapshots import layers, unpack
from modelmount.snapshots import walk as walks
from modelmount.snapshots.openfiles import FLAGS, Files, OpenFile
from modelmount.snapshots.walk import Walk
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

    def __init__(self, layer: Path, size: int, limits: unpack.Limits, *, rootfs: bool = False) -> None:
        """Goes on with what lies in the directory `layer`, if `resume` finds anything in it to believe."""
        self._layer, self._size, self._limits, self._rootfs = layer, size, limits, rootfs
        self._lock, self._marks = threading.Lock(), threading.Lock()
        self._walk = Walk(size, limits, rootfs=rootfs)
        self._front = 0
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
            self._advance()

    def write(self, view: memoryview, offset: int) -> None:
        """See Body. Raises NoSpace where a share that must stay free would be touched; IntegrityError where a header
        contradicts what an earlier attempt was sent.
        """
        if offset + len(view) <= self._front:
            self._put(view, offset)
            return
        with self._lock:
            while view:
                count = min(len(view), self._front - offset)
                if count > 0:
                    self._put(view[:count], offset)
                else:
                    count = min(len(view), self._walk.wanted)
                    self._put_header(view[:count], offset)
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
        self._files.close()

    # -- the layer

    def finish(self) -> Path:
        """Everything is written and has its digest: the layer with its index, not synced yet.

        Raises BadArtifact for what the archive's bytes decide; IntegrityError where the layer isn't what they say, and
        then it is of no use.
        """
        members = walks.members(
            lambda view, offset: os.preadv(self._files.rest, [view], offset),
            Walk(self._size, self._limits, rootfs=self._rootfs),
        )
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

    def _put_header(self, view: memoryview, offset: int) -> None:
        if offset != self._front:
            raise Internal(f"refusing to write byte {offset} of an archive that is read up to byte {self._front}")
        self._require_free(offset, offset + len(view), None)
        self._put(view, offset)
        self._feed(view)
        self._advance()

    def _feed(self, data: memoryview) -> None:
        """Bytes at the front that are in their place."""
        position = self._walk.position
        try:
            member = self._walk.take(data)
        except BadArtifact:
            # If these are the blob's bytes at all, `finish` will say so. Until then everything has its place.
            self._front = self._size
            return
        if member is not None and member.size:
            extent = (member.number, member.number + member.size)
            index = self._require_free(position, self._walk.position, extent)
            leftover = self._leftover(index, extent)
            if leftover and self._extents[index] != extent:
                file = self._files.member(member.number)
                os.ftruncate(file.fd, member.size)
            self._extents[index : index + leftover] = [extent]
        else:
            self._require_free(position, self._walk.position, None)
        self._front = self._walk.position

    def _advance(self) -> None:
        """Read headers of an earlier attempt, as far as they are there."""
        buffer = memoryview(bytearray(_READ_BYTES)) if self._written else memoryview(b"")
        while (end := self._known_until(self._front)) > self._front:
            self._require_free(self._front, self._front + 1, None)
            count = os.preadv(self._files.rest, [buffer[: min(self._walk.wanted, end - self._front)]], self._front)
            if not count:
                raise OSError(5, "the headers of an archive shrank")
            self._feed(buffer[:count])

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


def build(data: bytes, layer: Path, limits: unpack.Limits, *, rootfs: bool = False) -> None:
    """Make the layer of the small archive `data`, whose digest was verified, in the new directory `layer`. Nothing is
    synced yet. Raises as `Scatter` does.
    """
    scatter = Scatter(layer, len(data), limits, rootfs=rootfs)
    try:
        scatter.write(memoryview(data), 0)
        scatter.finish()
    finally:
        scatter.close()
