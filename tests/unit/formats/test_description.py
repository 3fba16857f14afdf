"""What artifacts say of their models, in each format's own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmount import formats
from modelmount.oci import manifest as manifests
from modelmount.oci.manifest import Manifest
from tests.unit.oci.documents import descriptor, document

TITLED = descriptor(b"w", "application/x", annotations={"org.opencontainers.image.title": "model.bin"})


def described(config_type: str, config: dict[str, Any], **more: Any) -> dict[str, str]:
    content = json.dumps(config).encode()
    fields = {"config": descriptor(content, config_type), "layers": [TITLED], **more}
    found = manifests.parse(json.dumps(document(**fields)).encode())
    assert isinstance(found, Manifest)
    return formats.describe(found, content)


@pytest.mark.parametrize(
    ("config_type", "config", "expected"),
    [
        pytest.param(
            "application/vnd.cncf.model.config.v1+json",
            {
                "descriptor": {"name": "llama3-8b", "licenses": ["MIT", "Apache-2.0"], "vendor": ""},
                "config": {"architecture": "transformer", "paramSize": "8b", "capabilities": {"inputTypes": ["text"]}},
            },
            {
                "name": "llama3-8b",
                "licenses": "MIT, Apache-2.0",
                "architecture": "transformer",
                "parameters": "8b",
                "inputs": "text",
            },
            id="ModelPack",
        ),
        pytest.param(
            "application/vnd.cncf.model.config.v1+json",
            {
                "descriptor": {
                    "sourceURL": "https://example.com/llama",
                    "docURL": "https://example.com/doc",
                    "datasetsURL": ["https://example.com/a", "https://example.com/b"],
                    "revision": "a1b2",
                },
                "config": {
                    "capabilities": {
                        "reasoning": True,
                        "toolUsage": False,
                        "knowledgeCutoff": "2025-01-01T00:00:00Z",
                    }
                },
            },
            {
                "source": "https://example.com/llama",
                "documentation": "https://example.com/doc",
                "datasets": "https://example.com/a, https://example.com/b",
                "revision": "a1b2",
                "reasoning": "yes",
                "tools": "no",
                "knowledge": "2025-01-01T00:00:00Z",
            },
            id="ModelPack: where it comes from and what it can do",
        ),
        pytest.param(
            "application/vnd.kitops.modelkit.config.v1+json",
            {"package": {"name": "kit", "authors": ["a", "b"]}, "model": {"framework": "pytorch"}},
            {"name": "kit", "authors": "a, b", "framework": "pytorch"},
            id="KitOps",
        ),
        pytest.param(
            "application/vnd.docker.ai.model.config.v0.1+json",
            {"config": {"format": "gguf", "parameters": "361.82 M", "quantization": "Q4_K_M", "context_size": 8192}},
            {"weights": "gguf", "parameters": "361.82 M", "quantization": "Q4_K_M", "context": "8192"},
            id="Docker",
        ),
        pytest.param("application/x", {"name": "unknown"}, {}, id="ORAS"),
    ],
)
def test_each_format_knows_where_its_config_says_what(
    config_type: str, config: dict[str, Any], expected: dict[str, str]
) -> None:
    assert described(config_type, config) == expected


def test_annotations_fill_in_what_the_config_does_not_say() -> None:
    prefix = "org.opencontainers.image."
    annotations = {f"{prefix}licenses": "GPL", f"{prefix}source": "https://example.com", f"{prefix}title": "no fact"}
    config = {"descriptor": {"licenses": ["MIT"]}}
    found = described("application/vnd.cncf.model.config.v1+json", config, annotations=annotations)
    assert found == {"licenses": "MIT", "source": "https://example.com"}
