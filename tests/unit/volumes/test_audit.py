"""Who mounted what, a line each; nothing waits for the disk."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from modelmount.errors import Forbidden, IntegrityError, NotFound, Unavailable
from modelmount.volumes.audit import KEPT_FILES, Audit
from modelmount.volumes.publisher import Publisher
from tests.fakes.gateway import Fault, Gateway, instead
from tests.fakes.wire import Answer
from tests.unit.system.processes import mounted
from tests.unit.volumes.conftest import EVENT_SECONDS, Call, MakeNode, Node, Request, until

KEY = "csi.storage.k8s.io/"
POD = {
    KEY + "pod.name": "llm-0",
    KEY + "pod.namespace": "prod",
    KEY + "pod.uid": "u",
    KEY + "serviceAccount.name": "sa",
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does, what waits is written before a test looks."""
    monkeypatch.setattr("modelmount.volumes.audit.CLOSE_SECONDS", EVENT_SECONDS)


@pytest.mark.mount
@pytest.mark.registry
def test_mounts_refusals_and_unmounts_are_lines_with_whose_they_are(node: Node, tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "audit.jsonl"), 1 << 20)
    publisher = Publisher(node.store, node.resolver, node.puller, node.credentials, node.settings, audit=audit)
    pushed, target = node.push(), str(node.target())
    secrets = {"username": "robot$llm", "password": "s3cr3t-word"}

    def publish(model: str) -> None:
        call = Call(time.monotonic() + EVENT_SECONDS)
        publisher.publish(Request("volume", target, {"model": model, **POD}, secrets), call)

    with pytest.raises((Forbidden, NotFound)):
        publish(f"{node.registry.host}/llm/none:v1")
    for _ in range(2):
        publish(pushed.reference)  # the second time it is there
    publisher.unpublish("volume", target)
    audit.close()
    found = lines(tmp_path / "audit.jsonl")
    assert [each["event"] for each in found] == ["refused", "mounted", "unmounted"]
    who = {
        "namespace": "prod",
        "pod": "llm-0",
        "uid": "u",
        "service_account": "sa",
        "volume": "volume",
        "target": target,
    }
    assert all(each.items() >= who.items() for each in found[:2])
    assert "not found or no access" in found[0]["reason"]
    facts = {
        "model": pushed.reference, "digest": pushed.digest, "how": "pulled", "proof": "registry",
        "registry_account": "robot$llm",
    }  # fmt: skip
    assert found[1].items() >= facts.items()
    assert "s3cr3t-word" not in (tmp_path / "audit.jsonl").read_text()
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.mount
@pytest.mark.registry
def test_an_odd_answer_is_a_refusal_too_and_trouble_is_none(make_node: MakeNode, tmp_path: Path) -> None:
    """Whether the model is here or not: what ends a record of access has a line."""
    with Gateway(make_node().registry) as gateway:
        node = make_node(registries={gateway.host: {"plain_http": True}})
        model = node.push().reference.replace(node.registry.host, gateway.host)
        audit = Audit(str(tmp_path / "audit.jsonl"), 1 << 20)
        publisher = Publisher(node.store, node.resolver, node.puller, node.credentials, node.settings, audit=audit)

        def publish(answer: Answer | None) -> None:
            gateway.calm()
            if answer is not None:
                gateway.play(Fault(lambda _: True, instead(answer), times=None))
            pod = uuid.uuid4().hex
            target, call = str(node.target(pod)), Call(time.monotonic() + EVENT_SECONDS)
            publisher.publish(Request(pod, target, {"model": model, **POD}), call)

        for status in (451, 503):
            with pytest.raises(Unavailable):
                publish(Answer(status))
        publish(None)
        with pytest.raises(Unavailable):
            publish(Answer(451))
        with pytest.raises(IntegrityError):
            publish(Answer(200, b"<html>Who are you?</html>", [("Content-Type", "text/html")]))
        audit.close()
    found = lines(tmp_path / "audit.jsonl")
    assert [each["event"] for each in found] == ["refused", "mounted", "refused", "refused"]
    assert all("answered 451" in found[each]["reason"] and found[each]["pod"] == "llm-0" for each in (0, 2))
    assert "other bytes" in found[3]["reason"]


def test_files_are_rotated_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(str(path), 4096)
    for number in range(400):
        audit.record("mounted", number=number + 1, filler="x" * 100)
    audit.close()
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["audit.jsonl", *(f"audit.jsonl.{n}" for n in range(1, KEPT_FILES + 1))]
    assert all(each.stat().st_size <= 4096 for each in tmp_path.iterdir())
    kept = [each["number"] for n in range(KEPT_FILES, 0, -1) for each in lines(Path(f"{path}.{n}"))]
    kept += [each["number"] for each in lines(path)]
    assert kept == list(range(kept[0], 401))


def test_a_disk_that_takes_nothing_delays_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit(str(tmp_path / "missing" / "audit.jsonl"), 4096)
    for _ in range(3):
        audit.record("mounted", number=1)
    audit.close()
    assert sum("can't be written" in record.getMessage() for record in caplog.records) == 1


def test_what_does_not_fit_into_memory_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.volumes.audit.WAITING", 2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    audit = Audit(str(pipe), 4096)  # its thread waits for a reader
    for number in range(20):
        audit.record("mounted", number=number + 1)
    with pipe.open("rb", buffering=0) as reader:
        audit.close()
        told = reader.read(1 << 16)
    written = [json.loads(line) for line in told.splitlines()]
    dropped = sum(each.get("entries", 0) for each in written)
    assert dropped + sum("number" in each for each in written) == 20
    assert dropped >= 17


def test_without_a_file_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit("", 4096)
    with caplog.at_level(logging.DEBUG):
        audit.record("mounted")
        audit.close()
    assert caplog.records == []


@pytest.mark.mount
def test_a_disk_that_is_full_in_the_middle_of_a_line_spoils_no_other(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "tmpfs", "size=4k") as disk:
        audit = Audit(str(disk / "audit.jsonl"), 1 << 20)
        for event, size in (("one", 1), ("two", 5000), ("two", 5000), ("three", 1)):
            audit.record(event, pod="x" * size)
        audit.close()
        found = lines(disk / "audit.jsonl")
        assert [line["event"] for line in found] == ["one", "three", "dropped"]
        assert found[-1]["entries"] == 2


def test_entries_that_were_lost_last_are_counted_once_the_disk_takes_some_again(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    audit = Audit(str(directory / "audit.jsonl"), 1 << 20)
    for _ in range(3):
        audit.record("mounted", number=1)
    until(lambda: audit.dropped == 3)
    directory.mkdir()
    audit.close()
    assert [(line["event"], line["entries"]) for line in lines(directory / "audit.jsonl")] == [("dropped", 3)]


def test_half_a_line_of_before_a_power_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"event": "whole"}\n{"event": "ha')
    for event in ("one", "two"):
        audit = Audit(str(path), 1 << 20)
        audit.record(event)
        audit.close()
    _, half, *others = path.read_text().splitlines()
    assert half == '{"event": "ha'
    assert [json.loads(line)["event"] for line in others] == ["one", "two"]


def test_nobody_writes_lines_of_his_own(tmp_path: Path) -> None:
    """What was named, in whatever characters, stays within its own value."""
    forged = 'x\n{"event": "mounted", "pod": "victim"}\r\u2028\u0085\x1b[2K\x00", "event": "mounted'
    audit = Audit(str(tmp_path / "audit.jsonl"), 1 << 20)
    audit.record("refused", pod=forged, model=forged, reason=forged)
    audit.close()
    (line,) = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert line.isascii()
    assert all(byte >= 0x20 for byte in line)
    found = json.loads(line)
    assert (found["event"], found["pod"], found["model"], found["reason"]) == ("refused", forged, forged, forged)
