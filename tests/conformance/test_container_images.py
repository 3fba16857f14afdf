"""Container images as the tools of the field build them, and hostile ones: from the manifest to the tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats.image import ContainerImage
from modelmount.formats.selection import Selection
from modelmount.formats.stack import MAX_HOPS, MAX_LINKED

from .artifact import (
    IMAGE_CONFIG,
    IMAGE_LAYER,
    TITLE,
    Artifact,
    Blob,
    Link,
    Special,
    decide,
    digest_of,
    gz,
    gz_members,
    rootfs,
    tree,
    zst,
    zst_frames,
)
from .format import FormatConformance, Refused, Sample

CONFIG = b'{"model_type":"llama"}\n'
WEIGHTS = b"WEIGHTS1" * 100
MORE = b"WEIGHTS2"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Entry = tuple[str, bytes | Link | Special | None]

SYSTEM: Sequence[Entry] = (
    ("bin", Link("usr/bin")),
    ("dev/", None),
    ("dev/console", Special(b"3")),
    ("dev/sda", Special(b"4")),
    ("run/initctl", Special(b"6")),
    ("etc/", None),
    ("etc/localtime", Link("/usr/share/zoneinfo/UTC")),
    ("usr/lib/systemd/system/system-systemd\\x2dcryptsetup.slice", b""),
    ("usr/share/doc/\udcff", b"not UTF-8"),
    ("usr/bin/perl", b"#!"),
    ("usr/bin/perl5.36", Link("usr/bin/perl", hard=True)),
    ("usr/bin/" + "x" * 300, b"a name that no file system takes"),
    ("var/run", Link("../run")),
)
"""What base images hold and no model may."""


def layer(*entries: Entry) -> Blob:
    return Blob(IMAGE_LAYER, rootfs(*entries))


def image(*layers: Blob, diff_ids: Sequence[str] | None = None) -> Artifact:
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids or []}}
    return Artifact(layers, Blob(IMAGE_CONFIG, json.dumps(config).encode()))


def system(*entries: Entry) -> bytes:
    """Names that aren't UTF-8 come from surrogates, as in Python's own tarfile."""
    return rootfs(*SYSTEM, *entries)


class TestContainerImage(FormatConformance):
    format = ContainerImage()
    samples = (
        Sample(
            "modelcar",
            image(layer(("models/", None), ("models/config.json", CONFIG), ("models/sub/model.bin", WEIGHTS))),
            {"config.json": CONFIG, "sub/model.bin": WEIGHTS},
        ),
        Sample(
            "docker-with-an-operating-system-below",
            Artifact(
                (
                    Blob(DOCKER_LAYER, gz(system(("tmp/", None)))),
                    Blob(DOCKER_LAYER, gz(rootfs(("models/config.json", CONFIG)))),
                    Blob("application/vnd.docker.image.rootfs.diff.tar.zstd", zst(rootfs(("models/w", WEIGHTS)))),
                    Blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gz(rootfs(("opt/x", MORE)))),
                    Blob("application/vnd.docker.image.rootfs.diff.tar", rootfs(("models/v", MORE))),
                ),
                Blob(DOCKER_CONFIG, b"{}"),
                media_type=DOCKER_MANIFEST,
            ),
            {"config.json": CONFIG, "w": WEIGHTS, "v": MORE},
        ),
        Sample(
            "whiteouts-and-opaque-directories-hide-what-is-below",
            image(
                layer(
                    ("models/a", WEIGHTS),
                    ("models/b", WEIGHTS),
                    ("models/d/x", WEIGHTS),
                    ("models/d/y", WEIGHTS),
                    ("models/gone/x", WEIGHTS),
                ),
                layer(
                    ("models/.wh.a", b""),
                    ("models/d/new", MORE),
                    ("models/d/.wh..wh..opq", b""),  # after the new file, and still only about the layer below
                    ("models/b", MORE),
                    ("models/.wh.b", b""),
                    ("models/.wh.gone", b""),
                    ("models/.wh..wh.plnk", b""),
                    ("models/.wh.never-there", b""),
                ),
            ),
            {"b": MORE, "d/new": MORE},
        ),
        Sample(
            "a-whiteout-of-the-whole-directory",
            image(layer(("models/old", WEIGHTS)), layer((".wh.models", b"")), layer(("models/new", MORE))),
            {"new": MORE},
        ),
        Sample(
            "links-become-what-they-lead-to",
            image(
                layer(("models/real/model.gguf", WEIGHTS), ("data/tokenizer.json", CONFIG), ("models/lower", MORE)),
                layer(
                    ("models/model.file", Link("real/model.gguf")),
                    ("models/again", Link("models/lower", hard=True)),
                    ("models/tokenizer.json", Link("/data/tokenizer.json")),
                    ("models/up", Link("../../../../data/./tokenizer.json")),
                    ("models/chain", Link("model.file")),
                    ("models/directory", Link("real")),
                ),
            ),
            {
                "real/model.gguf": WEIGHTS,
                "model.file": WEIGHTS,
                "chain": WEIGHTS,
                "directory/model.gguf": WEIGHTS,
                "tokenizer.json": CONFIG,
                "up": CONFIG,
                "lower": MORE,
                "again": MORE,
            },
        ),
        Sample(
            "hugging-face-cache",
            image(
                layer(
                    ("models/models--org--tiny/refs/main", b"0123"),
                    ("models/models--org--tiny/blobs/aa", CONFIG),
                    ("models/models--org--tiny/snapshots/0123/config.json", Link("../../blobs/aa")),
                )
            ),
            {
                "models--org--tiny/refs/main": b"0123",
                "models--org--tiny/blobs/aa": CONFIG,
                "models--org--tiny/snapshots/0123/config.json": CONFIG,
            },
        ),
        Sample(
            "the-models-directory-is-a-link",
            image(layer(("opt/llm/a", WEIGHTS), ("models", Link("opt/llm"))), layer(("models/b", MORE))),
            {"a": WEIGHTS, "b": MORE},
        ),
        Sample(
            "the-last-of-two-entries-and-of-two-layers-counts",
            image(
                layer(("models/a", MORE), ("models/a", WEIGHTS), ("models/x", None), ("models/x", MORE)),
                layer(("models/x", WEIGHTS), ("models/kept/", None)),
                layer(("models/y/z", WEIGHTS), ("models/kept/", None), ("models/kept/f", MORE)),
                layer(("models/y", MORE), ("models/kept/", None)),
                layer(("models/x/deep", MORE)),
            ),
            {"a": WEIGHTS, "x/deep": MORE, "y": MORE, "kept/f": MORE},
        ),
        Sample(
            "names-from-the-root-in-every-spelling",
            image(layer(("./", None), ("./models/a", WEIGHTS), ("/models/b", WEIGHTS), ("models//c", WEIGHTS))),
            {"a": WEIGHTS, "b": WEIGHTS, "c": WEIGHTS},
        ),
        Sample(
            "nothing-but-the-model",
            image(layer(("config.json", CONFIG), ("sub/w", WEIGHTS), ("empty/", None))),
            {"config.json": CONFIG, "sub/w": WEIGHTS, "empty": None},
        ),
        Sample(
            "estargz",
            image(
                Blob(
                    f"{IMAGE_LAYER}+gzip",
                    gz_members(
                        rootfs(("w", WEIGHTS), (".prefetch.landmark", b"\x0f"), ("stargz.index.json", b"{}")), 100
                    ),
                    {"containerd.io/snapshot/stargz/toc.digest": digest_of(b"{}")},
                ),
                Blob(f"{IMAGE_LAYER}+gzip", gz_members(rootfs((".no.prefetch.landmark", b"\x0f"), ("v", MORE)), 7)),
            ),
            {"w": WEIGHTS, "v": MORE},
        ),
        Sample(
            "zstd-chunked",
            image(
                Blob(
                    f"{IMAGE_LAYER}+zstd",
                    zst_frames(rootfs(("models/w", WEIGHTS)), 100),
                    {"io.github.containers.zstd-chunked.manifest-position": "0:1:2:3"},
                )
            ),
            {"w": WEIGHTS},
        ),
        Sample(
            "olot-with-titles-and-one-file-a-layer",
            image(
                Blob(f"{IMAGE_LAYER}+zstd", zst(system())),
                Blob(
                    IMAGE_LAYER,
                    rootfs(("models/", None), ("models/w", WEIGHTS)),
                    {TITLE: "w", "olot.layer.content.type": "file", "olot.layer.content.inlayerpath": "/models/w"},
                ),
                Blob(
                    f"{IMAGE_LAYER}+gzip",
                    gz(rootfs(("models/README.md", CONFIG))),
                    {TITLE: "README.md", "olot.layer.content.type": "file"},
                ),
            ),
            {"w": WEIGHTS, "README.md": CONFIG},
        ),
        Sample(
            "checked-before-compression",
            image(
                Blob(f"{IMAGE_LAYER}+gzip", gz(rootfs(("models/w", WEIGHTS)))),
                layer(("models/v", MORE)),
                diff_ids=[digest_of(rootfs(("models/w", WEIGHTS))), digest_of(rootfs(("models/v", MORE)))],
            ),
            {"w": WEIGHTS, "v": MORE},
        ),
        Sample(
            "attestations-and-layers-listed-twice",
            image(
                layer(("models/w", WEIGHTS)), Blob("application/vnd.in-toto+json", b"{}"), layer(("models/w", WEIGHTS))
            ),
            {"w": WEIGHTS},
            warnings=1,
        ),
        Sample(
            "non-distributable",
            image(
                Blob(
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                    gz(rootfs(("models/w", WEIGHTS))),
                    fields={"urls": ["http://169.254.169.254/"]},
                )
            ),
            {"w": WEIGHTS},
        ),
        Sample(
            "links-out-of-the-image-end-at-its-root",
            image(
                layer(("models/w", WEIGHTS), ("models/passwd", Link("../../../../etc/passwd")), ("etc/passwd", MORE))
            ),
            {"w": WEIGHTS, "passwd": MORE},
        ),
        Sample(
            "T2-a-link-out-and-a-file-through-it",
            image(layer(("models/w", WEIGHTS), ("models/out", Link("/../../tmp")), ("models/out/evil", MORE))),
            {"w": WEIGHTS, "out/evil": MORE},
        ),
        Sample(
            "links-to-nowhere-and-to-themselves",
            image(
                layer(
                    ("models/w", WEIGHTS),
                    ("models/dangling", Link("no/such")),
                    ("models/self", Link("self")),
                    ("models/a", Link("b")),
                    ("models/b", Link("a")),
                    ("models/root", Link("/")),
                    ("models/here", Link(".")),
                    ("models/d/above", Link("..")),
                    ("models/through", Link("w/x")),
                    ("models/empty", Link("")),
                )
            ),
            {"w": WEIGHTS, "d": None},
        ),
    )
    refused = (
        Refused(
            "no-models-in-an-operating-system",
            image(Blob(IMAGE_LAYER, system(("opt/llm/w", WEIGHTS)))),
            "no directory /models, .* at its root are 'bin', 'dev', 'etc', 'opt'",
        ),
        Refused("nothing-in-models", image(layer(("models/", None), ("etc/x", MORE))), "only directories"),
        Refused("T9-device", image(layer(("models/w", WEIGHTS), ("models/d", Special(b"3")))), "a character device"),
        Refused("T9-pipe", image(layer(("models/w", WEIGHTS), ("models/d", Special(b"6")))), "a named pipe"),
        Refused("T1-name-above-the-root", image(layer(("models/../../x", WEIGHTS))), "component '\\.\\.'"),
        Refused("T12-file-named-like-a-directory", image(layer(("models/x/", b"data"))), "named like a directory"),
        Refused("P2-backslash", image(layer(("models/a\\b", WEIGHTS))), "backslash"),
        Refused("P2-not-utf-8", image(layer(("models/\udcff", WEIGHTS))), "backslash"),
        Refused("P5-composed-and-decomposed", image(layer(("é", MORE)), layer(("e\u0301", MORE))), "look the same"),
        Refused("P6-reserved", image(layer(("models/.modelmount", MORE))), "reserved"),
        Refused("P8-whiteout-of-nothing", image(layer(("models/w", MORE), ("models/.wh.", b""))), "names nothing"),
        Refused(
            "hard-link-to-nothing",
            image(layer(("models/w", MORE), ("models/x", Link("models/y", hard=True)))),
            "hard link to nothing",
        ),
        Refused(
            "hard-link-above-the-root", image(layer(("models/x", Link("../../etc/shadow", hard=True)))), "'\\.\\.'"
        ),
        Refused(
            "G4-other-content-than-the-config-says",
            image(Blob(f"{IMAGE_LAYER}+gzip", gz(rootfs(("models/w", WEIGHTS)))), diff_ids=[digest_of(b"other")]),
            "decompresses to",
        ),
        Refused("T11-no-archive", image(Blob(IMAGE_LAYER, b"x" * 1024)), "pack the model again"),
        Refused(
            "a-directory-in-a-link-that-goes-round",
            image(layer(("models/l", Link("l")), ("models/l/x", MORE))),
            "links go round",
        ),
        Refused(
            "a-few-entries-that-show-very-many-files",
            image(
                layer(
                    ("models/d0/w", MORE),
                    *(
                        (f"models/d{n}/{side}", Link(f"../d{n - 1}"))
                        for n in range(1, 25)
                        for side in ("a", "b", "c", "d")
                    ),
                )
            ),
            f"more than {MAX_LINKED} times through links",
        ),
        Refused(
            "one-file-with-very-many-names",
            image(
                layer(
                    ("models/w", MORE), *((f"models/{n}", Link("models/w", hard=True)) for n in range(MAX_LINKED + 1))
                )
            ),
            f"more than {MAX_LINKED} times through links",
        ),
    )


def test_links_on_one_way_are_followed_as_often_as_linux_does(tmp_path: Path) -> None:
    chain: list[Entry] = [("models/0", WEIGHTS)]
    chain += [(f"models/{n}", Link(str(n - 1))) for n in range(1, MAX_HOPS + 2)]
    found = tree(image(layer(*chain)), tmp_path)
    assert found == {str(n): WEIGHTS for n in range(MAX_HOPS + 1)}


@pytest.mark.parametrize(
    "config",
    [b"", b"\xff", b"[]", b'{"rootfs":[]}', b'{"rootfs":{"diff_ids":["x"]}}', b'{"rootfs":{"diff_ids":[7]}}'],
)
def test_a_config_that_says_nothing_usable_is_nothing_to_compare_with(tmp_path: Path, config: bytes) -> None:
    artifact = Artifact((Blob(f"{IMAGE_LAYER}+gzip", gz(rootfs(("w", WEIGHTS)))),), Blob(IMAGE_CONFIG, config))
    assert tree(artifact, tmp_path) == {"w": WEIGHTS}


def test_diff_ids_that_are_not_all_text_are_none(tmp_path: Path) -> None:
    layers = tuple(Blob(f"{IMAGE_LAYER}+gzip", gz(rootfs(entry))) for entry in (("w", WEIGHTS), ("v", MORE)))
    config = json.dumps({"rootfs": {"diff_ids": [7, str(digest_of(b"other"))]}}).encode()
    assert tree(Artifact(layers, Blob(IMAGE_CONFIG, config)), tmp_path) == {"w": WEIGHTS, "v": MORE}


def test_a_blob_that_is_a_plain_archive_elsewhere_is_read_by_other_rules(tmp_path: Path) -> None:
    """A link is nothing that a ModelPack layer may have, though the same bytes are a layer of an image."""
    content = rootfs(("models/w", WEIGHTS), ("models/l", Link("w")))
    assert tree(image(Blob(IMAGE_LAYER, content)), tmp_path) == {"w": WEIGHTS, "l": WEIGHTS}
    modelpack = Artifact(
        (Blob("application/vnd.cncf.model.weight.v1.tar", content),),
        artifact_type="application/vnd.cncf.model.manifest.v1+json",
    )
    (tmp_path / "second").mkdir()
    with pytest.raises(BadArtifact, match="symbolic link"):
        tree(modelpack, tmp_path / "second")


MANY = image(
    Blob(IMAGE_LAYER, system(("opt/a/w", WEIGHTS), ("opt/a/d/v", MORE), ("srv/b/c", CONFIG), ("srv/l", Link("/opt/a"))))
)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        pytest.param(Selection(path="opt/a"), {"w": WEIGHTS, "d": None, "d/v": MORE}, id="a-directory"),
        pytest.param(Selection(path="srv/l"), {"w": WEIGHTS, "d": None, "d/v": MORE}, id="a-link-to-one"),
        pytest.param(Selection(path="srv/l/d"), {"v": MORE}, id="through-a-link"),
        pytest.param(Selection(path="opt", include=("/a/w",)), {"a": None, "a/w": WEIGHTS}, id="patterns-begin-there"),
    ],
)
def test_a_path_is_one_of_the_image(tmp_path: Path, selection: Selection, expected: dict[str, bytes | None]) -> None:
    assert tree(MANY, tmp_path, selection) == expected


def test_the_whole_image_can_be_shown_even_beside_models(tmp_path: Path) -> None:
    artifact = image(layer(("models/w", WEIGHTS), ("README.md", CONFIG)))
    expected = {"models": None, "models/w": WEIGHTS, "README.md": CONFIG}
    assert tree(artifact, tmp_path, Selection(path="/")) == expected


@pytest.mark.parametrize("path", ["models", "opt/b", "opt/a/w", "opt/a/w/x"])
def test_a_path_that_is_no_directory_is_told_with_what_there_is(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no directory '{path}' .*at its root are 'bin', 'dev', 'etc', 'opt'"):
        tree(MANY, tmp_path, Selection(path=path))


def olot(path: str, content: bytes, kind: str = "file") -> Blob:
    annotations = {TITLE: path, "olot.layer.content.type": kind, "olot.layer.content.inlayerpath": f"/{path}"}
    return Blob(IMAGE_LAYER, rootfs(("models/", None), (path, content)), annotations)


OLOT = image(
    Blob(IMAGE_LAYER, system()),
    olot("models/w.safetensors", WEIGHTS),
    olot("models/w.bin", MORE),
    Blob(
        IMAGE_LAYER,
        rootfs(("models/tok/a.json", CONFIG)),
        {"olot.layer.content.type": "directory", "olot.layer.content.inlayerpath": "/models/tok"},
    ),
)


@pytest.mark.parametrize(
    ("selection", "pulled", "expected"),
    [
        pytest.param(Selection(files="vllm"), [0, 1, 3], {"w.safetensors", "tok", "tok/a.json"}, id="vllm"),
        pytest.param(Selection(exclude=("tok/",)), [0, 1, 2], {"w.safetensors", "w.bin"}, id="excluded-directory"),
        pytest.param(Selection(include=("*.json",)), [0, 3], {"tok", "tok/a.json"}, id="included"),
        pytest.param(Selection(path="models/tok"), [0, 3], {"a.json"}, id="a-path-of-the-image"),
        pytest.param(Selection(path="/", include=("*.bin",)), [0, 2, 3], {"models", "models/w.bin"}, id="whole-image"),
    ],
)
def test_of_an_image_with_a_layer_for_each_file_only_those_are_pulled(
    tmp_path: Path, selection: Selection, pulled: list[int], expected: set[str]
) -> None:
    manifest = OLOT.manifest()
    assert [manifest.layers.index(one.descriptor) for one in decide(OLOT, selection).layers] == pulled
    if selection.path != "/":  # else it has devices
        assert tree(OLOT, tmp_path, selection).keys() == expected


def test_nothing_of_such_an_image_is_not_its_operating_system() -> None:
    with pytest.raises(
        InvalidRequest, match=r"left to show by include and exclude; it has 'models/w.bin', 'models/w.safetensors'"
    ):
        decide(OLOT, Selection(include=("*.gguf",), exclude=("tok",)))
