"""What must be true of a store after any end of its driver, read from the files alone and by code of its own: every
name that exists is complete, every byte is what its name says.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import zlib
from pathlib import Path


def faults(store: Path) -> list[str]:
    """Everything that is wrong, one sentence each; half-made things (names with a dot first) are nobody's promise."""
    return [*_blobs(store), *_unpacked(store), *_trees(store), *_views(store), *_documents(store)]


def half_made(store: Path) -> list[Path]:
    """What an end left half-made; the next start must have removed it."""
    rooms = ("blobs/sha256", "blobs/sha512", "trees", "refs", "volumes", "pulls", "backoff")
    found = [path for room in rooms for path in (store / room).glob(".*")]
    found += [path for room in ("views", "models", "unpacked") for path in (store / room).glob("*/.*")]
    return [*found, *(store / "trash").iterdir()]


def _blobs(store: Path) -> list[str]:
    found = []
    for path in _visible(store / "blobs/sha256"):
        if _sha256(path) != path.name:
            found.append(f"blob {path.name} has other bytes than its name says")
        if stat.S_IMODE(path.stat().st_mode) != 0o444:
            found.append(f"blob {path.name} can be written")
        if not any((store / "scopes" / path.name).glob("*")):
            found.append(f"blob {path.name} is nobody's: it has no scope record")
    return found


def scattered(layer: Path) -> str:
    """The digest of the archive that a scattered layer was: its members and what lies between them, in order."""
    hasher, position = hashlib.sha256(), 0
    files = sorted(layer.glob("files/*"), key=lambda path: int(path.name))
    named = {m["number"] for m in json.loads((layer / "index.json").read_bytes()) if m["type"] == "file"}
    if {int(path.name) for path in files} != named:
        return "other files than its index says"
    with (layer / "rest").open("rb") as rest:
        for path in files:
            hasher.update(rest.read(int(path.name) - position))
            data = path.read_bytes()
            hasher.update(data)
            position = int(path.name) + len(data)
            rest.seek(position)
        hasher.update(rest.read())
    return hasher.hexdigest()


def _unpacked(store: Path) -> list[str]:
    found = []
    for layer in _visible(store / "unpacked"):
        for version in _visible(layer):
            index = version / "index.json"
            if not index.exists():
                found.append(f"unpacked {layer.name} has no index")
                continue
            members = json.loads(index.read_bytes())
            if (version / "rest").exists():
                if scattered(version) != layer.name:
                    found.append(f"unpacked {layer.name} isn't what its archive was")
                continue
            for number, member in enumerate(members):
                if member["type"] == "file" and _sha256(version / "files" / str(number)) != member["sha256"]:
                    found.append(f"unpacked {layer.name}: member {member['path']} has other bytes")
    return found


def _trees(store: Path) -> list[str]:
    found = []
    for tree in _visible(store / "trees"):
        if not (tree / "tree.json").exists():
            found.append(f"tree {tree.name} has no tree.json")
            continue
        record = json.loads((tree / "tree.json").read_bytes())
        named = {file["path"]: file for file in record["files"]}
        there = {p.relative_to(tree / "root").as_posix() for p in (tree / "root").rglob("*") if p.is_file()}
        if set(named) != there:
            found.append(f"tree {tree.name} has other files than its record: {sorted(set(named) ^ there)}")
            continue
        for path, file in named.items():
            linked = tree / "root" / path
            if not _source(store, file["source"]).samefile(linked) or linked.stat().st_size != file["size"]:
                found.append(f"tree {tree.name}: {path} is not what it was linked from")
        writable = [p for p in (tree / "root").rglob("*") if p.stat().st_mode & 0o222]
        found += [f"tree {tree.name}: {path} can be written" for path in writable]
    return found


def _views(store: Path) -> list[str]:
    found = []
    for scope in _visible(store / "views"):
        for view in _visible(scope):
            tree = json.loads(view.read_bytes())["tree"]
            if not (store / "trees" / tree / "tree.json").exists():
                found.append(f"view {view.name} leads to tree {tree}, which isn't there")
    return found


def _documents(store: Path) -> list[str]:
    """Small records are whole: they parse."""
    found = []
    for pattern in ("refs/*", "volumes/*.json", "models/*/facts.json", "backoff/*.json", "backoff/mirrors/*.json"):
        for path in store.glob(pattern):
            if path.name.startswith("."):
                continue
            try:
                json.loads(path.read_bytes())
            except ValueError:
                found.append(f"{path.relative_to(store)} is torn")
    return found


def _source(store: Path, source: str) -> Path:
    name, _, member = source.partition("/")
    if not member:
        return store / "blobs/sha256" / name
    version, _, number = member.partition("/")
    return store / "unpacked" / name / version / "files" / number


def _visible(directory: Path) -> list[Path]:
    """Nothing where a store couldn't even be made."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept(store: Path) -> dict[str, float]:
    """Bytes of each digest that a successor need not fetch: verified ones, and those whose journal is right. Of an
    unpacked archive infinitely many.
    """
    found: dict[str, float] = {}
    for journal in (store / "ingest").glob("*/journal"):
        found["sha256:" + journal.parent.name.partition("-")[0]] = proved(journal)
    for path in _visible(store / "blobs/sha256"):
        found[f"sha256:{path.name}"] = path.stat().st_size
    for layer in _visible(store / "unpacked"):
        if _visible(layer):
            found[f"sha256:{layer.name}"] = math.inf
    return found


def proved(journal: Path) -> int:
    """Bytes of a raw download that read back as its journal says."""
    try:
        data = journal.with_name("data").read_bytes()
    except FileNotFoundError:
        return 0
    covered: set[tuple[int, int]] = set()
    for line in journal.read_bytes().split(b"\n"):
        fields = line.split(b" ")
        if len(fields) == 4:
            first, last = int(fields[0]), int(fields[0]) + int(fields[1])
            if last <= len(data) and f"{zlib.crc32(data[first:last]):08x}".encode() == fields[2]:
                covered.add((first, last))
    total = end = 0
    for first, last in sorted(covered):
        total += max(0, last - max(first, end))
        end = max(end, last)
    return total


def used(store: Path) -> int:
    """What the content takes on the disk, by a walk that knows nothing but its rooms: each inode once, directories of
    blobs not counted.
    """
    seen: dict[int, int] = {}
    for pattern in ("blobs/*/*", "unpacked/*/*", "ingest/*", "trash/*", "quarantine/*"):
        for top in store.glob(pattern):
            for path in (top, *top.rglob("*")):
                status = path.lstat()
                seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def remains(store: Path) -> list[Path]:
    """What lies in a store whose every model was swept."""
    rooms = (
        "blobs/sha256",
        "blobs/sha512",
        "unpacked",
        "ingest",
        "scopes",
        "trees",
        "refs",
        "volumes",
        "pulls",
        "trash",
    )
    found = [path for room in rooms for path in (store / room).iterdir()]
    return [*found, *(store / "views").glob("*/*"), *(store / "models").iterdir()]


def leased_tree(store: Path, target: str) -> Path | None:
    """The root of the tree that the lease of a target names."""
    for path in (store / "volumes").glob("*.json"):
        lease = json.loads(path.read_bytes())
        if lease["target"] == target:
            return store / "trees" / str(lease["tree"]) / "root"
    return None
