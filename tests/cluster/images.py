"""Container images from what this machine has, as OCI layouts that `ctr images import` reads: no builder, no registry.

The driver's holds Debian's files of the interpreter and everything it depends on, and the environment that the
Dockerfile's own first stage makes. The others are one static program each.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e import dockerfile
from tests.fakes.tools import cache as tools_cache
from tests.fakes.tools import tool

ROOT = Path(__file__).resolve().parents[2]
PAUSE = "localhost/pause:e2e"
BUSYBOX = "localhost/busybox:e2e"
PROVISIONER = "localhost/csi-provisioner:e2e"
DRIVER = "localhost/modelmount:e2e"
ORAS = "localhost/oras:e2e"
ENGINE = "localhost/llama:e2e"
ENGINE_PROGRAM = ROOT / "tests/engines/llama_server.py"
BASE_PACKAGES = (
    "python3-minimal",
    "python3",
    "libpython3-stdlib",
    "ca-certificates",
    "tzdata",
    "base-files",
    "libstdc++6",
)
UNUSED_SECONDS = 86_400.0
"""How long an archive stays that no cluster was made of: another clone's may be running."""
NOT_FOLLOWED = ("debconf", "openssl", "dpkg", "perl-base", "debianutils")
"""Dependencies that only installing needs."""
NOT_COPIED = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/lintian", "/usr/share/info")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
"""Where the image's `python3` is looked for: Debian's, whatever interpreter runs the tests."""


def all_of_them() -> list[Path]:
    """The archives that the cluster needs, made unless the cache has them for exactly these sources. Making the
    driver's needs a network, so scripts/cluster does it beforehand.
    """
    provisioner, cache = tool("csi-provisioner"), tools_cache() / "images"
    cache.mkdir(parents=True, exist_ok=True)
    busybox = Path("/bin/busybox")
    pause = ["/bin/busybox", "tail", "-f", "/dev/null"]
    shell = [
        "sh",
        "sleep",
        "cat",
        "find",
        "sort",
        "sha256sum",
        "tail",
        "touch",
        "ls",
        "wget",
        "head",
        "wc",
        "grep",
        "dd",
        "id",
    ]
    return [
        _kept(cache, PAUSE, _sum(busybox), lambda out, work: program(out, PAUSE, busybox, work, entry=pause)),
        _kept(cache, BUSYBOX, _sum(busybox), lambda out, work: program(out, BUSYBOX, busybox, work, links=shell)),
        _kept(cache, PROVISIONER, _sum(provisioner), lambda out, work: program(out, PROVISIONER, provisioner, work)),
        _kept(cache, DRIVER, _sources(), lambda out, work: driver(out, DRIVER, work)),
    ]


def of_engines() -> list[Path]:
    """The archives with llama.cpp, and with oras for who copies models; scripts/engines makes what goes into them."""
    oras, cache = tool("oras"), tools_cache() / "images"
    sources = _sum(Path(__file__), ENGINE_PROGRAM, ROOT / "requirements/engines.txt", Path("/var/lib/dpkg/status"))
    return [
        _kept(cache, ORAS, _sum(oras), lambda out, work: program(out, ORAS, oras, work)),
        _kept(cache, ENGINE, sources, lambda out, work: _engine(out, ENGINE, work)),
    ]


def gguf() -> Path:
    """The real model that came with llama.cpp. Raises FileNotFoundError where scripts/engines wasn't run."""
    for found in (tools_cache() / "engines/llama").rglob("*.gguf"):
        return found
    raise FileNotFoundError("there is no model for engines; run scripts/engines --install")


def _engine(archive: Path, name: str, work: Path) -> None:
    base = work / "base"
    debian(base, (*BASE_PACKAGES, "libgomp1"))
    (package,) = (tools_cache() / "engines/llama").glob("lib/python3*/site-packages/xllamacpp")
    shutil.copytree(package, base / "usr/lib/python3/dist-packages/xllamacpp")
    shutil.copy(ENGINE_PROGRAM, base / ENGINE_PROGRAM.name)
    entry = ["/usr/bin/python3", f"/{ENGINE_PROGRAM.name}"]
    write(archive, name, base, {"Env": [f"PATH={PYTHON_PATH}"], "Entrypoint": entry, "User": "65534"})


def _kept(cache: Path, name: str, key: str, make: Callable[[Path, Path], None]) -> Path:
    stem = name.rpartition("/")[2].partition(":")[0]
    archive = cache / f"{stem}-{key[:16]}.tar"
    if archive.exists():
        archive.touch()
    else:
        for old in cache.glob(f"{stem}-*.tar"):
            if old.stat().st_mtime < time.time() - UNUSED_SECONDS:
                old.unlink()
        with tempfile.TemporaryDirectory(prefix="mm-image-") as work:
            make(cache / f".{archive.name}", Path(work))
        (cache / f".{archive.name}").rename(archive)
    return archive


def _sum(*files: Path) -> str:
    """A digest of the files; the same in every clone, so that they share what is made of them."""
    hasher = hashlib.sha256()
    for file in files:
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        hasher.update(f"{name}\0{file.stat().st_size}\0".encode())
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def _sources() -> str:
    """A digest of all that the driver's image is made of."""
    code = sorted(path for top in ("driver", "csi") for path in (ROOT / top).rglob("*.py*") if path.suffix != ".pyc")
    lists = [ROOT / f"requirements/{name}.txt" for name in ("build", "runtime", "verify")]
    return _sum(
        Path(__file__), ROOT / "Dockerfile", ROOT / "pyproject.toml", *lists, *code, Path("/var/lib/dpkg/status")
    )


def write(archive: Path, name: str, root: Path, config: Mapping[str, Any]) -> None:
    """An archive of an OCI layout with one image: `root` as its only layer. `config` is the image's `config` object."""
    layer = _layer(root)
    diff_id = _digest(layer)
    platform = {"architecture": _architecture(), "os": "linux"}
    image = {**platform, "config": dict(config), "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    blobs = {diff_id: layer}
    described = _describe(blobs, image, "application/vnd.oci.image.config.v1+json")
    layers = [_descriptor(layer, "application/vnd.oci.image.layer.v1.tar")]
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
    entry = _describe(blobs, manifest, _MANIFEST)
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    with tarfile.open(archive, "w") as out:
        _add(out, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(out, "index.json", json.dumps(index).encode())
        for digest, content in blobs.items():
            _add(out, f"blobs/sha256/{digest.removeprefix('sha256:')}", content)


def driver(archive: Path, name: str, work: Path) -> None:
    """The driver's image, as the Dockerfile describes it. `work` is a directory for half-made things."""
    stages = dockerfile.parse((ROOT / "Dockerfile").read_text())
    base, built = work / "base", work / "built"
    debian(base, BASE_PACKAGES)
    dockerfile.build(stages[0], ROOT, built, path=PYTHON_PATH)
    for copy in stages[-1].all("COPY"):
        _, source, destination = copy.words
        dockerfile.undo(built / source.lstrip("/"), built)
        shutil.copytree(built / source.lstrip("/"), base / destination.lstrip("/"), symlinks=True)
    (environment,) = stages[-1].all("ENV")
    (entry,), (command,) = stages[-1].all("ENTRYPOINT"), stages[-1].all("CMD")
    variables = [text.replace("$PATH", PYTHON_PATH) for text in environment.words]
    write(archive, name, base, {"Env": variables, "Entrypoint": entry.words, "Cmd": command.words, "User": "0"})


def program(
    archive: Path, name: str, binary: Path, work: Path, *, entry: Sequence[str] = (), links: Sequence[str] = ()
) -> None:
    """An image of one static program in /bin, and links to it; `entry` is the entry point, by default the program."""
    root = work / "root"
    (root / "bin").mkdir(parents=True)
    (root / "tmp").mkdir(mode=0o1777)
    shutil.copy(binary, root / "bin" / binary.name)
    for link in links:
        (root / "bin" / link).symlink_to(binary.name)
    command = list(entry) or [f"/bin/{binary.name}"]
    write(archive, name, root, {"Entrypoint": command, "Env": ["PATH=/bin"]})


def debian(root: Path, packages: Iterable[str]) -> None:
    """The files of installed Debian packages, and of what they depend on, copied to `root`."""
    for name in ("bin", "sbin", "lib", "lib64"):  # merged with /usr, which the packages' lists don't know
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for path in _files(_closure(packages)):
        target = root / path.relative_to("/")
        if path.is_symlink():
            if not target.exists() and not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    (root / "tmp").mkdir(mode=0o1777, exist_ok=True)
    (root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    subprocess.run(["ldconfig", "-r", str(root)], check=True)


def _closure(packages: Iterable[str]) -> list[str]:
    depends = _installed()
    found: dict[str, None] = {}
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in found or name in NOT_FOLLOWED:
            continue
        if name in depends:
            found[name] = None
            waiting.extend(depends[name])
    return list(found)


def _installed() -> dict[str, list[str]]:
    """Installed packages with the names that they depend on, alternatives and all."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\t${Pre-Depends}, ${Depends}\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.partition("\t") for line in shown.stdout.splitlines())
    return {name: re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]+)", depends) for name, _, depends in rows}


def _files(packages: Iterable[str]) -> list[Path]:
    listed = subprocess.run(["dpkg", "-L", *packages], capture_output=True, text=True, check=True).stdout.splitlines()
    paths = {Path(line) for line in listed if line.startswith("/") and not line.startswith(NOT_COPIED)}
    return sorted(paths - {Path("/.")})


def _layer(root: Path) -> bytes:
    """The tree as a tar with root as its owner and no times, so that the same files make the same image."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in sorted(os.listdir(root)):
            archive.add(root / name, name, filter=plain)
    return out.getvalue()


def _describe(blobs: dict[str, bytes], document: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    data = json.dumps(document).encode()
    blobs[_digest(data)] = data
    return _descriptor(data, media_type)


def _descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


if __name__ == "__main__":
    all_of_them()
