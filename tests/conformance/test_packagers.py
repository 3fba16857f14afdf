"""What KitOps, Docker Model Runner and Ollama push, and hostile variants of it: from the manifest to the tree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelmount.formats.dockermodel import DockerModel
from modelmount.formats.modelkit import ModelKit
from modelmount.formats.ollama import Ollama

from .artifact import FILEPATH, METADATA, TITLE, Artifact, Blob, gz, tar, zst
from .format import FormatConformance, Refused, Sample

CONFIG = b'{"model_type":"llama"}\n'
WEIGHTS = b"WEIGHTS1"
MORE = b"WEIGHTS2"
DOCS = b"# Model\n"

KITOPS = "application/vnd.kitops.modelkit"
DOCKER = "application/vnd.docker.ai"
OLLAMA = "application/vnd.ollama.image"
IMAGE_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def kit(*layers: Blob, kitfile: Mapping[str, Any] | bytes = b"{}", typed: bool = True) -> Artifact:
    content = kitfile if isinstance(kitfile, bytes) else json.dumps({"manifestVersion": "1.0.0", **kitfile}).encode()
    artifact_type = f"{KITOPS}.manifest.v1+json" if typed else None
    return Artifact(layers, Blob(f"{KITOPS}.config.v1+json", content), artifact_type)


def part(kind: str, content: bytes, path: str | None = None) -> Blob:
    return Blob(f"{KITOPS}.{kind}", content, {} if path is None else {FILEPATH: path})


def entry(path: str, blob: Blob, **more: object) -> dict[str, object]:
    return {"path": path, "digest": blob.digest, "diffId": blob.digest, **more}


TAR_OF_MODEL = part("model.v1.tar", tar(("models/", None), ("models/a.gguf", WEIGHTS)))
RAW_MODEL = part("model.v1.raw", WEIGHTS)
RAW_TWIN = part("modelpart.v1.raw", WEIGHTS)
RAW_DOCS = part("docs.v1.raw+gzip", gz(DOCS))


class TestModelKit(FormatConformance):
    format = ModelKit()
    samples = (
        Sample(
            "kitops-tar",
            kit(
                TAR_OF_MODEL,
                part("code.v1.tar+gzip", gz(tar(("src/", None), ("src/run.py", CONFIG)))),
                part("docs.v1.tar+zstd", zst(tar(("README.md", DOCS)))),
                kitfile={
                    "package": {"name": "t"},
                    "model": entry("models/a.gguf", TAR_OF_MODEL),
                    "code": [{"path": "src", "digest": "sha256:0"}],
                    "docs": [{"path": "README.md", "digest": "sha256:1"}],
                },
            ),
            {"models/a.gguf": WEIGHTS, "src/run.py": CONFIG, "README.md": DOCS},
        ),
        Sample(
            "kitops-with-the-path-on-the-layer",
            kit(part("model.v1.tar", tar(("model.gguf", WEIGHTS)), "model.gguf"), kitfile=b"not json"),
            {"model.gguf": WEIGHTS},
        ),
        Sample(
            "kitops-before-entries-were-named-from-the-root",
            kit(
                part("model.v1.tar", tar(("a.gguf", WEIGHTS))),
                part("modelpart.v1.tar", tar(("tok/", None), ("tok/a.json", CONFIG))),
                part("code.v1.tar", tar(("run.py", CONFIG))),
                part("datasets.v1.tar", tar(("d.csv", MORE))),
                part("docs.v1.tar+gzip", gz(tar(("README.md", DOCS)))),
                kitfile={
                    "model": {"path": "./models/a.gguf", "parts": [{"path": "parts/tok/"}]},
                    "code": [{"path": "."}],
                    "datasets": [{"path": "", "remotePath": "s3://bucket/far.csv"}, {"path": "./data/d.csv"}],
                    "docs": [{"path": "README.md"}],
                },
                typed=False,
            ),
            {
                "models/a.gguf": WEIGHTS,
                "parts/tok/a.json": CONFIG,
                "run.py": CONFIG,
                "data/d.csv": MORE,
                "README.md": DOCS,
            },
            warnings=1,
        ),
        Sample(
            "kitops-raw",
            kit(
                RAW_MODEL,
                RAW_TWIN,
                RAW_DOCS,
                part("code.v1.raw+zstd", zst(CONFIG), "prompts/p.txt"),
                part("mcpb.v1.raw", MORE, "server.mcpb"),
                kitfile={
                    "model": entry("a.gguf", RAW_MODEL, parts=[entry("b/twin.gguf", RAW_TWIN)]),
                    "docs": [entry("README.md", RAW_DOCS)],
                    "prompts": [{"path": "prompts/p.txt", "digest": part("", zst(CONFIG)).digest}],
                    "mcpServers": [{"path": "server.mcpb", "digest": part("", MORE).digest}],
                },
            ),
            {
                "a.gguf": WEIGHTS,
                "b/twin.gguf": WEIGHTS,
                "README.md": DOCS,
                "prompts/p.txt": CONFIG,
                "server.mcpb": MORE,
            },
        ),
        Sample(
            "kitops-layers-without-a-name",
            kit(TAR_OF_MODEL, part("docs.v1.raw", DOCS), Blob("application/vnd.oci.empty.v1+json", b"{}")),
            {"models/a.gguf": WEIGHTS},
            warnings=1,
        ),
        *(
            Sample(
                f"kitops-kitfile-of-{name}",
                kit(part("model.v1.tar", tar(("a.gguf", WEIGHTS))), kitfile=content),
                {"a.gguf": WEIGHTS},
            )
            for name, content in {
                "junk": b'{"model":{"parts":7,"path":["a"]},"code":"x","docs":[1,null,{"path":3}]}',
                "another-shape": b"[]",
            }.items()
        ),
    )
    refused = (
        Refused(
            "a-model-in-another-kit",
            kit(
                part("code.v1.tar", tar(("run.py", CONFIG))),
                kitfile={"model": {"path": "registry.example.com/kits/base:v1"}, "code": [{"path": "run.py"}]},
            ),
            "builds on another one .*'registry.example.com/kits/base:v1'",
        ),
        Refused(
            "P1-path-of-a-part-above-the-root",
            kit(part("model.v1.tar", tar(("a", WEIGHTS))), kitfile={"model": {"path": "../../models/a"}}),
            "component '\\.\\.'",
        ),
        Refused(
            "P1-raw-path-above-the-root",
            kit(RAW_MODEL, kitfile={"model": entry("../a", RAW_MODEL)}),
            "component '\\.\\.'",
        ),
        Refused("T1-entry-above-the-root", kit(part("model.v1.tar", tar(("../a", WEIGHTS)))), "component '\\.\\.'"),
        Refused(
            "M19-two-layers-at-one-path",
            kit(part("model.v1.raw", WEIGHTS, "a"), part("docs.v1.tar", tar(("a", MORE)))),
            "different bytes at 'a'",
        ),
        Refused("nothing-named", kit(part("docs.v1.raw", DOCS)), "no model that can be mounted"),
    )


def docker(version: str, *layers: Blob) -> Artifact:
    return Artifact(layers, Blob(f"{DOCKER}.model.config.v{version}+json", b'{"config":{"format":"gguf"}}'))


def docker_layer(kind: str, content: bytes, path: str | None = None, title: str | None = None) -> Blob:
    annotations = {} if path is None else {FILEPATH: path, METADATA: json.dumps({"name": path, "typeflag": 0})}
    return Blob(f"{DOCKER}.{kind}", content, annotations | ({} if title is None else {TITLE: title}))


class TestDockerModel(FormatConformance):
    format = DockerModel()
    samples = (
        Sample(
            "docker-gguf",
            docker("0.1", docker_layer("gguf.v3", WEIGHTS), docker_layer("license", DOCS)),
            {"model.gguf": WEIGHTS},
        ),
        Sample(
            "docker-gguf-in-parts-with-all-the-rest",
            docker(
                "0.1",
                docker_layer("gguf.v3", WEIGHTS, "ignored-00001-of-00002.gguf"),
                docker_layer("gguf.v3", MORE),
                docker_layer("mmproj", CONFIG),
                docker_layer("chat.template.jinja", DOCS),
                docker_layer("gguf.v3.lora", b"lora"),
                docker_layer("model.file", b"file", "extra/notes.txt"),
            ),
            {
                "model-00001-of-00002.gguf": WEIGHTS,
                "model-00002-of-00002.gguf": MORE,
                "model.mmproj": CONFIG,
                "template.jinja": DOCS,
                "adapter.gguf": b"lora",
                "extra/notes.txt": b"file",
            },
        ),
        Sample(
            "docker-safetensors-with-the-config-in-a-tar",
            docker(
                "0.1",
                docker_layer("safetensors", WEIGHTS),
                docker_layer("safetensors", MORE),
                docker_layer("vllm.config.tar", tar(("config.json", CONFIG), ("tokenizer/", None))),
                docker_layer("dir.tar", tar(("onnx/", None), ("onnx/README.md", DOCS))),
            ),
            {
                "model-00001-of-00002.safetensors": WEIGHTS,
                "model-00002-of-00002.safetensors": MORE,
                "config.json": CONFIG,
                "tokenizer": None,
                "onnx/README.md": DOCS,
            },
        ),
        Sample(
            "docker-with-a-path-on-each-layer",
            docker(
                "0.2",
                docker_layer("safetensors", WEIGHTS, "unet/model.safetensors"),
                docker_layer("model.file", CONFIG, "unet/config.json"),
                docker_layer("gguf.v3", MORE, "gguf/tiny.gguf"),
                docker_layer("license", DOCS, "LICENSE"),
            ),
            {
                "unet/model.safetensors": WEIGHTS,
                "unet/config.json": CONFIG,
                "gguf/tiny.gguf": MORE,
                "LICENSE": DOCS,
            },
        ),
        Sample(
            "docker-with-layer-types-of-modelpack",
            docker("0.2", Blob("application/vnd.cncf.model.weight.v1.gguf", WEIGHTS)),
            {"model.gguf": WEIGHTS},
        ),
        Sample("docker-dduf", docker("0.1", docker_layer("dduf", WEIGHTS)), {"model.dduf": WEIGHTS}),
        Sample(
            "docker-file-without-a-path",
            docker("0.1", docker_layer("gguf.v3", WEIGHTS), docker_layer("model.file", DOCS)),
            {"model.gguf": WEIGHTS},
            warnings=1,
        ),
    )
    refused = (
        Refused("P1-path-above-the-root", docker("0.2", docker_layer("gguf.v3", WEIGHTS, "../../x")), "'\\.\\.'"),
        Refused(
            "M19-two-projectors",
            docker("0.1", docker_layer("mmproj", WEIGHTS), docker_layer("gguf.v3.mmproj", MORE)),
            "different bytes at 'model.mmproj'",
        ),
        Refused("nothing-but-a-license", docker("0.1", docker_layer("license", DOCS)), "no model that can be mounted"),
    )


def ollama(
    *layers: Blob, config: bytes = b'{"model_format":"gguf","os":"linux","rootfs":{"type":"layers"}}'
) -> Artifact:
    return Artifact(layers, Blob(IMAGE_CONFIG, config), media_type=DOCKER_MANIFEST)


def ollama_layer(kind: str, content: bytes, **fields: Any) -> Blob:
    return Blob(f"{OLLAMA}.{kind}", content, fields=fields)


OLLAMA_PARTS: Sequence[tuple[str, str]] = (
    ("projector", "mmproj.gguf"),
    ("adapter", "adapter.gguf"),
    ("draft", "draft.gguf"),
    ("template", "template"),
    ("system", "system"),
    ("prompt", "prompt"),
    ("params", "params.json"),
    ("messages", "messages.json"),
)


class TestOllama(FormatConformance):
    format = Ollama()
    samples = (
        Sample(
            "ollama",
            ollama(
                ollama_layer("model", WEIGHTS, **{"from": "/root/.ollama/x"}),
                *(ollama_layer(kind, kind.encode()) for kind, _ in OLLAMA_PARTS),
            ),
            {"model.gguf": WEIGHTS, **{name: kind.encode() for kind, name in OLLAMA_PARTS}},
        ),
        Sample(
            "ollama-several-of-a-kind",
            ollama(
                ollama_layer("model", WEIGHTS),
                ollama_layer("license", DOCS),
                ollama_layer("license", MORE),
                ollama_layer("license", DOCS),
                ollama_layer("adapter", CONFIG),
                ollama_layer("adapter", MORE),
            ),
            {"model.gguf": WEIGHTS, "LICENSE": DOCS, "LICENSE.1": MORE, "adapter.gguf": CONFIG, "adapter.1.gguf": MORE},
        ),
        Sample(
            "ollama-model-in-parts",
            ollama(ollama_layer("model", WEIGHTS), ollama_layer("model", MORE)),
            {"model-00001-of-00002.gguf": WEIGHTS, "model-00002-of-00002.gguf": MORE},
        ),
        Sample(
            "ollama-safetensors",
            ollama(
                ollama_layer("model", WEIGHTS),
                ollama_layer("json", CONFIG, name="config.json"),
                ollama_layer("json; charset=utf-8", DOCS, name="text_encoder/config.json"),
                config=b'{"model_format":"safetensors"}',
            ),
            {"model.safetensors": WEIGHTS, "config.json": CONFIG, "text_encoder/config.json": DOCS},
        ),
        Sample(
            "ollama-with-what-nobody-knows",
            ollama(ollama_layer("model", WEIGHTS), ollama_layer("embed", DOCS), config=b"\xff"),
            {"model.gguf": WEIGHTS},
            warnings=1,
        ),
    )
    refused = (
        Refused("tensors", ollama(ollama_layer("tensor", WEIGHTS, name="a.weight")), "one layer for each tensor"),
        Refused(
            "P1-name-above-the-root",
            ollama(ollama_layer("model", WEIGHTS), ollama_layer("json", CONFIG, name="../x")),
            "component '\\.\\.'",
        ),
        Refused(
            "M19-two-files-of-one-name",
            ollama(ollama_layer("json", CONFIG, name="a"), ollama_layer("json", DOCS, name="a")),
            "different bytes at 'a'",
        ),
        Refused("nothing-known", ollama(ollama_layer("embed", WEIGHTS)), "no model that can be mounted"),
    )
