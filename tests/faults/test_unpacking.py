"""Whoever unpacks an archive ends in the middle of it: that archive fails with a sentence, and the next pull goes on
from what was downloaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push
from tests.fakes.registry import Registry
from tests.faults import oracle
from tests.faults.processes import Node, node
from tests.faults.scene import wait_for

pytestmark = [pytest.mark.registry, pytest.mark.mount, pytest.mark.timeout(300)]

ARCHIVE_BYTES = 6 << 20


class Published:
    """A model that is one packed directory, in a real registry."""

    def __init__(self, directory: Path, real: Registry) -> None:
        self.registry = real
        files = directory / "files"
        (files / "weights").mkdir(parents=True)
        (files / "weights/model.safetensors").write_bytes(random_bytes(ARCHIVE_BYTES, 9))
        self.files = contents(files)
        pusher = push.Pusher(real.host, real.connection)
        self.packed = pusher.artifact("llm/packed", "v1", push.oras(files, packed=["weights"]))
        self.plain = pusher.artifact("llm/plain", "v1", push.modelpack_archive(files, packing="tar"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("unpacking")
    with Registry(directory / "registry") as real:
        yield Published(directory, real)


def children(pid: int) -> list[int]:
    """The living processes whose parent this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if parent == str(pid) and state != "Z":
            found.append(int(path.parent.name))
    return found


def unpackers(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The helper of a pull that is unpacking, and the process that unpacks."""
    found: list[tuple[int, int]] = []

    def looks() -> bool:
        found[:] = [(helper, worker) for helper in children(process.pid) for worker in children(helper)]
        return len(found) == 1

    wait_for(looks, "an archive to be unpacked")
    return found[0]


@pytest.mark.parametrize("which", [pytest.param(1, id="the worker is killed"), pytest.param(0, id="its helper is")])
@pytest.mark.parametrize("name", ["packed", "plain"])
def test_who_unpacks_is_killed_in_the_middle(name: str, which: int, model: Published, tmp_path: Path) -> None:
    pushed: push.Pushed = getattr(model, name)
    with node(tmp_path, model.registry, hold_at=pushed.size // 2) as here:
        process = here.start(pushed)
        here.wait_held(process)
        pids = unpackers(process)
        os.kill(pids[which], signal.SIGKILL)
        wait_for(lambda: not is_alive(pids[1]), "the worker to end")
        here.proxy.hold_at = None
        ended = here.end(process)
        assert ended.code == 5, ended.errors
        assert f"archive {pushed.layers[0]}: the process that unpacks it" in ended.error
        assert_goes_on(here, model, pushed)


@pytest.mark.parametrize("name", ["packed", "plain"])
def test_a_killed_pull_takes_who_unpacks_with_it(name: str, model: Published, tmp_path: Path) -> None:
    pushed: push.Pushed = getattr(model, name)
    with node(tmp_path, model.registry, hold_at=pushed.size // 2) as here:
        process = here.start(pushed)
        here.wait_held(process)
        pids = unpackers(process)
        here.end(process, signal.SIGKILL)
        wait_for(lambda: not any(is_alive(pid) for pid in pids), "all of it to end")
        assert oracle.faults(here.store) == []
        assert_goes_on(here, model, pushed)


def assert_goes_on(here: Node, model: Published, pushed: push.Pushed) -> None:
    """The next pull fetches nothing twice, and what it shows is root's."""
    had = here.had
    here.let_go()
    done = here.pull(pushed)
    assert done.code == 0, done.errors
    assert here.served(pushed) == pushed.size - had
    tree = Path(done.result["tree"])
    assert contents(tree) == model.files
    assert {path.stat().st_uid for path in here.store.rglob("*")} == {os.geteuid()}
    assert oracle.faults(here.store) == []


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, whom nobody has waited for, doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
