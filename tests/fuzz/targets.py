"""What is fuzzed: every parser of strangers' bytes, each with its seeds and the errors that it may raise.

A target takes bytes and returns; whatever else it raises than the errors that its contract names is a finding, and so
is an assertion here: what is accepted must be what the parser's contract says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding as SpkiEncoding
from cryptography.hazmat.primitives.serialization import PublicFormat

from modelmount import formats, policy
from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import Choice, paths
from modelmount.formats.base import Encoding
from modelmount.formats.patterns import Patterns
from modelmount.oci import challenge, errcode, manifest, referrers
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Index
from modelmount.oci.reference import Reference
from modelmount.registry import ranges
from modelmount.registry.credentials import dockerconfig
from modelmount.signatures import checks
from modelmount.signatures.messages import Key, Kind, Piece, Task
from modelmount.snapshots import scatter, unpack
from modelmount.transport.retry import read_retry_after
from modelmount.transport.url import Url
from modelmount.volumes import choices
from tests.fakes import push, signing
from tests.fakes.archives import COMPRESS, END, directory, extended, file, header, long_name, record
from tests.fakes.evil_archives import ROWS
from tests.fuzz import packages, wire
from tests.unit.snapshots.archives import Directory, headers_of

LIMITS = unpack.Limits(bytes=1 << 20, entries=100)


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes, `seeds` are good ones and bad ones to begin with, `words` what the language is made of."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


def read_manifest(data: bytes) -> None:
    """Manifests and indexes, and what every format makes of them; the rest of `data` behind a NUL is the config."""
    document, _, config = data.partition(b"\0")
    try:
        found = manifest.parse(document)
        if isinstance(found, Index):
            assert 0 < len(found.manifests) <= manifest.MAX_ENTRIES
            assert formats.choose(found, "amd64") in found.manifests
            return
        assert found.layers
        formats.reads_config(found)
        layout = formats.decide(found, config)
        formats.describe(found, config)
    except (BadArtifact, InvalidRequest) as e:
        assert e.message.isprintable()
        return
    for layer in layout.layers:
        assert layer.descriptor in found.layers
        if layer.path is not None and layer.encoding is Encoding.RAW:
            assert paths.check(layer.path) == layer.path


def read_reference(data: bytes) -> None:
    """References: what is accepted is ASCII and a fixed point."""
    try:
        found = Reference.parse(_text(data))
    except InvalidRequest as e:
        assert e.message.isprintable()
        return
    assert str(found).isascii()
    assert Reference.parse(str(found)) == found


def read_path(data: bytes) -> None:
    """Names: what is accepted stays inside."""
    try:
        found = paths.check(_text(data))
    except BadArtifact as e:
        assert e.message.isprintable()
        return
    assert paths.check(found) == found
    assert not {"", ".", ".."} & set(found.split("/"))
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in found)
    with contextlib.suppress(BadArtifact):
        paths.collisions([found, *_text(data[:50]).split("/")[:3]])


def unpack_as(encoding: Encoding) -> Callable[[bytes], None]:
    """An archive, unpacked into a directory of its own; an uncompressed one scattered too, with the same verdict."""

    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="mm-fuzz-") as name:
            target = Directory(Path(name))
            verdict = ""
            try:
                members = target.unpack(data, encoding, LIMITS)
            except BadArtifact as e:
                verdict = e.message
                members = []
            assert target.is_contained()
            assert len(members) <= LIMITS.entries
            if not encoding.is_rootfs:
                assert all(paths.check(member.path) == member.path for member in members if member.path)
            if encoding in {Encoding.TAR, Encoding.ROOTFS_TAR} and data:
                assert _is_refused(data, Path(name) / "layer", encoding) == bool(verdict), verdict

    return run


def _is_refused(data: bytes, layer: Path, encoding: Encoding) -> bool:
    try:
        members = headers_of(data, LIMITS, rootfs=encoding.is_rootfs)
    except BadArtifact:
        return True
    scatter.build(data, layer, members, LIMITS)
    return False


def read_answers(data: bytes) -> None:
    """What stands in a registry's headers and error bodies."""
    text = _text(data)
    for each in challenge.parse([text]):
        assert each.scheme
    assert all(str(error).isprintable() for error in errcode.parse(data))
    ranges.read(text)
    wait = read_retry_after(text, 0.0)
    assert wait is None or 0 <= wait <= 600
    with contextlib.suppress(ValueError):
        Url.parse(text)
    with contextlib.suppress(InvalidRequest):
        assert str(Digest.parse(text)) == text


def read_attributes(data: bytes) -> None:
    """What a pod's author writes, by key and value in lines."""
    lines = _text(data).split("\x01")
    attributes = dict(zip(choices.KEYS, lines, strict=False))
    try:
        choices.selection(attributes)
        assert isinstance(choices.choice(attributes), Choice)
    except InvalidRequest as e:
        assert e.message.isprintable()
    with contextlib.suppress(ValueError):
        Patterns(lines[:5]).matches("a/b/c.bin")


class _CalledError(Exception):
    """A pickle got something called."""


class _Trap:
    def __new__(cls, *arguments: object, **named: object) -> _Trap:
        raise _CalledError


class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if re.fullmatch(r"[\w.]+", module) and re.fullmatch(r"[\w.]+", name):
            return _Trap
        raise pickle.UnpicklingError


def read_kind(data: bytes) -> None:
    """A file's first bytes: what gets something called when it is unpickled is a pickle, whatever it looks like."""
    for size in (len(data), 3 * len(data)):
        for name in ("model.safetensors", "config.json", "model.onnx"):
            assert policy.by_content(name, data, size) in get_args(policy.Kind)
    if b"\x96" in data:  # Python's own unpickler takes all the memory that BYTEARRAY8 asks for
        return
    try:
        _Unpickler(io.BytesIO(data), encoding="utf-8").load()
    except _CalledError:
        for head in (data, data[:-1]):
            assert policy.by_content("model.safetensors", head, len(data)) in {"pickle", "code"}
    except Exception:  # noqa: BLE001 - bytes that are no pickle fail in many ways
        return


def read_secret(data: bytes) -> None:
    """A Secret's docker configuration."""
    text, repository = data.decode(errors="replace"), Reference.parse("h.io/a").repository
    for read in (dockerconfig.find, dockerconfig.helper):
        try:
            read(text, repository, "a Secret")
        except InvalidRequest as e:
            assert e.message.isprintable()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _manifests() -> Iterator[bytes]:
    blob = {"digest": f"sha256:{'ab' * 32}", "size": 3}
    kinds: Mapping[str, tuple[str, str, bytes]] = {
        "modelpack": (push.MODELPACK_CONFIG, "application/vnd.cncf.model.weight.v1.raw", b"{}"),
        "archive": (push.MODELPACK_CONFIG, "application/vnd.cncf.model.weight.v1.tar+zstd", b"{}"),
        "kit": (
            "application/vnd.kitops.modelkit.config.v1+json",
            "application/vnd.kitops.modelkit.model.v1.tar",
            b'{"model":{"path":"a/b","parts":[{"path":"c"}]},"datasets":[{"remotePath":"s3://x"}]}',
        ),
        "docker": ("application/vnd.docker.ai.model.config.v0.1+json", "application/vnd.docker.ai.gguf.v3", b"{}"),
        "ollama": (push.DOCKER_CONFIG, "application/vnd.ollama.image.model", b'{"model_format":"safetensors"}'),
        "image": (
            push.DOCKER_CONFIG,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            f'{{"rootfs":{{"diff_ids":["sha256:{"cd" * 32}"]}}}}'.encode(),
        ),
        "oras": (push.EMPTY, push.ORAS_FILE, b"{}"),
    }
    for config, layer, content in kinds.values():
        annotations = {push.TITLE: "a/model.bin", push.FILEPATH: "model.bin", push.METADATA: '{"name":"x","size":1}'}
        for extra in ({"annotations": annotations}, {"annotations": {push.TITLE: "d", push.UNPACK: "true"}}, {}):
            document = {
                "schemaVersion": 2,
                "mediaType": push.MANIFEST,
                "config": {"mediaType": config, **blob},
                "layers": [{"mediaType": layer, **blob, **extra}],
            }
            yield json.dumps(document).encode() + b"\0" + content
    entry = {"mediaType": push.MANIFEST, **blob, "platform": {"os": "linux", "architecture": "amd64"}}
    index = {"schemaVersion": 2, "mediaType": push.INDEX, "manifests": [entry, {**entry, "artifactType": "x"}]}
    yield json.dumps(index).encode()


def _archives(encoding: Encoding) -> tuple[bytes, ...]:
    good = (
        directory(b"d/")
        + file(b"d/a")
        + long_name(b"n" * 150)
        + file(b"x")
        + extended(record(b"path", b"p"))
        + file(b"y")
    )
    links = header(b"l", kind=b"2", link=b"../d") + header(b"h", kind=b"1", link=b"d/a") + file(b"d/.wh.x", b"")
    plain = (good + END, good + links + END, *(row[1][:8192] for row in ROWS[::4]))
    return tuple(COMPRESS[encoding](data) for data in plain)


TAR_WORDS = (
    b"ustar\x0000",
    b"ustar  \0",
    b"../",
    b"L",
    b"x",
    b"g",
    b"K",
    b"\x80",
    b"\xff",
    b"00000000012\0",
    b"path=",
    b"size=",
)
JSON_WORDS = (
    b'"layers"', b'"manifests"', b'"config"', b'"size"', b'"digest"', b'"annotations"', b'"mediaType"', b'"data"',
    b'"platform"', b'"rootfs"', b'"diff_ids"', b'"name"', b"[]", b"{}", b"null", b"true", b"-1", b"1e999", b'"../x"',
    b'"\\ud800"', b'".tar"',
)  # fmt: skip

SIGNED = "sha256:" + hashlib.sha256(b"a manifest").hexdigest()
SIGNER = signing.Key(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
"""Signs the same in every run."""


def read_evidence(data: bytes) -> None:
    """Signatures, attestations and lists of them: none is good but what SIGNER signed, which is about SIGNED."""
    with contextlib.suppress(BadArtifact):
        referrers.parse(data)
    payload, _, signature = data.partition(b"\0")
    kinds: tuple[Kind, ...] = ("simple", "envelope", "bundle", "report")
    pieces = [
        Piece(kind, kind, payload, signature.decode("latin-1"), _text(signature), _text(signature)) for kind in kinds
    ]
    der = SIGNER.private.public_key().public_bytes(SpkiEncoding.DER, PublicFormat.SubjectPublicKeyInfo)
    files = [("a", SIGNED)]
    for found in checks.judge(Task(SIGNED, b"a manifest", files, [Key("ours", der, "ours")], [], [], pieces)):
        assert found.problem.isprintable()
        assert not (found.problem and found.signers)
        assert not found.signers or SIGNED in found.subjects
        assert found.form != "report" or not found.signers


def _evidence() -> tuple[bytes, ...]:
    payload, signature = SIGNER.simple(SIGNED, "h.io/a:v1")
    statement = signing.statement(
        SIGNED, signing.VULNERABILITIES, {"metadata": {"scanFinishedOn": "2026-11-25T10:00:00Z"}}
    )
    files = signing.model_statement({"a": b"a manifest"})
    index = {"manifests": [{"mediaType": push.MANIFEST, "digest": SIGNED, "size": 5, "artifactType": signing.BUNDLE}]}
    return (
        payload + b"\0" + signature.encode(),
        json.dumps(SIGNER.envelope(statement)).encode(),
        SIGNER.bundle(signing.statement(SIGNED)),
        SIGNER.bundle(files),
        SIGNER.message_bundle(b"a manifest"),
        b'{"CreatedAt": "2026-11-25T10:00:00.123456789+01:00"}',
        json.dumps(index).encode(),
    )


def _files() -> Iterator[bytes]:
    yield from (pickle.dumps({"a": [1, 2.5, "x", b"y", None, _CalledError("x")]}, protocol) for protocol in range(6))
    yield b"cbuiltins\nprint\n(Vhello\ntR."
    yield b"(I1\nL2L\nF2.5\nS'a'\nibuiltins\nprint\n."
    yield b'\x80\x02X\x04\0\0\0\0{"a0cbuiltins\nprint\n(tR.'
    yield b'\x18\0\0\0\0\0\0\0{"a":{"shape":[1]}}    '
    yield b"\x93NUMPY\x01\x00\x36\0{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"
    yield b"PK\x03\x04" + bytes(22) + b"\x08\0\0\0data.pkl" + b"PK\x05\x06"
    yield file(b"pickle", b"x") + END
    yield b'{"auto_map": {"AutoModel": "a--b.C"}}'


TARGETS: Mapping[str, Target] = {
    "kind": Target(
        read_kind,
        tuple(_files()),
        (b"cos\n", b"R.", b"(t", b"\x80\x04\x95", b"\x93", b"\x8c\x02os", b"\x81", b"b", b"PK\x03\x04"),
    ),
    "manifest": Target(read_manifest, tuple(_manifests()), JSON_WORDS),
    "reference": Target(
        read_reference,
        (
            b"harbor.example.com/llm/a:v1",
            b"[::1]:5000/a@sha256:" + b"ab" * 32,
            b"oci://docker.io/a",
            b"u:p@h.io/a",
            b"127.1/a",
        ),
        (b"sha256:", b"@", b":", b"/", b"..", b"//", b"localhost", b"\xe2\x84\xaa", b"%25"),
    ),
    "path": Target(
        read_path, (b"a/b/c.bin", b"./a", "é/e\u0301".encode(), b".wh.a", b".modelmount"), (b"../", b"/", b"\0", b"\\")
    ),
    "tar": Target(unpack_as(Encoding.TAR), _archives(Encoding.TAR), TAR_WORDS),
    "rootfs": Target(unpack_as(Encoding.ROOTFS_TAR), _archives(Encoding.ROOTFS_TAR), TAR_WORDS),
    "gzip": Target(unpack_as(Encoding.TAR_GZIP), _archives(Encoding.TAR_GZIP), (b"\x1f\x8b\x08", b"\0\0\xff\xff")),
    "zstd": Target(
        unpack_as(Encoding.TAR_ZSTD), _archives(Encoding.TAR_ZSTD), (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
    ),
    "answers": Target(
        read_answers,
        (
            b'Bearer realm="https://a/token",service="b",scope="repository:x:pull"',
            b'{"errors":[{"code":"DENIED","message":"no","detail":{}}]}',
            b"bytes 0-5/10",
            b"Fri, 31 Dec 2099 23:59:59 GMT",
            b"https://u@[::1]:5000/v2/?a=b#c",
        ),
        (b"realm=", b'"', b"\\", b",", b"bytes ", b"*/", b"99999999999"),
    ),
    "wire": Target(wire.read_answer, wire.SEEDS, wire.WORDS),
    "evidence": Target(
        read_evidence,
        _evidence(),
        (
            *JSON_WORDS,
            b"dsseEnvelope",
            b"messageSignature",
            b"signatures",
            b"publicKey",
            b"certificate",
            b"AAAA",
            b"subject",
        ),
    ),
    "headers": Target(
        packages.read_headers,
        packages.headers(),
        (b"GGUF", b'"shape"', b'"dtype"', b"[1e999]", b"[-1]", b"9" * 40, b"general.file_type", b"\xff" * 8, b"\0" * 8),
    ),
    "layout": Target(
        packages.read_layout,
        packages.layouts(),
        (b"oci-layout", b"index.json", b"blobs/sha256/", *TAR_WORDS, *JSON_WORDS[:8]),
    ),
    "attributes": Target(
        read_attributes,
        (b'*.bin\x01["a", "!b"]\x01models\x01sub\x01vllm\x01hf-cache\x01org/name\x01linux/arm64\x01a=b\x01always',),
        (b"**/", b"[!a-z]", b"\x01", b"\\", b"!", b"{a,b}"),
    ),
    "secret": Target(
        read_secret,
        (b'{"auths":{"https://h.io/v1/":{"auth":"YTpi"},"h.io":{"username":"a","password":"b","identitytoken":"c"}}}',),
        (b'"auth"', b'"auths"', b'"credHelpers"', b"Og==", b"null"),
    ),
}
