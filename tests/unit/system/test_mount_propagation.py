"""Read-only at the instant of attach, and in the host's namespace as in the driver's. Real namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .processes import environment

pytestmark = pytest.mark.mount


def run(directory: Path, how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.system.node_in_namespaces", str(directory), how],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("how", ["new", "old"])
def test_the_host_sees_the_mount_read_only_and_cannot_write(tmp_path: Path, how: str) -> None:
    report = run(tmp_path, how)
    for view in ("own", "host", "host_after_kill"):
        (options,) = report[view]
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options), view
    assert (report["write"], report["write_after_kill"]) == ("EROFS", "EROFS")
    assert report["read"] == "bytes"
    assert report["files"] == ["weights"]
    assert report["unmounted"] == 1


@pytest.mark.parametrize("how", ["new", "old"])
def test_there_is_no_instant_at_which_it_is_writable(tmp_path: Path, how: str) -> None:
    seen = run(tmp_path, how)["seen"]
    assert len(seen) >= 2  # at least once in each namespace
    assert [options for options in seen if "ro" not in options] == []


@pytest.mark.parametrize("how", ["new", "old"])
def test_nothing_else_is_left_mounted_or_made(tmp_path: Path, how: str) -> None:
    report = run(tmp_path, how)
    assert report["stages"] == []
    assert report["leaked"] == []
    assert report["staged"] == ["tree"]
    assert report["store"] == []


def test_bind_then_remount_would_be_writable_on_the_host(tmp_path: Path) -> None:
    """The trap that the two ways above avoid, and the proof that these tests would notice it."""
    report = run(tmp_path, "classic")
    assert "ro" in report["own"][0]
    assert "rw" in report["host"][0]
    assert report["write"] == "written"
    assert [options for options in report["seen"] if "ro" not in options] != []
