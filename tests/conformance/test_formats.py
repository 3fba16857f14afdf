"""Artifacts of every producer the driver reads, and hostile ones, through the whole of parse, decide, unpack, place."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact
from modelmount.formats.files import Files
from modelmount.formats.modelpack import ModelPack
from modelmount.formats.selection import Selection

from .artifact import (
    FILEPATH,
    IMAGE_CONFIG,
    IMAGE_LAYER,
    METADATA,
    TITLE,
    UNCOMPRESSED,
    UNPACK,
    Artifact,
    Blob,
    decide,
    digest_of,
    gz,
    tar,
    tree,
    zst,
)
from .format import FormatConformance, Refused, Sample

CONFIG = b'{"model_type":"llama"}\n'
WEIGHTS = b"WEIGHTS1"
MORE = b"WEIGHTS2"
DOCS = b"# Model\n"
CNAI_PATH = "org.cnai.model.filepath"
CNAI_METADATA = "org.cnai.model.file.metadata"


def metadata(name: str, **more: object) -> str:
    return json.dumps({"name": name, "mode": 0o644, "uid": 0, "gid": 0, "size": 8, "typeflag": 0, **more})


def modelpack(*layers: Blob, config: bytes = b'{"descriptor":{"name":"t"}}', prefix: str = "cncf") -> Artifact:
    model_config = Blob(f"application/vnd.{prefix}.model.config.v1+json", config)
    return Artifact(layers, model_config, f"application/vnd.{prefix}.model.manifest.v1+json")


def model_layer(kind: str, content: bytes, path: str | None = None, **annotations: str) -> Blob:
    named = {FILEPATH: path} if path is not None else {}
    return Blob(f"application/vnd.cncf.model.{kind}", content, named | annotations)


def oras(*layers: Blob, artifact_type: str | None = "application/x.model") -> Artifact:
    return Artifact(layers, artifact_type=artifact_type)


def file(title: str, content: bytes = WEIGHTS, media_type: str = IMAGE_LAYER, **annotations: str) -> Blob:
    return Blob(media_type, content, {TITLE: title} | annotations)


def directory(title: str, *entries: tuple[str, bytes | None], media_type: str = f"{IMAGE_LAYER}+gzip") -> Blob:
    archive = tar(*entries)
    return Blob(media_type, gz(archive), {TITLE: title, UNPACK: "true", UNCOMPRESSED: digest_of(archive)})


def single(name: str, content: bytes = WEIGHTS) -> bytes:
    return tar((name, content))


class TestModelPack(FormatConformance):
    format = ModelPack()
    samples = (
        Sample(
            "raw",
            modelpack(
                model_layer("weight.config.v1.raw", CONFIG, "config.json", **{METADATA: metadata("config.json")}),
                model_layer("weight.v1.raw", WEIGHTS, "text_encoder/model-00001-of-00007.safetensors"),
            ),
            {"config.json": CONFIG, "text_encoder/model-00001-of-00007.safetensors": WEIGHTS},
        ),
        Sample(
            "modctl-tar",
            modelpack(
                model_layer("weight.config.v1.tar", single("config.json", CONFIG), "config.json"),
                model_layer("weight.v1.tar", single("te/model.safetensors"), "te/model.safetensors"),
            ),
            {"config.json": CONFIG, "te/model.safetensors": WEIGHTS},
        ),
        Sample(
            "tar-gzip-and-zstd-with-long-and-foreign-names",
            modelpack(
                model_layer(
                    "doc.v1.tar+gzip", gz(tar(("d" * 100 + "/é/README.md", DOCS), kind=tarfile.PAX_FORMAT)), "docs"
                ),
                model_layer("weight.v1.tar+zstd", zst(tar(("g" * 120, WEIGHTS), kind=tarfile.GNU_FORMAT)), "g" * 120),
            ),
            {"d" * 100 + "/é/README.md": DOCS, "g" * 120: WEIGHTS},
        ),
        Sample(
            "cnai-before-it-was-renamed",
            modelpack(
                Blob("application/vnd.cnai.model.weight.v1.tar", single("a/model.bin"), {CNAI_PATH: "a/model.bin"}),
                Blob("application/vnd.cnai.model.doc.v1.raw", DOCS, {CNAI_METADATA: metadata("README.md")}),
                prefix="cnai",
            ),
            {"a/model.bin": WEIGHTS, "README.md": DOCS},
        ),
        Sample(
            "image-layers-that-say-what-they-are-in-the-descriptor",
            Artifact(
                (
                    Blob(
                        IMAGE_LAYER,
                        single("model.bin"),
                        {CNAI_PATH: "model.bin"},
                        {"artifactType": "application/vnd.cnai.model.layer.v1.tar"},
                    ),
                ),
                Blob("application/vnd.unknown.config.v1+json", b"{}"),
            ),
            {"model.bin": WEIGHTS},
        ),
        Sample(
            "aikit",
            modelpack(
                model_layer(
                    "weight.v1.tar+gzip",
                    gz(single("model.safetensors")),
                    "sub/model.safetensors",
                    **{TITLE: "sub/model.safetensors", METADATA: metadata("model.safetensors", files=["x"])},
                ),
                model_layer(
                    "weight.config.v1.tar+gzip",
                    gz(tar(("sub/config.json", CONFIG), ("tokenizer.json", DOCS))),
                    "config",
                    **{TITLE: "config"},
                ),
                config=b"{}",
            ),
            {"sub/model.safetensors": WEIGHTS, "sub/config.json": CONFIG, "tokenizer.json": DOCS},
        ),
        Sample(
            "kitops-with-a-directory-and-the-root-as-paths",
            modelpack(
                model_layer("weight.v1.tar", tar(("models/", None), ("models/a.gguf", WEIGHTS)), "models"),
                model_layer("doc.v1.tar", tar(("docs/", None), ("docs/empty/", None), ("README.md", DOCS)), "."),
            ),
            {"models/a.gguf": WEIGHTS, "docs": None, "docs/empty": None, "README.md": DOCS},
        ),
        Sample(
            "olot",
            modelpack(
                Blob(
                    "application/vnd.cncf.model.weight.v1.tar",
                    tar(("models/", None), ("models/sub/", None), ("models/sub/model.bin", WEIGHTS)),
                    {TITLE: "model.bin"},
                ),
                Blob(
                    "application/vnd.cncf.model.doc.v1.tar+gzip",
                    gz(tar(("models/README.md", DOCS), kind=tarfile.GNU_FORMAT)),
                    {TITLE: "README.md"},
                ),
                config=b'{"descriptor":{},"modelfs":{"type":"layers","diffIds":[]},"config":{}}',
            ),
            {"sub/model.bin": WEIGHTS, "README.md": DOCS},
        ),
        Sample(
            "a-directory-named-models-that-the-publisher-wanted",
            modelpack(model_layer("weight.v1.tar", tar(("models/a.bin", WEIGHTS)), "models")),
            {"models/a.bin": WEIGHTS},
        ),
        Sample(
            "ramalama-with-titles-of-its-local-blobs",
            Artifact(
                (
                    Blob(
                        "application/octet-stream",
                        WEIGHTS,
                        {FILEPATH: "tiny/tiny.gguf", TITLE: "sha256-0123", METADATA: metadata("tiny.gguf")},
                    ),
                    Blob(
                        "text/plain; charset=utf-8",
                        DOCS,
                        {TITLE: "sha256-4567", METADATA: metadata("tiny/README.md", typeflag=48)},
                    ),
                ),
                artifact_type="application/vnd.cncf.model.manifest.v1+json",
            ),
            {"tiny/tiny.gguf": WEIGHTS, "tiny/README.md": DOCS},
        ),
        Sample(
            "docker-with-the-file-type-as-suffix",
            modelpack(model_layer("weight.v1.gguf", WEIGHTS, "model.gguf")),
            {"model.gguf": WEIGHTS},
        ),
        Sample(
            "single-compressed-file",
            modelpack(model_layer("weight.v1.raw+zstd", zst(WEIGHTS), "m/model.bin")),
            {"m/model.bin": WEIGHTS},
        ),
        Sample(
            "types-in-upper-case-with-parameters",
            modelpack(Blob("Application/vnd.CNCF.model.weight.v1.RAW; v=1", WEIGHTS, {FILEPATH: "a.bin"})),
            {"a.bin": WEIGHTS},
        ),
        Sample(
            "the-same-bytes-twice-at-one-path",
            modelpack(
                model_layer("weight.v1.raw", WEIGHTS, "a.bin"),
                model_layer("weight.v1.raw", WEIGHTS, "./a.bin"),
                model_layer("weight.v1.tar", single("a.bin"), "a.bin"),
            ),
            {"a.bin": WEIGHTS},
        ),
        Sample(
            "layers-without-a-name",
            modelpack(
                model_layer("weight.v1.raw", WEIGHTS, "a.bin"),
                model_layer("doc.v1.raw", DOCS),
                Blob("application/vnd.in-toto+json", b"{}"),
                Blob("application/vnd.oci.empty.v1+json", b"{}"),
            ),
            {"a.bin": WEIGHTS},
            warnings=1,
        ),
        Sample(
            "names-that-only-look-like-commands",
            modelpack(
                *(
                    model_layer("weight.v1.raw", name.encode(), name)
                    for name in ("-rf", "~root", "%2e%2e", "$(x)", "lost+found", ".ready", "a b", "…")
                )
            ),
            {name: name.encode() for name in ("-rf", "~root", "%2e%2e", "$(x)", "lost+found", ".ready", "a b", "…")},
        ),
    )
    refused = (
        Refused(
            "entry-above-the-root",
            modelpack(model_layer("weight.v1.tar", single("../x"), "x")),
            "component '\\.\\.'",
        ),
        Refused(
            "M19-two-digests-at-one-path",
            modelpack(model_layer("weight.v1.raw", WEIGHTS, "x"), model_layer("weight.v1.raw", MORE, "./x")),
            "different bytes at 'x'",
        ),
        Refused(
            "M19-file-against-archive",
            modelpack(model_layer("weight.v1.raw", WEIGHTS, "x"), model_layer("weight.v1.tar", single("x", MORE))),
            "different bytes at 'x'",
        ),
        Refused(
            "P4-file-and-directory",
            modelpack(model_layer("weight.v1.raw", WEIGHTS, "x"), model_layer("weight.v1.raw", MORE, "x/y")),
            "both a file and a directory",
        ),
        Refused(
            "P4-file-and-directory-in-an-archive",
            modelpack(model_layer("weight.v1.raw", WEIGHTS, "x"), model_layer("weight.v1.tar", tar(("x/", None)))),
            "both a file and a directory",
        ),
        Refused(
            "P5-composed-and-decomposed",
            modelpack(model_layer("weight.v1.raw", WEIGHTS, "é"), model_layer("weight.v1.tar", single("e\u0301"))),
            "look the same",
        ),
        Refused(
            "P8-whiteout",
            modelpack(model_layer("weight.v1.tar", tar(("a", WEIGHTS), (".wh.b", b"")))),
            "whiteout",
        ),
        Refused(
            "only-directories", modelpack(model_layer("weight.v1.tar", tar(("a/", None)), "a")), "only directories"
        ),
        Refused("nothing-named", modelpack(model_layer("weight.v1.raw", WEIGHTS)), "no model that can be mounted"),
        Refused(
            "unknown-compression", modelpack(model_layer("weight.v1.tar+lz4", WEIGHTS, "a")), "cannot be read; push"
        ),
        Refused(
            "M20-raw-by-content-and-archive-by-type",
            modelpack(model_layer("weight.v1.tar", WEIGHTS, "a")),
            "push the model again",
        ),
        Refused(
            "M20-two-readings-of-one-blob",
            modelpack(
                model_layer("weight.v1.tar+gzip", gz(single("a")), "a"),
                model_layer("weight.v1.raw+gzip", gz(single("a")), "b"),
            ),
            "as tar\\+gzip and as raw\\+gzip",
        ),
    )


class TestFiles(FormatConformance):
    format = Files()
    samples = (
        Sample(
            "files-with-the-type-that-oras-gives-them",
            oras(file("config.json", CONFIG), file("sub/dir/model.bin")),
            {"config.json": CONFIG, "sub/dir/model.bin": WEIGHTS},
        ),
        Sample(
            "files-with-types-of-their-own",
            oras(
                file("config.json", CONFIG, "application/json"),
                file("a.tar.gz", gz(single("x")), "application/x.foo.tar+gzip"),
                file("b", zst(WEIGHTS), f"{IMAGE_LAYER}+zstd"),
                file("c", WEIGHTS, "application/x.foo.raw+gzip"),
            ),
            {"config.json": CONFIG, "a.tar.gz": gz(single("x")), "b": zst(WEIGHTS), "c": WEIGHTS},
        ),
        Sample(
            "one-blob-under-two-titles",
            oras(file("a/model.bin"), file("b/model.bin"), file("config.json", CONFIG)),
            {"a/model.bin": WEIGHTS, "b/model.bin": WEIGHTS, "config.json": CONFIG},
        ),
        Sample(
            "directory",
            oras(
                file("config.json", CONFIG),
                directory("tok", ("tok/", None), ("tok/a.json", DOCS), ("tok/sub/", None), ("tok/sub/b", WEIGHTS)),
            ),
            {"config.json": CONFIG, "tok/a.json": DOCS, "tok/sub/b": WEIGHTS},
        ),
        Sample(
            "directory-with-a-type-of-its-own",
            oras(directory("tok", ("tok/a.json", DOCS), media_type="application/x.tokenizer")),
            {"tok/a.json": DOCS},
        ),
        Sample(
            "the-directory-it-ran-in",
            oras(directory(".", ("./", None), ("a.json", DOCS), ("sub/b", WEIGHTS))),
            {"a.json": DOCS, "sub/b": WEIGHTS},
        ),
        Sample(
            "oras-py-directory-without-a-mark",
            Artifact(
                (
                    file("config.json", CONFIG, "application/vnd.oci.image.layer.v1.tar"),
                    file("tok", gz(tar(("tok/", None), ("tok/a.json", DOCS))), f"{IMAGE_LAYER}+gzip"),
                ),
                Blob("application/vnd.unknown.config.v1+json", b"{}"),
            ),
            {"config.json": CONFIG, "tok/a.json": DOCS},
        ),
        *(
            Sample(
                f"kept-as-it-is-{name}",
                oras(file(name, gz(single("x")), f"{IMAGE_LAYER}+gzip")),
                {name: gz(single("x"))},
            )
            for name in ("model.tar.gz", "model.tgz", "a/Model.TAR", "model.json.gz")
        ),
        Sample(
            "artifact-manifest-of-oci",
            Artifact(
                (file("model.bin"),),
                artifact_type="application/x.model",
                media_type="application/vnd.oci.artifact.manifest.v1+json",
            ),
            {"model.bin": WEIGHTS},
        ),
        Sample(
            "artifact-manifest-of-oras",
            Artifact(
                (file("model.bin"),),
                artifact_type="application/x.model",
                media_type="application/vnd.cncf.oras.artifact.manifest.v1+json",
            ),
            {"model.bin": WEIGHTS},
        ),
        Sample(
            "untyped-with-a-config-of-its-own",
            Artifact((file("model.bin"),), Blob("application/x.config", b"not json")),
            {"model.bin": WEIGHTS},
        ),
        Sample("without-a-config", Artifact((file("model.bin"),), None), {"model.bin": WEIGHTS}),
        Sample(
            "named-files-under-the-config-of-an-image",
            Artifact((file("model.bin"),), Blob(IMAGE_CONFIG, b"{}")),
            {"model.bin": WEIGHTS},
        ),
        Sample(
            "image-layer-with-nothing-but-the-path-annotation",
            Artifact((Blob(IMAGE_LAYER, single("a/model.bin"), {CNAI_PATH: "a/model.bin"}),)),
            {"a/model.bin": WEIGHTS},
        ),
        Sample(
            "omlmd",
            Artifact(
                (
                    file("model.joblib", media_type="application/x-mlmodel"),
                    file("model_metadata.omlmd.json", DOCS, "application/json"),
                    file("model_metadata.omlmd.yaml", DOCS + b"\n", "application/x-yaml"),
                ),
                Blob("application/x-config", b"{}"),
            ),
            {
                "model.joblib": WEIGHTS,
                "model_metadata.omlmd.json": DOCS,
                "model_metadata.omlmd.yaml": DOCS + b"\n",
            },
        ),
        Sample(
            "layers-without-a-title",
            oras(
                file("model.bin"), Blob("application/x.extra", DOCS), Blob("application/vnd.oci.empty.v1+json", b"{}")
            ),
            {"model.bin": WEIGHTS},
            warnings=1,
        ),
    )
    refused = (
        Refused("absolute-title", oras(file("/etc/passwd")), "absolute"),
        Refused("nul", oras(file("a\0b")), "U\\+0000"),
        Refused("dot", oras(file(".")), "component '\\.'"),
        Refused("name-of-256-bytes", oras(file("é" * 128)), "longer than 255 bytes"),
        Refused("M19-one-title-with-two-digests", oras(file("x"), file("./x", MORE)), "different bytes at 'x'"),
        Refused("P4-file-and-directory", oras(file("x"), file("x/y")), "both a file and a directory"),
        Refused(
            "M19-title-and-entry",
            oras(file("tok/a.json"), directory("tok", ("tok/a.json", DOCS))),
            "different bytes at 'tok/a.json'",
        ),
        Refused("nothing-but-the-empty-layer", oras(Blob("application/vnd.oci.empty.v1+json", b"{}")), "no model"),
        Refused("titled-empty-layer", oras(Blob("application/vnd.oci.empty.v1+json", b"{}", {TITLE: "x"})), "no model"),
        Refused("no-titles", oras(Blob("application/x.sbom", b"{}")), "'application/x.model' is no model"),
        Refused("entry-above-the-root", oras(directory("tok", ("../x", DOCS))), "component '\\.\\.'"),
        Refused("entry-beside-its-directory", oras(directory("tok", ("tokens/a", DOCS))), "outside of"),
        Refused("hostile-directory", oras(directory("../tok", ("../tok/a", DOCS))), "component '\\.\\.'"),
        Refused(
            "directory-of-other-content",
            oras(
                Blob(
                    f"{IMAGE_LAYER}+gzip", gz(single("t/a")), {TITLE: "t", UNPACK: "true", UNCOMPRESSED: digest_of(b"")}
                )
            ),
            "decompresses to",
        ),
        Refused(
            "directory-with-a-bad-digest",
            oras(Blob(f"{IMAGE_LAYER}+gzip", gz(single("t/a")), {TITLE: "t", UNPACK: "true", UNCOMPRESSED: "md5:0"})),
            "bad digest of its content",
        ),
        Refused(
            "directory-that-is-no-archive", oras(file("t", WEIGHTS, f"{IMAGE_LAYER}+gzip")), "push the model again"
        ),
    )


@pytest.mark.parametrize(
    ("artifact", "name"),
    [
        pytest.param(
            Artifact(
                (Blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", gz(single("x/Chart.yaml"))),),
                Blob("application/vnd.cncf.helm.config.v1+json", b"{}"),
            ),
            "Helm charts",
            id="helm",
        ),
        pytest.param(
            Artifact((Blob("application/vnd.oci.image.layer.nydus.blob.v1", WEIGHTS),), Blob(IMAGE_CONFIG, b"{}")),
            "Nydus images",
            id="nydus",
        ),
        pytest.param(
            Artifact((Blob(f"{IMAGE_LAYER}+gzip+encrypted", WEIGHTS, {TITLE: "a"}),)),
            "encrypted layers",
            id="encrypted",
        ),
    ],
)
def test_other_kinds_are_refused_by_their_name_with_what_to_do(artifact: Artifact, name: str) -> None:
    with pytest.raises(BadArtifact, match=f"{name} are not supported by this version of modelmount; .+"):
        decide(artifact)


def test_archives_are_what_the_producers_of_the_field_write() -> None:
    """Known answers: the archives that modctl writes of these files."""
    assert hashlib.sha256(single("config.json", CONFIG)).hexdigest() == (
        "792c65e188963e6c5e7c5e1639799f9e2579dd0fb230e8ecdec573a62c74c09a"
    )
    assert hashlib.sha256(single("te/model.safetensors")).hexdigest() == (
        "25f719c034ffe493a84fdabe1c0ff7ea1714a943034d16fc70618765c6bc7c1b"
    )


def test_padding_to_a_record_makes_no_difference(tmp_path: Path) -> None:
    padded = single("a") + bytes(10240 - len(single("a")))
    assert tree(modelpack(model_layer("weight.v1.tar", padded)), tmp_path) == {"a": WEIGHTS}


ALLFILES = gz(tar(("config.json", CONFIG), ("sub/w", WEIGHTS)))


@pytest.mark.parametrize(
    ("title", "content"),
    [
        ("allfiles.tar", tar(("config.json", CONFIG), ("sub/w", WEIGHTS))),
        ("allfiles.tar.gz", ALLFILES),
        ("AllFiles.TGZ", ALLFILES),
        ("allfiles.tar.zst", zst(tar(("config.json", CONFIG), ("sub/w", WEIGHTS)))),
    ],
)
def test_a_whole_model_in_one_archive_is_unpacked_when_asked_for(tmp_path: Path, title: str, content: bytes) -> None:
    """As `aikit` packs generic models."""
    artifact = oras(file(title, content))
    assert tree(artifact, tmp_path) == {title: content}
    (tmp_path / "always").mkdir()
    expected = {"config.json": CONFIG, "sub": None, "sub/w": WEIGHTS}
    assert tree(artifact, tmp_path / "always", Selection(unpack="always")) == expected


def test_never_gives_the_blobs_as_they_are(tmp_path: Path) -> None:
    packed = directory("tok", ("tok/a", WEIGHTS))
    unmarked = file("more", ALLFILES, f"{IMAGE_LAYER}+gzip")
    expected = {"tok": packed.content, "more": ALLFILES}
    assert tree(oras(packed, unmarked), tmp_path, Selection(unpack="never")) == expected


def test_of_archives_what_is_not_selected_is_left_out_though_it_is_pulled(tmp_path: Path) -> None:
    artifact = modelpack(model_layer("weight.v1.tar", tar(("a.bin", WEIGHTS), ("a.json", CONFIG), ("d/", None))))
    assert tree(artifact, tmp_path, Selection(include=("*.json",))) == {"a.json": CONFIG}


@pytest.mark.parametrize(
    ("metadata_of", "pulled"),
    [
        pytest.param(metadata("model.bin", size=8), 0, id="modctl"),
        pytest.param(metadata("sub/model.bin", size=8, typeflag=48), 0, id="ramalama"),
        pytest.param(metadata("model.bin", size=8, files=["a"]), 1, id="aikit"),
        pytest.param(metadata("other", size=8), 1, id="of-another-name"),
        pytest.param(metadata("model.bin", size=8, typeflag=5), 1, id="a-directory"),
        pytest.param(metadata("model.bin", size=1 << 40), 1, id="larger-than-the-archive"),
        pytest.param(metadata("model.bin", size="8"), 1, id="without-a-size"),
        pytest.param("{}", 1, id="without-anything"),
    ],
)
def test_an_archive_of_one_file_is_pulled_only_for_that_file(metadata_of: str, pulled: int) -> None:
    archive = model_layer("weight.v1.tar", single("sub/model.bin"), "sub/model.bin", **{METADATA: metadata_of})
    config = model_layer("weight.config.v1.raw", CONFIG, "config.json")
    assert len(decide(modelpack(archive, config), Selection(include=("*.json",))).layers) == 1 + pulled
    assert len(decide(modelpack(archive, config), Selection(include=("*.bin",))).layers) == 1
