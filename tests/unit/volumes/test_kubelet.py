"""What the kubelet's own files say about a target; nothing in them is trusted with more than a name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelmount.system.target import TargetRoots
from modelmount.volumes import kubelet

DRIVER = "csi.modelmount.io"
RECORD = {"driverName": DRIVER, "volumeHandle": "csi-abc", "specVolID": "model", "nodeName": "n"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "pods/the-uid/volumes/kubernetes.io~csi/model/mount"
    made.parent.mkdir(parents=True)
    return made


def test_the_handle_is_read(target: Path) -> None:
    (target.parent / "vol_data.json").write_text(json.dumps(RECORD))
    assert kubelet.volume_id(str(target), DRIVER) == "csi-abc"
    assert kubelet.volume_id(str(target), "csi.example.com") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"driverName": 1}', json.dumps({**RECORD, "volumeHandle": ""}), "x" * 100_000]
)
def test_what_is_no_record_names_nobody(target: Path, text: str) -> None:
    (target.parent / "vol_data.json").write_text(text)
    assert kubelet.volume_id(str(target), DRIVER) is None


def test_a_link_a_directory_or_a_pipe_is_no_record(target: Path, tmp_path: Path) -> None:
    assert kubelet.volume_id(str(target), DRIVER) is None
    record = target.parent / "vol_data.json"
    (tmp_path / "elsewhere.json").write_text(json.dumps(RECORD))
    record.symlink_to(tmp_path / "elsewhere.json")
    assert kubelet.volume_id(str(target), DRIVER) is None
    record.unlink()
    record.mkdir()
    assert kubelet.volume_id(str(target), DRIVER) is None
    record.rmdir()
    os.mkfifo(record)
    assert kubelet.volume_id(str(target), DRIVER) is None


def test_a_record_is_missing_only_where_nothing_is(target: Path) -> None:
    assert not kubelet.has_record(str(target))
    record = target.parent / "vol_data.json"
    record.write_text("{")
    assert kubelet.has_record(str(target)), "torn, and not ours to judge"
    record.unlink()
    record.symlink_to("nowhere")
    assert kubelet.has_record(str(target))
    assert not kubelet.has_record(str(target.parents[1] / "other/mount"))
    target.write_bytes(b"")
    assert kubelet.has_record(str(target / "beneath/mount")), "it can't be told"


def test_the_pod_is_told_from_the_path(tmp_path: Path, target: Path) -> None:
    roots = TargetRoots([tmp_path / "pods"])
    assert kubelet.pod_uid(roots.locate(str(target))) == "the-uid"
    assert kubelet.pod_uid(roots.locate(str(tmp_path / "pods/x/mount"))) == ""
