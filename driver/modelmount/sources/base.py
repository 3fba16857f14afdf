"""What a source of blobs is, and what is the same of most of them: who says `class X(BlobSource)` has that."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from modelmount.oci.descriptor import Descriptor


class Opened(Protocol):
    """A blob being received, for one reader in one thread; a context manager that lets go of it."""

    @property
    def offset(self) -> int:
        """Where its bytes begin in the blob: at the offset asked for, or at 0 where the source can't do that."""

    def readinto(self, view: memoryview) -> int:
        """Fill the front of a view of at least one byte and return how much; 0 is the end of the blob.

        May block as long as the other side is silent, within the source's own limits. What arrived before a failure is
        delivered before it is raised, so that every try makes progress. Raises Unavailable.
        """

    def interrupt(self) -> None:
        """End a wait of the reader, who gets Unavailable then. Any thread may, at any time; harmless at the end."""

    def close(self) -> None:
        """Stop receiving, wherever it stands. Twice is harmless."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class BlobSource(Protocol):
    """Somewhere blobs can be had. Thread-safe: several are open at once, also of one blob."""

    @property
    def name(self) -> str:
        """Who is meant when its bytes are wrong; stays the same, fits into a file name."""

    @property
    def origin(self) -> BlobSource:
        """The registry itself, without who serves blobs in its place: whose word on what it has counts."""
        return self

    @property
    def elsewhere(self) -> Mapping[str, int]:
        """Bytes that came through this from others than `name`, by their names, so far."""
        return {}

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Begin to receive the blob, from `offset` up to `end` (None: its own) if it can; a source that can't sends
        more, never less. `offset` lies below the descriptor's size.

        Raises what the other side's answer means (NotFound, Unauthenticated, Forbidden, Unavailable), and
        IntegrityError when it says that the blob has another size than the descriptor.
        """

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        """The blob's bytes are all here and wrong: `reason`. Whether it can be had from somewhere else now; the caller
        drops all of its bytes and begins again. False: there is nobody else to blame.
        """
        return False
