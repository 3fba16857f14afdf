"""`modelmount status`: one screen about a node, with a driver and without one."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from modelmount.cache import quarantine, scrub
from modelmount.cli import cli
from modelmount.content import asides, backoff
from modelmount.content import ingest as ingests
from modelmount.content.pulls import Claim, PullRecord
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.system import host
from tests.unit.cache.shelf import Made, Shelf, content
from tests.unit.cli.conftest import Machine

DRIVER = "csi.modelmount.io"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Store(tmp_path / "store"))


def configured(tmp_path: Path, more: str = "") -> list[str]:
    (tmp_path / "config.toml").write_text(
        f'root = "{tmp_path}/store"\nkubelet_root = "{tmp_path}/kubelet"\nnode_id = "node-7"\n'
        f'registration_dir = "/run"\n{more}'
    )
    return ["status", "--config", str(tmp_path / "config.toml")]


def status(tmp_path: Path, more: str = "") -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*configured(tmp_path, more), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def screen(tmp_path: Path, more: str = "") -> list[str]:
    done = CliRunner().invoke(cli, configured(tmp_path, more))
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def claim(made: Made, size: int) -> Claim:
    digest = Digest.of(next(iter(made.files.values())))
    return Claim(digest.hex, ingests.RAW, ingests.name(digest, made.scope, ingests.RAW), size)


def test_a_machine_without_a_store_has_nothing_and_gets_none(tmp_path: Path) -> None:
    found = status(tmp_path)
    assert (found["node"], found["driver"], found["cache"]["used"]) == ("node-7", {"running": False, "pid": None}, 0)
    assert (found["pulls"], found["volumes"]["count"], found["scrub"]["began"]) == ([], 0, None)
    assert "no driver runs" in screen(tmp_path)[0]
    assert not (tmp_path / "store").exists()


def test_room_and_whose_rule_bounds_it(tmp_path: Path, shelf: Shelf) -> None:
    shelf.put("old", {"a": content("a", 300_000)}, idle=1e6)
    held = shelf.put("pinned", {"b": content("b", 100_000)}, idle=1e6)
    found = status(tmp_path, f'[cache]\nmax_bytes = 1000000\npins = ["{held.reference}"]\n[limits]\nfree_bytes = 5\n')
    cache = found["cache"]
    assert (cache["models"], cache["budget"], found["bounds"]["max_bytes"]) == (2, 1_000_000, 1_000_000)
    assert cache["used"] + cache["free"] == 1_000_000
    assert 300_000 <= cache["evictable"] < cache["used"]
    assert cache["held"]["pinned"] >= 100_000
    assert found["bounds"]["reason"] == "limits.free_bytes keeps 5 B free"
    assert found["file_system"]["bytes"] > found["file_system"]["free"] > 0


def test_pulls_under_way_and_how_far_they_came(tmp_path: Path, shelf: Shelf) -> None:
    made = shelf.put("here", {"a": content("a", 300_000)})
    whole = Claim.of_manifest(made.manifest, made.scope, "team-a")
    absent = Claim("ab" * 32, ingests.RAW, f"{'ab' * 32}-{made.scope}-raw", 700_000)
    records = [
        PullRecord.open(shelf.store, [whole]),
        PullRecord.open(shelf.store, [whole, claim(made, 300_000)]),
        PullRecord.open(shelf.store, [whole, claim(made, 300_000), absent]),
        PullRecord.open(shelf.store, [whole, claim(made, 0), Claim(absent.hex, absent.form, absent.ingest, 0)]),
    ]
    try:
        found = status(tmp_path)
        shown = {(p["phase"], p["bytes_done"], p["bytes_total"]) for p in found["pulls"]}
        assert shown == {
            ("resolving", 0, 0),
            ("here", 300_000, 300_000),
            ("pulling", 300_000, 1_000_000),
            ("making room", 0, 0),
        }
        assert {(p["model"], p["namespace"], p["pid"]) for p in found["pulls"]} == {
            (str(made.reference), "team-a", os.getpid())
        }
        assert found["cache"]["reserved"] == 700_000
        expected = f"pulling {made.reference} 0.3 of 1.0 MB for namespace team-a by process {os.getpid()}"
        assert sum(line.endswith(expected) for line in screen(tmp_path)) == 1
    finally:
        for record in records:
            record.close()
    assert status(tmp_path)["pulls"] == []


def test_volumes_by_state_and_who_waits(tmp_path: Path, shelf: Shelf) -> None:
    made = shelf.put("model", {"a": content("a", 1000)})
    targets = tmp_path / "kubelet/pods"
    for name in ("waits", "published"):
        record = targets / f"{name}/volumes/kubernetes.io~csi/v/vol_data.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"driverName": DRIVER, "volumeHandle": f"csi-{name}"}))
    lease, here = shelf.lease(made), host.mount_namespace()
    shelf.leases.remove(lease.volume_id, lease.target)
    for name, boot in (("published", "another"), ("lost", lease.boot_id)):
        target = str(targets / f"{name}/volumes/kubernetes.io~csi/v/mount")
        changed = {
            "volume_id": f"csi-{name}",
            "target": target,
            "boot_id": boot,
            "pod_uid": name,
            "mount_namespace": here,
        }
        shelf.leases.write(msgspec.structs.replace(lease, **changed))
    found = status(tmp_path)["volumes"]
    assert (found["count"], found["states"]) == (2, {"not mounted": 1, "unhealthy": 1})
    assert [(bad["volume"], bad["pod_uid"]) for bad in found["unhealthy"]] == [("csi-lost", "lost")]
    assert "mount is gone" in found["unhealthy"][0]["message"]
    assert [(each["volume"], each["pod_uid"]) for each in found["waiting"]] == [("csi-waits", "waits")]
    lines = screen(tmp_path)
    assert any(line.startswith("waiting") and "pod waits" in line for line in lines)
    assert any("csi-lost" in line and "mount is gone" in line for line in lines)


def test_what_went_wrong_is_named(tmp_path: Path, shelf: Shelf) -> None:
    made = shelf.put("bad", {"a": content("a", 1000)})
    item = f"blobs/sha256/{Digest.of(made.files['a']).hex}"
    put = quarantine.put(shelf.store, item, "it has other bytes")
    assert put is not None
    backoff.Backoff(shelf.store, made.manifest, made.scope, "registry.example.com").punish("wrong bytes came")
    scrub.reached(shelf.store, item)
    found = status(tmp_path)
    (entry,), (bar,) = found["quarantine"], found["back_off"]
    assert (entry["item"], entry["reason"], entry["place"]) == (item, "it has other bytes", str(put.place))
    assert (bar["source"], bar["hex"], bar["reason"]) == (
        "registry.example.com",
        made.manifest.hex,
        "wrong bytes came",
    )
    assert found["scrub"]["after"] == item
    words = {line.split()[0] for line in screen(tmp_path)}
    assert {"quarantine", "back-off", "scrub"} <= words


def test_mirrors_that_are_left_alone_are_named_until_their_time_is_over(tmp_path: Path, shelf: Shelf) -> None:
    now = time.time()
    notes = asides.Asides(shelf.store)
    notes.aside("mirror.example.com", now - 7200, now + 3600, "it didn't answer within 10 s")
    notes.aside("back.example.com", now, now + 3600, "it refused the connection")
    notes.back("back.example.com")
    notes.back("never.example.com")
    notes.aside("over.example.com", now - 60, now - 1, "it refused the connection")
    (shelf.store.root / asides.ROOM / f"{'0' * 32}.json").write_bytes(b"{")
    assert status(tmp_path)["mirrors_aside"] == [
        {
            "mirror": "mirror.example.com",
            "since": round(now - 7200),
            "until": round(now + 3600),
            "reason": "it didn't answer within 10 s",
        }
    ]
    (line,) = [line for line in screen(tmp_path) if line.startswith("mirror")]
    assert "first set aside 2 h ago" in line
    assert line.endswith(": it didn't answer within 10 s")


def test_what_the_store_stands_on_is_warned_about(tmp_path: Path) -> None:
    found = status(tmp_path, f"[cache]\nmax_bytes = {1 << 60}\n")
    assert any("cache.max_bytes" in each["message"] and each["remedy"] for each in found["warnings"])
    assert any(line.startswith("warning") for line in screen(tmp_path, f"[cache]\nmax_bytes = {1 << 60}\n"))


def test_a_root_that_is_no_store_is_told_and_left_alone(tmp_path: Path, shelf: Shelf) -> None:
    """As the driver's start does where somebody deleted `version`."""
    shelf.put("model", {"w": content("w", 99)})
    (shelf.store.root / "version").unlink()
    before = sorted(shelf.store.root.rglob("*"))
    done = CliRunner().invoke(cli, configured(tmp_path))
    assert done.exit_code == 1
    assert "isn't a store, and isn't empty" in done.stderr
    assert sorted(shelf.store.root.rglob("*")) == before


def test_looking_changes_nothing(tmp_path: Path, shelf: Shelf) -> None:
    root = shelf.store.root
    root.chmod(0o755)
    assert any("mode 0755" in each["message"] for each in status(tmp_path)["warnings"])
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    (root / "version").write_text("1\n")
    done = CliRunner().invoke(cli, configured(tmp_path))
    assert done.exit_code != 0
    assert "start the driver, which migrates it" in done.stderr
    assert (root / "version").read_text() == "1\n"


@pytest.mark.registry
@pytest.mark.mount
def test_beside_a_driver_and_after_it(machine: Machine) -> None:
    pushed = machine.push()
    machine.driver.start()
    target = machine.directory / "here"
    assert machine.run("mount", pushed.reference, str(target)).code == 0
    found = machine.run("status", "--json").object
    assert found["driver"] == {"running": True, "pid": machine.driver.pid}
    assert (found["volumes"]["states"], found["volumes"]["unhealthy"]) == ({"mounted": 1}, [])
    assert (found["cache"]["models"], found["cache"]["held"].get("mounted", 0) >= pushed.size) == (1, True)
    assert f"process {machine.driver.pid}" in machine.run("status").out
    machine.driver.kill()
    after = machine.run("status", "--json").object
    assert after["driver"] == {"running": False, "pid": None}
    assert after["volumes"] == found["volumes"]
    assert machine.run("umount", str(target)).code == 0
    assert machine.run("status", "--json").object["volumes"]["count"] == 0
