"""What is made of files: manifests by the letter, and what the driver's own readers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelmount import formats
from modelmount.errors import InvalidRequest
from modelmount.formats.base import Encoding
from modelmount.oci import manifest as manifests
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.packaging import modelpack, oras
from modelmount.packaging.base import Package, Packager, Part
from modelmount.packaging.description import Description, describe
from tests.unit.packaging.samples import TINY_GGUF, files, safetensors

PARTS = (
    Part("config.json", 3, Digest.of(b"{ }")),
    Part("empty", 0, Digest.of(b"")),
    Part("sub/model.safetensors", 7, Digest.of(b"weights")),
)
PACKAGERS = pytest.mark.parametrize("package", [modelpack.package, oras.package])


def parsed(package: Package) -> Manifest:
    found = manifests.parse(package.manifest)
    assert isinstance(found, Manifest)
    return found


@PACKAGERS
def test_what_is_made_is_read_as_the_same_files(package: Packager) -> None:
    made = package(PARTS, Description(), {"org.opencontainers.image.version": "1"})
    manifest = parsed(made)
    assert manifest.config is not None
    assert manifest.config.digest == Digest.of(made.config)
    layout = formats.decide(manifest, made.config)
    assert [(each.path, each.encoding, each.descriptor.digest) for each in layout.layers] == [
        (part.path, Encoding.RAW, part.digest) for part in PARTS
    ]
    assert layout.warnings == ()
    assert manifest.annotations == {"org.opencontainers.image.version": "1"}


@PACKAGERS
def test_the_same_files_are_the_same_digest(package: Packager) -> None:
    one, two = (package(PARTS, Description(), {"b": "2", "a": "1"}) for _ in range(2))
    assert one.digest == two.digest == package(PARTS, Description(), {"a": "1", "b": "2"}).digest
    assert one.digest != package(PARTS[:2], Description(), {"b": "2", "a": "1"}).digest


@PACKAGERS
def test_a_manifest_that_no_registry_takes_is_not_made(package: Packager) -> None:
    many = [Part(f"{n:05}", 1, Digest.of(b"x")) for n in range(10_001)]
    with pytest.raises(InvalidRequest, match="10001 files are too many for one artifact"):
        package(many, Description(), {})


def test_modelpack_by_the_letter() -> None:
    made = modelpack.package(PARTS[:1], Description(family="llama", parameters="8b", licenses=("mit",)), {})
    digest = str(PARTS[0].digest)
    config = {
        "descriptor": {"family": "llama", "licenses": ["mit"]},
        "modelfs": {"type": "layers", "diffIds": [digest]},
        "config": {"paramSize": "8b"},
    }
    assert json.loads(made.config) == config
    metadata = '{"name":"config.json","mode":420,"uid":0,"gid":0,"size":3,"mtime":"1970-01-01T00:00:00Z","typeflag":0}'
    assert json.loads(made.manifest) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": str(Digest.of(made.config)),
            "size": len(made.config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.cncf.model.weight.config.v1.raw",
                "digest": digest,
                "size": 3,
                "annotations": {
                    "org.cncf.model.filepath": "config.json",
                    "org.cncf.model.file.metadata+json": metadata,
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("path", "size", "kind"),
    [
        ("config.json", 1, "weight.config"),
        ("tokenizer.model", 1, "weight.config"),
        ("sub/merges.txt", 1, "weight.config"),
        ("model-00001-of-00002.safetensors", 1, "weight"),
        ("Q4.GGUF", 1, "weight"),
        ("README.md", 1, "doc"),
        ("LICENSE", 1, "doc"),
        ("modeling_x.py", 1, "code"),
        ("strange", 1, "code"),
        ("strange", 128 << 20, "weight"),
    ],
)
def test_each_file_has_the_kind_that_modctl_gives_it(path: str, size: int, kind: str) -> None:
    layer: Any = parsed(modelpack.package([Part(path, size, Digest.of(b"x"))], Description(), {})).layers[0]
    assert layer.media_type == f"application/vnd.cncf.model.{kind}.v1.raw"


def test_a_transformers_model_describes_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "transformers_version": "4.40",
                "torch_dtype": "bfloat16",
                "quantization_config": {"quant_method": "awq"},
            }
        )
    )
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(
            safetensors({"w": ("BF16", [1000, 4_000_000])})
        )
    (tmp_path / "original").mkdir()
    (tmp_path / "original/again.safetensors").write_bytes(safetensors({"w": ("F32", [1 << 40])}))
    assert describe(files(tmp_path)) == Description(
        family="llama",
        architecture="transformer",
        format="safetensors",
        parameters="8b",
        precision="bfloat16",
        quantization="awq",
    )


def test_a_gguf_file_describes_itself(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(TINY_GGUF)
    assert describe(files(tmp_path)) == Description(
        name="Tiny Llama",
        family="llama",
        format="gguf",
        parameters="2m",
        quantization="Q4_K_M",
        licenses=("apache-2.0",),
    )


def test_of_several_gguf_models_nothing_is_said_in_common(tmp_path: Path) -> None:
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / name).write_bytes(TINY_GGUF)
    assert describe(files(tmp_path)) == Description(format="gguf")


@pytest.mark.parametrize("config", ["[]", "{", '{"model_type": 7, "quantization_config": []}', '"x"'])
def test_what_cannot_be_read_says_nothing_and_is_no_error(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"not what its name says")
    assert describe(files(tmp_path)) == Description(format="safetensors")
