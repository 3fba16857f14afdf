"""Layout versions: an older store is brought to ours in place, a newer one is left alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from modelmount.content import store as stores
from modelmount.content import versions
from modelmount.content.store import Store
from modelmount.errors import NoSpace, Precondition
from modelmount.system import atomic

MANIFESTS = [f"sha256:{n:064x}" for n in range(3)]
LEASES = ("volumes/aa-11.json", "volumes/aa-22.json", "volumes/bb-33.json")


def key(manifest: str, rules: int) -> str:
    return hashlib.sha256(f"{manifest}\n\n{rules}".encode()).hexdigest()


def write(path: Path, **record: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_bytes())
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as the first programs left it: three leases of two volumes; views of a model known by its reference, of
    one known by its facts, and of one that nobody remembers.
    """
    root = tmp_path / "store"
    Store(root)
    (root / "version").write_text("1\n")
    for name in LEASES:
        write(root / name.replace("-", "/"), volume_id=name, manifest="")
    (root / "volumes/bb/.44.json.0123").write_text("{")
    write(root / "refs" / ("a" * 64), manifest=MANIFESTS[0])
    write(root / "models" / ("b" * 64) / "facts.json", digest=MANIFESTS[1])
    (root / "refs" / ("c" * 64)).write_text("torn {")
    for n, rules in ((0, 1), (1, 2), (2, 2)):
        write(root / "views/scope" / key(MANIFESTS[n], rules), tree=f"tree-{n}", bytes=1, files=1)
    write(root / "views/scope" / key("sha256:new", 2), tree="tree-9", bytes=1, files=1, manifest="sha256:new")
    return root


def assert_migrated(root: Path) -> None:
    assert (root / "version").read_text() == f"{versions.VERSION}\n"
    assert sorted(os.listdir(root / "volumes")) == ["aa-11.json", "aa-22.json", "bb-33.json"]
    assert [read(root / name)["volume_id"] for name in LEASES] == list(LEASES)
    views = {path.name: read(path) for path in (root / "views/scope").iterdir()}
    assert {name: view["manifest"] for name, view in views.items()} == {
        key(MANIFESTS[0], 1): MANIFESTS[0],
        key(MANIFESTS[1], 2): MANIFESTS[1],
        key("sha256:new", 2): "sha256:new",
    }
    assert views[key(MANIFESTS[0], 1)]["tree"] == "tree-0"


def test_an_older_store_is_migrated_when_it_is_opened(old: Path) -> None:
    Store(old)
    assert_migrated(old)
    before = sorted((path, path.stat().st_mtime_ns) for path in old.rglob("*") if "locks" not in path.parts)
    Store(old)
    after = sorted((path, path.stat().st_mtime_ns) for path in old.rglob("*") if "locks" not in path.parts)
    assert after == before


def test_a_lease_that_a_later_program_wrote_anew_wins(old: Path) -> None:
    write(old / LEASES[0], volume_id=LEASES[0], newer=True)
    Store(old)
    assert_migrated(old)
    assert read(old / LEASES[0])["newer"] is True


@pytest.mark.parametrize(
    ("point", "nth"),
    [("after_lease", 1), ("after_lease", 3), ("after_view", 1), ("after_view", 3), ("before_version", 1)],
)
def test_a_failure_in_the_middle_is_gone_on_from(old: Path, point: str, nth: int) -> None:
    with (
        atomic.armed(f"content.migration.{point}={nth - 1}*off->1*error(ENOSPC)->off"),
        pytest.raises(NoSpace, match="open the store"),
    ):
        Store(old)
    assert (old / "version").read_text() == "1\n"
    Store(old)
    assert_migrated(old)


def test_a_store_that_a_driver_of_that_version_uses_is_left_to_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MIGRATION_SECONDS", 0.01)
    store = Store(old, as_it_is=True)
    with store.lock("driver").acquire():
        with pytest.raises(Precondition, match="older layout version, and the driver of that version still uses it"):
            Store(old)
        assert (old / "version").read_text() == "1\n"
        assert (old / "volumes/aa/11.json").exists()
        store.migrate()  # whoever has the lock may
        Store(old)  # and whoever comes meanwhile finds it done
    assert_migrated(old)


def test_steps_follow_each_other(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []
    monkeypatch.setattr(versions, "VERSION", 4)
    steps = {n: lambda root, n=n: came.append(f"{n} at {(root / 'version').read_text().strip()}") for n in (1, 2, 3)}
    monkeypatch.setattr(versions, "STEPS", steps)
    Store(old)
    assert came == ["1 at 1", "2 at 2", "3 at 3"]
    assert (old / "version").read_text() == "4\n"


def test_there_is_a_step_from_every_version_to_ours() -> None:
    assert sorted(versions.STEPS) == list(range(1, versions.VERSION))
