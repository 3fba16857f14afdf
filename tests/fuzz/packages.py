"""What is fuzzed of `push` and `import`: headers of weights that somebody downloaded, and image layouts in tars."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelmount.errors import BadArtifact, IntegrityError, InvalidRequest, NotFound, Precondition
from modelmount.oci.digest import Digest
from modelmount.packaging import description
from modelmount.packaging.files import File
from modelmount.sources.ocilayout import Layout
from tests.fakes import push
from tests.unit.packaging.samples import TINY_GGUF, gguf, safetensors, text

_MODEL = json.dumps({"model_type": "llama", "dtype": "bfloat16", "quantization_config": {"quant_method": "awq"}})
_MOST_WORDS = 4096


def read_headers(data: bytes) -> None:
    """A file that calls itself safetensors, GGUF and a config. What it says is of bounded length; it raises nothing."""

    @contextmanager
    def opened() -> Iterator[io.BytesIO]:
        yield io.BytesIO(data)

    for name in ("model.safetensors", "model.gguf", "config.json"):
        found = description.describe([File(name, len(data), opened)])
        assert len(found.parameters) < 100
        assert len(f"{found}") < _MOST_WORDS


def headers() -> tuple[bytes, ...]:
    """Good ones, and shapes that no number is made for."""
    infinite = b'{"a":{"dtype":"F32","shape":[1e999]}}'
    return (
        safetensors({"a": ("BF16", (4, 5)), "b": ("F32", ())}),
        safetensors({"a": ("F32", (10**200, 10**200))}),
        len(infinite).to_bytes(8, "little") + infinite,
        TINY_GGUF,
        gguf([("general.name", 8, text("x" * 5000))], [[(1 << 64) - 1] * 8]),
        _MODEL.encode(),
    )


def read_layout(data: bytes) -> None:
    """A tar that calls itself an image layout. What is read of it lies in it, and has the digest by which it was asked
    for.
    """
    with tempfile.TemporaryDirectory(prefix="mm-fuzz-") as name:
        path = Path(name) / "model.tar"
        path.write_bytes(data)
        try:
            layout = Layout(path)
            entry = layout.choose(None)
            assert (
                str(Digest.of(layout.document(entry.digest))) == str(entry.digest) or entry.digest.algorithm != "sha256"
            )
            region = layout.region(entry.digest)
        except (BadArtifact, IntegrityError, InvalidRequest, NotFound, Precondition) as e:
            assert e.message.isprintable()
            return
        assert region.path == path
        assert 0 <= region.start <= region.start + region.size <= len(data)


def layouts() -> tuple[bytes, ...]:
    """One in each dialect of tar."""
    document = b"{}"
    digest = Digest.of(document)
    entry = {"mediaType": push.MANIFEST, "digest": str(digest), "size": len(document)}
    annotated = {**entry, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "mediaType": push.INDEX, "manifests": [annotated]}).encode(),
        f"blobs/sha256/{digest.hex}": document,
    }
    return tuple(_packed(files, dialect) for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))


def _packed(files: dict[str, bytes], dialect: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=dialect) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5 if dialect == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()
