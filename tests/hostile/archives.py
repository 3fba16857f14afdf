"""T and G rows: archives, compressed and not, as layers of models and of container images. From the real registry."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import sys
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes import push
from tests.fakes.archives import END, directory, extended, file, header, long_name, padded, record
from tests.fakes.evil_archives import NEGATIVE, ROWS
from tests.hostile.case import OK, Case, Prepare
from tests.hostile.world import MODEL_BYTES, OWNED, Attack, World, digest_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKINGS: tuple[push.Packing, ...] = ("tar", "tar+gzip", "tar+zstd")
TOO_LARGE = "unpacks to more than the"
SHOWN = {"model.bin": b"content"}
PLAIN = file(b"model.bin") + END


def layer(media_type: str, data: bytes, shows: Mapping[str, bytes] | None = None, path: str = ".") -> Prepare:
    """A ModelPack artifact of this layer."""
    made = push.Layer(f"application/vnd.cncf.model.weight.v1.{media_type}", data, {push.FILEPATH: path})
    artifact = push.Artifact(push.Layer(push.MODELPACK_CONFIG, b"{}"), (made,), push.MODELPACK_ARTIFACT)
    return lambda world, repository: world.pushed(repository, artifact, shows=shows or {})


def packed(archive: bytes, packing: push.Packing, shows: Mapping[str, bytes] | None = None) -> Prepare:
    """The archive as a layer."""
    return layer(packing, push.compress(archive, packing), shows)


def image(
    *layers: bytes,
    packing: push.Packing = "tar",
    diff_ids: Sequence[Any] | None = None,
    shows: Mapping[str, bytes] | None = None,
    **attributes: str,
) -> Prepare:
    """A container image of these layers."""
    media_type = "application/vnd.docker.image.rootfs.diff.tar" + packing.removeprefix("tar").replace("+", ".")
    ids = [digest_of(each) for each in layers] if diff_ids is None else list(diff_ids)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    artifact = push.Artifact(
        push.Layer(push.DOCKER_CONFIG, json.dumps(config).encode()),
        tuple(push.Layer(media_type, push.compress(each, packing)) for each in layers),
        media_type=push.DOCKER_MANIFEST,
    )
    return lambda world, repository: world.pushed(repository, artifact, shows=shows or {}, attributes=attributes)


def rows() -> list[Case]:
    """What the reader's own tests refuse, packed in each way in turn; but for limits, which are others here."""
    kept = [row for row in ROWS if row[0] != "T17 too large"]
    return [
        Case(name, packed(data, packing), words=words)
        for (name, data, words), packing in zip(kept, itertools.cycle(PACKINGS), strict=False)
    ]


def cve_2025_4517() -> bytes:
    """A way longer than PATH_MAX through links, and a hard link at its end."""
    component, data, path = "d" * 247, io.BytesIO(), ""
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for step in "abcdefghijklmnop":
            for name, kind, target in ((component, tarfile.DIRTYPE, ""), (step, tarfile.SYMTYPE, component)):
                info = tarfile.TarInfo(path + name)
                info.type, info.linkname = kind, target
                archive.addfile(info)
            path += component + "/"
        escape = tarfile.TarInfo("escape")
        escape.type, escape.linkname = tarfile.SYMTYPE, "/".join("abcdefghijklmnop") + "/" + "../" * 40 + "etc"
        archive.addfile(escape)
        info = tarfile.TarInfo(f"escape/{OWNED}")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"owned"))
    return data.getvalue()


def doubling(levels: int) -> bytes:
    """Each directory has ten links to the next: ten to the power of `levels` files, seen from above."""
    entries: list[tuple[str, bytes | str | None]] = [("models/", None)]
    for level in range(levels):
        entries.append((f"models/d{level}/", None))
        entries += [(f"models/d{level}/l{link}", f"../d{level + 1}") for link in range(10)]
    entries += [(f"models/d{levels}/", None), (f"models/d{levels}/f", b"x")]
    return push.rootfs(entries)


def pigz() -> bytes:
    """One archive in many gzip members."""
    return b"".join(gzipped(PLAIN[start : start + 100]) for start in range(0, len(PLAIN), 100))


def gzipped(data: bytes = PLAIN, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)


def cut(data: bytes, count: int) -> bytes:
    return data[:-count]


def with_byte(data: bytes, position: int, value: int | None = None) -> bytes:
    """The byte at this position replaced, or flipped."""
    changed = bytearray(data)
    changed[position] = changed[position] ^ 0xFF if value is None else value
    return bytes(changed)


def zstd_frame(descriptor: int, *fields: int) -> bytes:
    """A frame's header, and an empty last block."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor, *fields]) + b"\x01\x00\x00"


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def checked_zstd(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def stated_otherwise(world: World, repository: str) -> Attack:
    """A directory of ORAS whose archive has another digest before compression."""
    annotations = {push.TITLE: "weights", push.UNPACK: "true", push.UNPACKED_DIGEST: digest_of(b"another")}
    made = push.Layer(push.ORAS_DIRECTORY, gzipped(file(b"weights/a") + END), annotations)
    return world.pushed(repository, push.Artifact(push.Layer(push.EMPTY, b"{}"), (made,), "application/x.model"))


def two_readings(world: World, repository: str) -> Attack:
    """One blob, once as an archive and once as a compressed file."""
    data, kind = gzipped(), "application/vnd.cncf.model.weight.v1"
    layers = (
        push.Layer(f"{kind}.tar+gzip", data, {push.FILEPATH: "."}),
        push.Layer(f"{kind}.raw+gzip", data, {push.FILEPATH: "archive.tar"}),
    )
    return world.pushed(
        repository, push.Artifact(push.Layer(push.MODELPACK_CONFIG, b"{}"), layers, push.MODELPACK_ARTIFACT)
    )


WILD = {100: b"0006755\0", 108: NEGATIVE[:8], 116: b"\x80" + b"\xff" * 7, 136: b"\xff" * 12, 265: b"root\xff"}
ZIP = b"PK\x03\x04" + b"../../mm-owned" * 10
BOMB = bytes(MODEL_BYTES + (1 << 20))
MODELS = ("models/", None)
OUT = push.rootfs([MODELS, ("models/out", "../../../../etc"), ("models/abs", "/etc/passwd"), ("models/f", b"x")])
THROUGH = push.rootfs([MODELS, ("models/out", "../../../../tmp"), (f"models/out/{OWNED}", b"x"), ("models/f", b"x")])
LOOPS = push.rootfs(
    [MODELS, ("models/a", "b"), ("models/b", "a"), ("models/self", "."), ("models/up", ".."), ("models/f", b"x")]
)
HARD = header(b"models/h", kind=b"1", link=b"../../../../etc/shadow")
DEEPER = directory(b"models/") + header(b"models/s", kind=b"2", link=b"/etc") + file(b"models/f")

CASES = [
    *rows(),
    Case("T3 the archive of CVE-2025-4517", packed(cve_2025_4517(), "tar+gzip"), words="is a symbolic link"),
    Case(
        "T4 a good file before a bad one",
        packed(file(b"good") + file(f"../{OWNED}".encode()) + END, "tar"),
        words="has the component '..'",
    ),
    Case(
        "T5 a link out of the directory under a long name",
        packed(long_name(b"d" * 200) + header(b"d", kind=b"2", link=b"../" * 30) + END, "tar+zstd"),
        words="is a symbolic link",
    ),
    Case(
        "T10 setuid, and owners and times of all sizes",
        packed(header(b"model.bin", 7, fields=WILD) + padded(b"content") + END, "tar", SHOWN),
        OK,
    ),
    Case(
        "T16 owners and times by records",
        packed(
            extended(record(b"uid", b"4294967295") + record(b"mtime", b"-9e99") + record(b"uname", b"\xff")) + PLAIN,
            "tar+gzip",
            SHOWN,
        ),
        OK,
    ),
    Case(
        "T16 extended attributes by records",
        packed(extended(record(b"SCHILY.xattr.security.capability", b"\x01\0\0\2")) + PLAIN, "tar", SHOWN),
        OK,
    ),
    Case("T17 a tar bomb in gzip", layer("tar+gzip", gzipped(file(b"a", BOMB) + END, 1)), words=TOO_LARGE),
    Case("T17 a tar bomb in zstd", packed(file(b"a", BOMB[:-1]) + END, "tar+zstd"), words=TOO_LARGE),
    Case(
        "T17 files that are too many bytes together",
        packed(b"".join(file(b"%d" % n, bytes(MODEL_BYTES // 4)) for n in range(5)) + END, "tar+zstd"),
        words=TOO_LARGE,
    ),
    Case(
        "T17 an image of a million entries",
        image(file(b"models/f") * 1001 + END, packing="tar+gzip"),
        words="limits.archive_entries",
    ),
    # Container images: links are names, and act on names.
    Case("T2 links out of an image", image(OUT, shows={"f": b"x"}), OK),
    Case(
        "T2 a file through a link out of an image",
        image(THROUGH, shows={"f": b"x", "out/": b"", f"out/{OWNED}": b"x"}),
        OK,
    ),
    Case("T2 links that go round in an image", image(LOOPS, shows={"f": b"x"}), OK),
    Case(
        "T2 a hard link out of an image",
        image(directory(b"models/") + HARD + file(b"models/f") + END),
        words="component '..'",
    ),
    Case(
        "T7 a hard link to a link in an image",
        image(DEEPER + header(b"models/h", kind=b"1", link=b"models/s") + END, shows={"f": b"content"}),
        OK,
    ),
    Case(
        "T7 a hard link to nothing in an image",
        image(header(b"models/h", kind=b"1", link=b"models/no") + END),
        words="hard link to nothing",
    ),
    Case("T1 parent in an image", image(file(b"models/../../x") + END), words="component '..'"),
    Case("T1 absolute in an image", image(file(b"/models/f") + END, shows={"f": b"content"}), OK),
    Case("T9 a device in an image's models", image(header(b"models/sda", kind=b"4") + END), words="is a block device"),
    Case(
        "T9 a pipe in an image's models",
        image(header(b"models/p", kind=b"6") + END, packing="tar+zstd"),
        words="named pipe",
    ),
    Case(
        "T9 a device outside of an image's models",
        image(header(b"dev/sda", kind=b"4") + file(b"models/f") + END, shows={"f": b"content"}),
        OK,
    ),
    Case("T17 ten to the sixth files by links", image(doubling(6)), words="through links"),
    Case(
        "T14 a directory in a file's place in an image",
        image(file(b"models/a") + file(b"models/a/b") + END, shows={"a/": b"", "a/b": b"content"}),
        OK,
    ),
    Case(
        "P8 whiteouts of what is not there",
        image(
            push.rootfs([MODELS, ("models/.wh.passwd", b""), ("etc/.wh..wh..opq", b""), ("models/f", b"x")]),
            shows={"f": b"x"},
        ),
        OK,
    ),
    Case("P8 a whiteout of nothing", image(file(b"models/.wh.") + END), words="names nothing"),
    Case(
        "P8 a whiteout with a way in it",
        image(file(b"models/.wh...") + file(b"models/f") + END, shows={"f": b"content"}),
        OK,
    ),
    Case(
        "P3 129 levels in an image",
        image(long_name(b"a/" * 128 + b"b") + file(b"x") + END),
        words="more than 128 levels",
    ),
    Case("P2 a name that no volume may have in an image", image(file(b"models/a\x1b[2J") + END), words=r"U\+001B"),
    Case(
        "P1 an image with nothing but a system",
        image(push.rootfs([("etc/passwd", b"x"), ("bin/sh", b"x")])),
        words="could be anywhere",
    ),
    Case(
        "P1 an image whose models are a link out",
        image(push.rootfs([("models", "../../../etc"), ("etc/passwd", b"x")]), shows={"passwd": b"x"}),
        OK,
    ),
    Case(
        "G4 a diff_id of another archive",
        image(file(b"models/f") + END, packing="tar+gzip", diff_ids=[digest_of(b"x")]),
        words="where its manifest says",
    ),
    Case(
        "G4 diff_ids that are no text",
        image(
            file(b"models/f") + END,
            file(b"models/g") + END,
            packing="tar+gzip",
            diff_ids=[7, digest_of(file(b"models/f") + END)],
            shows={"f": b"content", "g": b"content"},
        ),
        OK,
    ),
    Case("G4 an archive that isn't what ORAS says", stated_otherwise, words="where its manifest says"),
    # Compression
    Case("G1 a gzip bomb", layer("raw+gzip", gzipped(BOMB, 1), path="model.bin"), words=TOO_LARGE),
    Case("G1 a zstd bomb", layer("raw+zstd", zstd.compress(BOMB), path="model.bin"), words=TOO_LARGE),
    Case(
        "G1 a bomb in a bomb",
        layer("raw+gzip", gzipped(gzipped(BOMB, 1)), {"model.bin": gzipped(BOMB, 1)}, path="model.bin"),
        OK,
    ),
    Case("G2 many members", layer("tar+gzip", pigz(), SHOWN), OK),
    Case("G2 zeros behind the last member", layer("tar+gzip", gzipped() + bytes(5000), SHOWN), OK),
    Case(
        "G2 something else behind the last member",
        layer("tar+gzip", gzipped() + b"#!/bin/sh\n" * 10),
        words="gzip data is damaged",
    ),
    Case(
        "G2 zeros and something else behind it",
        layer("tar+gzip", gzipped() + bytes(600) + b"x"),
        words="something else follows",
    ),
    Case("G2 cut off", layer("tar+gzip", cut(gzipped(), 12)), words="cut off"),
    Case("G2 cut off in its sum", layer("tar+gzip", cut(gzipped(), 3)), words="cut off"),
    Case("G2 a wrong sum", layer("tar+gzip", with_byte(gzipped(), -6)), words="gzip data is damaged"),
    Case("G2 a wrong length", layer("tar+gzip", with_byte(gzipped(), -2)), words="gzip data is damaged"),
    Case("G2 a wrong method", layer("tar+gzip", with_byte(gzipped(), 2, 7)), words="gzip data is damaged"),
    Case(
        "G2 damage in the middle",
        layer("tar+gzip", with_byte(gzipped(), 20)),
        words="gzip data is damaged|checksum|cut off|octal",
    ),
    Case("G2 empty members without end", layer("tar+gzip", gzipped(b"") * 20_000 + gzipped(), SHOWN), OK),
    Case(
        "G3 a window of 2 GiB",
        layer("tar+zstd", zstd_frame(0, (31 - 10) << 3) + zstd.compress(PLAIN)),
        words="zstd data is damaged or not supported",
    ),
    Case(
        "G3 a window of 256 MiB",
        layer("tar+zstd", zstd_frame(0, (28 - 10) << 3)),
        words="zstd data is damaged or not supported",
    ),
    Case(
        "G3 a dictionary that nobody has",
        layer("tar+zstd", zstd_frame(1, (21 - 10) << 3, 7)),
        words="zstd data is damaged or not supported",
    ),
    Case(
        "G3 skippable frames",
        layer("tar+zstd", skippable(b"x" * 3000) + zstd.compress(PLAIN) + skippable(b""), SHOWN),
        OK,
    ),
    Case(
        "G3 a skippable frame of 4 GiB that isn't there",
        layer("tar+zstd", zstd.compress(PLAIN) + struct.pack("<II", 0x184D2A50, 0xFFFFFFFF) + b"x"),
        words="cut off",
    ),
    Case("G3 a wrong sum", layer("tar+zstd", with_byte(checked_zstd(PLAIN), -1)), words="zstd data is damaged"),
    Case("G3 cut off", layer("tar+zstd", cut(zstd.compress(PLAIN), 1)), words="cut off"),
    Case(
        "G3 a frame from before zstd was finished",
        layer("tar+zstd", b"\x27\xb5\x2f\xfd" + bytes(100)),
        words="zstd data is damaged",
    ),
    Case("G5 a zip with ways out of it", layer("raw", ZIP, {"model.keras": ZIP}, path="model.keras"), OK),
    Case("G5 a zip in an archive", packed(file(b"model.keras", ZIP) + END, "tar+gzip", {"model.keras": ZIP}), OK),
    Case("G2 one blob read in two ways", two_readings, words="lists sha256:.* as"),
]
