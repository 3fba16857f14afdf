"""Pulls that are ended in the middle, by whatever: the next one fetches what is missing, by the bytes in the registry's
own log.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push
from tests.fakes.registry import Registry
from tests.faults import oracle
from tests.faults.processes import BUFFERED_BYTES, OTHER_BYTES, PIECE_BYTES, Node, node
from tests.faults.scene import assert_free, wait_for
from tests.unit.content.powercut import JOURNAL_ONLY, NOTHING, powered

pytestmark = [pytest.mark.registry, pytest.mark.mount, pytest.mark.timeout(300)]

MIB = 1 << 20
SHARDS = 4
SHARD_BYTES = 7 * MIB
LARGE_BYTES = 136 * MIB
CUT_COSTS = 64 * MIB
"""What a power cut may take."""


class Published:
    """Models in one registry: some shards, the same as one archive, and one large file."""

    def __init__(self, directory: Path, real: Registry) -> None:
        self.registry = real
        pusher = push.Pusher(real.host, real.connection)
        shards, packed, large = directory / "shards", directory / "packed", directory / "large"
        for path in (shards, packed / "weights", large):
            path.mkdir(parents=True)
        for number in range(SHARDS):
            (shards / f"model-{number}.safetensors").write_bytes(random_bytes(SHARD_BYTES, number))
        (packed / "weights/model.safetensors").write_bytes(random_bytes(2 * SHARD_BYTES, 9))
        (large / "model.safetensors").write_bytes(random_bytes(LARGE_BYTES, 10))
        self.files = {"shards": contents(shards), "packed": contents(packed), "large": contents(large)}
        self.shards = pusher.artifact("llm/shards", "v1", push.modelpack(shards))
        self.packed = pusher.artifact("llm/packed", "v1", push.oras(packed, packed=["weights"]))
        self.large = pusher.artifact("llm/large", "v1", push.modelpack(large))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("resume")
    with Registry(directory / "registry") as real:
        yield Published(directory, real)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGKILL, -9, id="killed in the middle"),
        pytest.param(signal.SIGTERM, 130, id="told to end in the middle"),
        pytest.param(signal.SIGINT, 130, id="interrupted in the middle"),
    ],
)
@pytest.mark.parametrize("form", ["shards", "packed"])
def test_ended_in_the_middle(form: str, number: signal.Signals, code: int, models: Published, tmp_path: Path) -> None:
    pushed: push.Pushed = getattr(models, form)
    with node(tmp_path, models.registry, hold_at=pushed.size // 2) as here:
        process = here.start(pushed)
        here.wait_held(process)
        assert here.end(process, number).code == code
        assert not here.lost(1)
        assert oracle.faults(here.store) == []
        assert_goes_on(here, pushed, models.files[form])


def assert_goes_on(here: Node, pushed: push.Pushed, files: dict[str, bytes], *, again: int = 0) -> None:
    """The next pull fetches what is missing, and `again` bytes more."""
    had = here.had
    here.let_go()
    done = here.pull(pushed)
    assert done.code == 0, done.errors
    assert here.served(pushed) == pushed.size - had + again
    assert contents(Path(done.result["tree"])) == files
    assert oracle.faults(here.store) == []


def test_killed_with_several_connections_each_loses_at_most_a_piece(models: Published, tmp_path: Path) -> None:
    pushed = models.shards
    with node(tmp_path, models.registry, hold_at=pushed.size // 2, connections=4) as here:
        process = here.start(pushed)
        here.wait_held(process, connections=4)
        here.end(process, signal.SIGKILL)
        assert not here.lost(4)
        assert_goes_on(here, pushed, models.files["shards"])


def test_of_a_corrupt_partial_only_what_is_bad_is_fetched_again(models: Published, tmp_path: Path) -> None:
    pushed = models.shards
    with node(tmp_path, models.registry, hold_at=6 * MIB) as here:
        process = here.start(pushed)
        here.wait_held(process)
        here.end(process, signal.SIGKILL)
        pieces = here.journalled()
        bad = sorted(pieces)[1::2]
        for path, offset in bad:
            flip(path, offset + 4711)
        again = sum(pieces[piece] for piece in bad)
        assert again >= 2 * PIECE_BYTES
        assert_goes_on(here, pushed, models.files["shards"], again=again)


def flip(path: Path, offset: int) -> None:
    """One bit of a file."""
    with path.open("r+b") as data:
        data.seek(offset)
        (byte,) = data.read(1)
        data.seek(offset)
        data.write(bytes([byte ^ 0x10]))


def both_pull(here: Node, pushed: push.Pushed) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Two processes at one model, one of them in the middle of it and one in wait."""
    first = here.start(pushed)
    here.wait_held(first)
    here.proxy.hold_at, here.proxy.rate = None, 500e3  # enough for the second one's manifest
    second = here.start(pushed)
    wait_for(lambda: len(list((here.store / "pulls").glob("*.json"))) == 2, "both to pull")
    return first, second


def test_another_process_takes_over_from_a_killed_one(models: Published, tmp_path: Path) -> None:
    pushed = models.shards
    with node(tmp_path, models.registry, hold_at=SHARD_BYTES // 2) as here:
        first, second = both_pull(here, pushed)
        here.end(first, signal.SIGKILL)
        here.proxy.rate = None
        done = here.end(second)
        assert done.code == 0, done.errors
        # Each of both had a connection.
        assert here.proxy.passed <= pushed.size + 2 * (PIECE_BYTES + BUFFERED_BYTES) + OTHER_BYTES
        assert contents(Path(done.result["tree"])) == models.files["shards"]


def test_two_processes_fetch_no_byte_twice(models: Published, tmp_path: Path) -> None:
    pushed = models.shards
    with node(tmp_path, models.registry, hold_at=SHARD_BYTES // 2) as here:
        first, second = both_pull(here, pushed)
        here.proxy.rate = None
        ended = [here.end(first), here.end(second)]
        assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
        assert sum(each.result["fetched_bytes"] for each in ended) == pushed.size
        assert here.served(pushed) == pushed.size
        assert contents(Path(ended[1].result["tree"])) == models.files["shards"]
        for lock in (here.store / "locks").iterdir():
            assert_free(lock)


@pytest.mark.parametrize(
    "flag",
    [
        pytest.param(JOURNAL_ONLY, id="the power is cut in the middle: journal without data"),
        pytest.param(NOTHING, id="the power is cut in the middle: nothing flushed"),
    ],
)
def test_a_power_cut_in_the_middle(flag: int, models: Published, tmp_path: Path) -> None:
    pushed = models.large
    with (
        powered(tmp_path, 400 * MIB) as disk,
        node(tmp_path, models.registry, hold_at=96 * MIB, store=disk.path / "store") as here,
    ):
        process = here.start(pushed)
        wait_for(lambda: here.proxy.passed >= 96 * MIB or process.poll() is not None, "most of it to arrive")
        passed = here.proxy.passed
        disk.cut(flag)
        here.proxy.hold_at = None
        done = here.end(process)
        assert done.code == 1, done.errors
        disk.return_power()
        assert oracle.faults(here.store) == []
        here.let_go()
        done = here.pull(pushed)
        assert done.code == 0, done.errors
        assert here.served(pushed) <= pushed.size - passed + CUT_COSTS + OTHER_BYTES + BUFFERED_BYTES
        assert contents(Path(done.result["tree"])) == models.files["large"]
        assert oracle.faults(here.store) == []
