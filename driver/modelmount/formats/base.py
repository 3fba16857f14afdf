"""The values a format decides on, and what a format is. Everything here is immutable and without I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest

Unpack = Literal["auto", "always", "never"]
"""What to do with archives that may as well be files: unpack those that are marked, all, or none."""


class Encoding(enum.Enum):
    """How a layer's blob holds its files."""

    RAW = "raw"
    """The blob is the file."""
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"
    RAW_GZIP = "raw+gzip"
    """One compressed file; unpacks to a single member."""
    RAW_ZSTD = "raw+zstd"
    ROOTFS_TAR = "rootfs tar"
    """A tar read as a layer of a container image: with links, whiteouts and names from the image's root."""
    ROOTFS_TAR_GZIP = "rootfs tar+gzip"
    ROOTFS_TAR_ZSTD = "rootfs tar+zstd"

    @property
    def is_archive(self) -> bool:
        """Whether the blob holds named entries."""
        return self in {Encoding.TAR, Encoding.TAR_GZIP, Encoding.TAR_ZSTD} or self.is_rootfs

    @property
    def is_rootfs(self) -> bool:
        """Whether the entries are those of a container image's layer."""
        return self in {Encoding.ROOTFS_TAR, Encoding.ROOTFS_TAR_GZIP, Encoding.ROOTFS_TAR_ZSTD}


SYMLINK, HARDLINK = "symlink", "hardlink"
"""What `Member.special` says of links."""


class Naming(enum.Enum):
    """How the entry names of an archive layer become paths of the volume. Layers that aren't archives ignore it."""

    ROOT = "root"
    """An entry's name is its path."""
    HINTED = "hinted"
    """As ROOT, except that an archive of one file named by its base name only goes to the layer's path (AIKit writes
    weights so).
    """
    WITHIN = "within"
    """As ROOT, and every entry must be the layer's path or lie below it (oras-go refuses others)."""
    BELOW = "below"
    """An entry's path is its name below the layer's path."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of the model. `path` is checked: where the file goes, or for an archive what `naming` says; None for an
    archive without one.
    """

    descriptor: Descriptor
    encoding: Encoding
    path: str | None
    naming: Naming = Naming.ROOT
    uncompressed: Digest | None = None
    """Digest of the archive after decompression, where the artifact states it. Whoever unpacks compares."""
    within: str | None = None
    """Of an archive: the path that all its files are, or lie below, where the artifact says so."""
    is_single: bool = False
    """Whether the archive is one file at `path`, as the artifact says."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a manifest means: which blobs are needed and what they are. `warnings` are sentences for the pod's owner.

    `is_image` says that each layer changes what the ones before it made, as those of container images do.
    """

    format: str
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...] = ()
    lift: str | None = None
    """A directory that becomes the volume's root when every file of the artifact lies below it."""
    is_image: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an unpacked archive. `path` is the checked name; a compressed single file has the path `""`, its
    layer names it. In layers of container images it is the name below the image's root, unchecked.

    Only files have a size and a digest, and their bytes lie in a file named by `number`.
    """

    number: int
    path: str
    is_directory: bool
    size: int
    sha256: str
    """Empty for a file that nobody hashed: the archive's own digest covers it."""
    special: str = ""
    """SYMLINK, HARDLINK or the name of a kind that isn't read; for layers of container images only."""
    target: str = ""
    """Where a link leads: of a hard link a name below the image's root, of a symbolic link whatever it says."""

    @property
    def is_file(self) -> bool:
        """Whether it has bytes."""
        return not (self.is_directory or self.special)


@dataclass(frozen=True, slots=True)
class File:
    """One file of the volume. `source` is `<hex>` of a raw blob, or `<hex>/<rules>/<number>` for a member of an
    unpacked archive.
    """

    path: str
    source: str
    size: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The whole tree: files and directories sorted by path; `directories` holds every parent. Warnings don't belong to
    the tree's identity.
    """

    files: tuple[File, ...]
    directories: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class Format(Protocol):
    """One way to put a model into a registry. Stateless; one instance serves all threads."""

    name: str
    """Shown to users."""
    reads_config: bool
    """Whether `layout` needs the config blob; where not, it never has to be fetched."""
    facts: ClassVar[Mapping[str, tuple[str, ...]]]
    """Where the config says what the model is: names of facts, and the way through its JSON to each. For people to
    read.
    """

    def matches(self, manifest: Manifest) -> bool:
        """Whether the artifact is of this format, decided from the manifest alone. Formats are asked in order; never
        raises.
        """
        ...

    def layout(self, manifest: Manifest, config: bytes | None, unpack: Unpack = "auto") -> Layout:
        """Decide over an artifact that matches. Raises BadArtifact with the cause. `unpack` is what the volume wants of
        archives that may as well be files.
        """
        ...
