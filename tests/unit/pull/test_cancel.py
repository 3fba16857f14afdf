"""A job that is cancelled, wherever it stands, leaves nothing behind but bytes that the next one uses."""

from __future__ import annotations

import functools
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modelmount import wiring
from modelmount.config import Settings
from modelmount.content import pulls
from modelmount.errors import Cancelled
from modelmount.formats.selection import EVERYTHING
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.fetch import Cancel
from modelmount.pull.job import Job, Waiter
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.snapshots import talk
from tests.fakes import push
from tests.fakes.registry import Registry

SECONDS = 60.0
WORKERS = ("pull-", "fetch-", "hash-", "unpack-", "sync-")
POINTS = 6


class Polls:
    """Counts how often anybody asks whether to stop; `cancel_at` is the one at which the job is cancelled."""

    def __init__(self) -> None:
        self.count = 0
        self.cancel_at: int | None = None
        self.job: Job | None = None
        self._ask = Cancel.__call__

    def __call__(self, cancel: Cancel) -> bool:
        self.count += 1
        if self.count == self.cancel_at and self.job is not None:
            self.job.cancel.set()
        return self._ask(cancel)


@pytest.fixture(scope="module", params=["raw", "tar+gzip"])
def pushed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[push.Pushed]:
    """Small and large files in a real registry, as they are or in archives."""
    directory = tmp_path_factory.mktemp("cancel")
    source = directory / "model"
    source.mkdir()
    (source / "config.json").write_bytes(b"{}\n")
    (source / "tokenizer.json").write_bytes(random.Random(1).randbytes(300_000))
    (source / "model.bin").write_bytes(random.Random(2).randbytes(6 << 20))
    with Registry(directory / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        yield pusher.artifact("llm/cancel", "v1", push.modelpack(source, packing=request.param, name="cancel"))


def pull(root: Path, pushed: push.Pushed, polls: Polls, cancel_at: int | None) -> bool:
    """Pull into the store at `root`; whether the job came to its end. Checks what it leaves behind."""
    settings = msgspec.convert(
        {"root": str(root), "registries": {pushed.host: {"plain_http": True}}, "limits": {"free_bytes": 0}}, Settings
    )
    node = wiring.build(settings)
    polls.count, polls.cancel_at, polls.job = 0, None, None
    try:
        model = Model(Repository(pushed.host, "llm/cancel"), Digest.parse(pushed.digest))
        polls.cancel_at = cancel_at
        polls.job = node.puller.ensure(model, EVERYTHING, Credential.anonymous())
        try:
            done = polls.job.wait(Waiter(), SECONDS) is not None
            assert done
        except Cancelled:
            done = False
            assert list(pulls.live_records(node.store)) == []
        assert polls.job.ended.is_set()
        assert not [t.name for t in threading.enumerate() if t.name.startswith(WORKERS) and "janitor" not in t.name]
    finally:
        node.close()
    assert [link for link in _links() if link.startswith((str(root), "socket:")) and link != _way_to_helper()] == []
    assert _flocks(root / "locks") == []
    return done


def test_nothing_is_left_behind_wherever_a_job_is_cancelled(
    tmp_path: Path, pushed: push.Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = Polls()
    monkeypatch.setattr(Cancel, "__call__", functools.partialmethod(_counted, polls))
    sockets = [link for link in _links() if link.startswith("socket:")]
    monkeypatch.setattr(f"{__name__}._links", _links_without(sockets))
    assert pull(tmp_path / "whole", pushed, polls, None)
    most = polls.count
    ends = set()
    for point in sorted({1, 3, *(most * n // POINTS for n in range(1, POINTS))}):
        root = tmp_path / str(point)
        ends.add(pull(root, pushed, polls, point))
        assert pull(root, pushed, polls, None)
    assert False in ends


def _counted(cancel: Cancel, polls: Polls) -> bool:
    return polls(cancel)


def _links() -> list[str]:
    """What this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the listing's own
    return found


def _links_without(known: list[str]) -> object:
    links = _links
    return lambda: [link for link in links() if link not in known]


def _way_to_helper() -> str:
    """The socket of the helper that starts unpackers: the process has it from the first archive on."""
    socket = talk.helper._socket
    return f"socket:[{os.fstat(socket.fileno()).st_ino}]" if socket is not None else ""


def _flocks(directory: Path) -> list[str]:
    """The files in `directory` that this process has locked (man 5 proc_locks). Others' locks come and go while the
    list is read, so nothing is counted.
    """
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {fields[5] for fields in lines if fields[4] == str(os.getpid())}
    return [path.name for path in directory.iterdir() if _inode(path.stat()) in held]


def _inode(status: os.stat_result) -> str:
    """As that list names it."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
