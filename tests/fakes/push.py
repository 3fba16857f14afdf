"""A small pusher for tests, the demo and benchmarks: artifacts from directories, as the field's tools make them, into a
real registry.

It shares no code with the driver, on purpose: what both sides agree on is the specifications.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import sys
import tarfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
ORAS_FILE = "application/vnd.oci.image.layer.v1.tar"
ORAS_DIRECTORY = "application/vnd.oci.image.layer.v1.tar+gzip"
MODELPACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODELPACK_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
UNPACKED_DIGEST = "io.deis.oras.content.digest"
FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"

Packing = Literal["raw", "tar", "tar+gzip", "tar+zstd"]
Content = bytes | Path


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob on its way into a manifest; a Path is streamed, so its size does not matter."""

    media_type: str
    content: Content
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a manifest will name, before anything is pushed."""

    config: Layer
    layers: tuple[Layer, ...]
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Pushed:
    """An artifact in a registry. `reference` names it by tag, `pinned` by digest; `layers` are its layers' digests,
    `size` their bytes.
    """

    host: str
    repository: str
    tag: str
    digest: str
    document: bytes
    layers: tuple[str, ...]
    size: int

    @property
    def reference(self) -> str:
        """`host/repository:tag`."""
        return f"{self.host}/{self.repository}:{self.tag}"

    @property
    def pinned(self) -> str:
        """`host/repository@digest`."""
        return f"{self.host}/{self.repository}@{self.digest}"


class RefusedError(Exception):
    """The registry answered a push with an error; `status` and `body` are its own."""

    def __init__(self, status: int, body: bytes, what: str) -> None:
        super().__init__(f"{what}: {status} {body[:500]!r}")
        self.status = status
        self.body = body


class Pusher:
    """Pushes over connections made by `connect` (as `Registry.connection`); one thread at a time.

    `authorization` is sent with every request as it is; `basic` makes one from a name and a password.
    """

    def __init__(
        self, host: str, connect: Callable[[], http.client.HTTPConnection], *, authorization: str | None = None
    ) -> None:
        self.host = host
        self._connect = connect
        self._authorization = authorization

    def blob(self, repository: str, content: Content) -> tuple[str, int]:
        """Upload in one PUT unless the repository has it already; returns digest and size."""
        digest, size = measure(content)
        status, _, _ = self._request("HEAD", f"/v2/{repository}/blobs/{digest}", ok=(200, 404))
        if status == 404:
            _, headers, _ = self._request("POST", f"/v2/{repository}/blobs/uploads/", ok=(202,))
            location = urllib.parse.urlsplit(headers["location"])
            query = urllib.parse.urlencode([*urllib.parse.parse_qsl(location.query), ("digest", digest)])
            with _opened(content) as body:
                headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
                self._request("PUT", f"{location.path}?{query}", body=body, headers=headers, ok=(201,))
        return digest, size

    def manifest(self, repository: str, name: str, document: bytes, media_type: str = MANIFEST) -> str:
        """Store `document` under a tag or its digest; returns the digest."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(document))}
        path = f"/v2/{repository}/manifests/{name}"
        self._request("PUT", path, body=io.BytesIO(document), headers=headers, ok=(201,))
        return f"sha256:{hashlib.sha256(document).hexdigest()}"

    def fetch(self, repository: str, name: str) -> bytes:
        """A manifest or index, by tag or digest."""
        path = f"/v2/{repository}/manifests/{name}"
        return self._request("GET", path, headers={"Accept": f"{MANIFEST}, {INDEX}"}, ok=(200,))[2]

    def artifact(self, repository: str, tag: str, artifact: Artifact) -> Pushed:
        """Upload all blobs of `artifact`, then its manifest under `tag`."""
        config = self._descriptor(repository, artifact.config)
        layers = [self._descriptor(repository, layer) for layer in artifact.layers]
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": artifact.media_type}
        document |= {"config": config, "layers": layers}
        if artifact.artifact_type is not None:
            document["artifactType"] = artifact.artifact_type
        if artifact.annotations:
            document["annotations"] = dict(artifact.annotations)
        data = json.dumps(document, separators=(",", ":")).encode()
        digest = self.manifest(repository, tag, data, artifact.media_type)
        digests = tuple(layer["digest"] for layer in layers)
        return Pushed(self.host, repository, tag, digest, data, digests, sum(layer["size"] for layer in layers))

    def index(self, repository: str, tag: str, entries: Iterable[tuple[Pushed, Mapping[str, Any]]]) -> Pushed:
        """An image index over pushed manifests; the mappings add `platform`, `annotations` and the like to their
        descriptors.
        """
        manifests = [
            {"mediaType": MANIFEST, "digest": p.digest, "size": len(p.document), **extra} for p, extra in entries
        ]
        document = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
        return Pushed(self.host, repository, tag, self.manifest(repository, tag, document, INDEX), document, (), 0)

    def _descriptor(self, repository: str, layer: Layer) -> dict[str, Any]:
        digest, size = self.blob(repository, layer.content)
        descriptor: dict[str, Any] = {"mediaType": layer.media_type, "digest": digest, "size": size}
        if layer.media_type == EMPTY and isinstance(layer.content, bytes):
            descriptor["data"] = base64.b64encode(layer.content).decode()
        if layer.annotations:
            descriptor["annotations"] = dict(layer.annotations)
        return descriptor

    def _request(
        self,
        method: str,
        path: str,
        *,
        ok: Sequence[int],
        body: IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = self._connect()
        sent = {"User-Agent": "modelmount-test-pusher", **(headers or {})}
        if self._authorization is not None:
            sent["Authorization"] = self._authorization
        try:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            data = response.read()
            if response.status not in ok:
                raise RefusedError(response.status, data, f"{method} {path.partition('?')[0]}")
            return response.status, {k.lower(): v for k, v in response.getheaders()}, data
        finally:
            connection.close()


def basic(username: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def measure(content: Content) -> tuple[str, int]:
    """Digest and size, streaming what is a file."""
    with _opened(content) as stream:
        hasher, size = hashlib.sha256(), 0
        while piece := stream.read(1 << 20):
            hasher.update(piece)
            size += len(piece)
        return f"sha256:{hasher.hexdigest()}", size


def files_below(directory: Path) -> list[str]:
    """The regular files below `directory`, sorted, as relative paths with slashes."""
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def oras(directory: Path, *, packed: Sequence[str] = (), artifact_type: str | None = "application/x.model") -> Artifact:
    """As `oras push` makes it from a directory: a raw layer for each file, and one gzipped tar for each directory named
    in `packed`.
    """
    layers = [
        Layer(ORAS_FILE, directory / path, {TITLE: path})
        for path in files_below(directory)
        if not any(path.startswith(f"{name}/") for name in packed)
    ]
    for name in packed:
        archive = tar_of((p.relative_to(directory).as_posix(), p) for p in _walk(directory / name))
        annotations = {TITLE: name, UNPACK: "true", UNPACKED_DIGEST: measure(archive)[0]}
        layers.append(Layer(ORAS_DIRECTORY, compress(archive, "tar+gzip"), annotations))
    return Artifact(Layer(EMPTY, b"{}"), tuple(layers), artifact_type)


def modelpack(directory: Path, *, packing: Packing = "raw", name: str = "model") -> Artifact:
    """As `modctl build` makes it: a layer for each file, raw or a tar of one entry; compressed tars as the
    specification allows them.
    """
    layers = []
    for path in files_below(directory):
        file = directory / path
        kind = "weight" if path.endswith((".safetensors", ".gguf", ".bin")) else "weight.config"
        content: Content = file if packing == "raw" else compress(tar_of([(path, file)]), packing)
        metadata = {"name": file.name, "mode": 0o644, "uid": 0, "gid": 0, "size": file.stat().st_size, "typeflag": 0}
        metadata["mtime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(0))
        annotations = {FILEPATH: path, METADATA: json.dumps(metadata)}
        layers.append(Layer(f"application/vnd.cncf.model.{kind}.v1.{packing}", content, annotations))
    config = {
        "descriptor": {"name": name},
        "modelfs": {"type": "layers", "diffIds": [measure(layer.content)[0] for layer in layers]},
        "config": {"format": "safetensors"},
    }
    return Artifact(Layer(MODELPACK_CONFIG, json.dumps(config).encode()), tuple(layers), MODELPACK_ARTIFACT)


def modelpack_archive(directory: Path, *, packing: Packing, name: str = "model") -> Artifact:
    """A ModelPack artifact with everything in one archive layer, as KitOps writes it: `.` as its path."""
    members = [(p.relative_to(directory).as_posix(), p) for p in _walk(directory) if p != directory]
    archive = compress(tar_of(members), packing)
    layer = Layer(f"application/vnd.cncf.model.weight.v1.{packing}", archive, {FILEPATH: "."})
    config = {
        "descriptor": {"name": name},
        "modelfs": {"type": "layers", "diffIds": [measure(archive)[0]]},
        "config": {"format": "safetensors"},
    }
    return Artifact(Layer(MODELPACK_CONFIG, json.dumps(config).encode()), (layer,), MODELPACK_ARTIFACT)


def modelkit(directory: Path, *, packing: Packing = "tar") -> Artifact:
    """As `kit pack` makes it: a Kitfile with one model and the other files as parts of it; entries named from the root,
    with their directories before them.
    """
    names = sorted(files_below(directory), key=lambda name: (not name.endswith(".safetensors"), name))
    found, parts = [], []
    for number, name in enumerate(names):
        above = [parent.as_posix() for parent in reversed(Path(name).parents) if parent != Path()]
        archive = tar_of([(parent, directory / parent) for parent in above] + [(name, directory / name)])
        content = directory / name if packing == "raw" else compress(archive, packing)
        kind = "modelpart" if number else "model"
        found.append(Layer(f"application/vnd.kitops.modelkit.{kind}.v1.{packing}", content))
        parts.append({"path": name, "digest": measure(content)[0], "diffId": measure(archive)[0]})
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "model"}, "model": {**parts[0], "parts": parts[1:]}}
    config = Layer("application/vnd.kitops.modelkit.config.v1+json", json.dumps(kitfile).encode())
    annotations = {"ml.kitops.modelkit.cli-version": "1.15.0"}
    return Artifact(config, tuple(found), "application/vnd.kitops.modelkit.manifest.v1+json", annotations)


def docker_model(directory: Path) -> Artifact:
    """As `docker model package` makes it of a directory: a typed layer with its path for each file."""
    found = []
    for name in files_below(directory):
        kind = {".safetensors": "safetensors", ".gguf": "gguf.v3"}.get(Path(name).suffix, "model.file")
        metadata = {"name": Path(name).name, "mode": 0o644, "size": (directory / name).stat().st_size, "typeflag": 0}
        annotations = {FILEPATH: name, METADATA: json.dumps(metadata)}
        found.append(Layer(f"application/vnd.docker.ai.{kind}", directory / name, annotations))
    config = {"config": {"format": "safetensors"}, "rootfs": {"type": "rootfs", "diff_ids": []}}
    media_type = "application/vnd.docker.ai.model.config.v0.2+json"
    return Artifact(Layer(media_type, json.dumps(config).encode()), tuple(found))


def ollama(layers: Sequence[tuple[str, Content]]) -> Artifact:
    """As `ollama push` makes it of (kind, content): Docker's manifest with the config of a container image."""
    config = {"model_format": "gguf", "model_family": "llama", "architecture": "amd64", "os": "linux"}
    digests = [measure(content)[0] for _, content in layers]
    found = tuple(Layer(f"application/vnd.ollama.image.{kind}", content) for kind, content in layers)
    data = json.dumps({**config, "rootfs": {"type": "layers", "diff_ids": digests}}).encode()
    return Artifact(Layer(DOCKER_CONFIG, data), found, media_type=DOCKER_MANIFEST)


def modelcar(directory: Path, *, packing: Packing = "tar+gzip") -> Artifact:
    """As `docker build` makes it of a Dockerfile that copies `directory` to /models, thinks better of some of it, and
    links to the rest: an operating system's layer, the files with more than there should be, a layer of whiteouts.
    """
    system = [("etc/", None), ("etc/os-release", b"ID=test\n"), ("dev/console", tarfile.CHRTYPE), ("bin", "usr/bin")]
    files: list[tuple[str, bytes | Path | str | None]] = [("models/", None)]
    for path in sorted(p for p in directory.rglob("*") if p.is_dir() or p.is_file()):
        name = path.relative_to(directory).as_posix()
        files.append((f"models/{name}/", None) if path.is_dir() else (f"models/{name}", path))
    extra = [("models/mistake.bin", b"not wanted"), ("models/mistakes/", None), ("models/mistakes/one", b"nor this")]
    whiteouts = [("models/.wh.mistake.bin", b""), ("models/mistakes/.wh..wh..opq", b""), ("models/.wh.mistakes", b"")]
    archives = [rootfs(entries) for entries in (system, [*files, *extra], whiteouts)]
    media_type = "application/vnd.docker.image.rootfs.diff.tar" + packing.removeprefix("tar").replace("+", ".")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [measure(archive)[0] for archive in archives]},
    }
    return Artifact(
        Layer(DOCKER_CONFIG, json.dumps(config).encode()),
        tuple(Layer(media_type, compress(archive, packing)) for archive in archives),
        media_type=DOCKER_MANIFEST,
    )


def rootfs(entries: Iterable[tuple[str, bytes | Path | str | None]]) -> bytes:
    """A layer of a container image: bytes and paths are files, text is where a symbolic link leads, None a directory,
    one of tarfile's types an entry of that type.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content == tarfile.CHRTYPE:
                info.type = tarfile.CHRTYPE
            elif content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            if isinstance(content, str) or info.type != tarfile.REGTYPE:
                archive.addfile(info)
                continue
            data = content.read_bytes() if isinstance(content, Path) else content or b""
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of(members: Iterable[tuple[str, Path]]) -> bytes:
    """A reproducible tar: the names as given, owner 0, time 0, modes 0644 and 0755."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in members:
            info = tarfile.TarInfo(name)
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size, info.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    archive.addfile(info, file)
    return out.getvalue()


def compress(archive: bytes, packing: Packing) -> bytes:
    """`archive` in the form that `packing` names; reproducible."""
    if packing == "tar+gzip":
        return gzip.compress(archive, compresslevel=1, mtime=0)
    if packing == "tar+zstd":
        return zstd.compress(archive, level=1)
    return archive


def decompress(data: bytes, packing: Packing) -> bytes:
    """The tar inside of what `compress` made."""
    if packing == "tar+gzip":
        return gzip.decompress(data)
    return zstd.decompress(data) if packing == "tar+zstd" else data


def _walk(directory: Path) -> list[Path]:
    """Directories before what is in them, the top one first unless it is the artifact's root."""
    return sorted(p for p in [directory, *directory.rglob("*")] if p.is_dir() or p.is_file())


@contextlib.contextmanager
def _opened(content: Content) -> Iterator[IO[bytes]]:
    if isinstance(content, Path):
        with content.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(content)
