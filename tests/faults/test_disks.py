"""Disks that are full, sick or read-only in the middle of a pull: it ends with a sentence that says what to do, holds
nothing, keeps what is verified, and the next one goes on.

Errors are the kernel's where a file system can be made to give them, and strace's where not.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.cli.exits import Exit
from modelmount.content import pulls
from modelmount.content.store import Store
from tests.e2e.conftest import contents, random_bytes
from tests.fakes import push
from tests.fakes.registry import Registry
from tests.faults import crash, oracle
from tests.faults.processes import Ended, Node, node
from tests.faults.scene import assert_free
from tests.unit.content.powercut import Disk, powered
from tests.unit.system.processes import mounted

pytestmark = [pytest.mark.registry, pytest.mark.mount, pytest.mark.timeout(300)]

MIB = 1 << 20
WEIGHTS_BYTES = 12 * MIB


class Published:
    """A model in a registry."""

    def __init__(self, directory: Path, real: Registry) -> None:
        self.registry = real
        (directory / "model").mkdir()
        (directory / "model/model.safetensors").write_bytes(random_bytes(WEIGHTS_BYTES, 1))
        self.files = contents(directory / "model")
        self.pushed = push.Pusher(real.host, real.connection).artifact(
            "llm/tiny", "v1", push.modelpack(directory / "model")
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("disks")
    with Registry(directory / "registry") as real:
        yield Published(directory, real)


def assert_goes_on(here: Node, model: Published, ended: Ended, what: str, *, had: int) -> None:
    """After `what`: nothing wrong is visible, nothing is held, and the next pull fetches all but what the first one
    `had`.
    """
    assert oracle.faults(here.store) == []
    assert list(pulls.live_records(Store(here.store))) == [], ended
    for lock in (here.store / "locks").iterdir():
        assert_free(lock)
    here.let_go()
    done = here.pull(model.pushed)
    assert done.code == 0, done.errors
    served = here.served(model.pushed)
    assert served == model.pushed.size - had
    assert contents(Path(done.result["tree"])) == model.files
    assert oracle.faults(here.store) == []
    crash.survived(crash.DISK, what, error=ended.error, registry={"kept": had, "sent": served})


def fill(disk: Path) -> Path:
    """Leave no room on it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 << 10))
        except OSError as e:
            assert e.errno == errno.ENOSPC
    return filler


# -- full disks


def test_a_disk_that_is_too_small_is_told_in_numbers_before_anything_is_fetched(
    model: Published, tmp_path: Path
) -> None:
    with (
        powered(tmp_path, 24 * MIB) as disk,
        node(tmp_path, model.registry, hold_at=1 << 40, store=disk.path / "store") as here,
    ):
        filler = disk.path / "filler"
        filler.write_bytes(bytes(10 * MIB))
        ended = here.pull(model.pushed)
        assert ended.code == Exit.NO_SPACE, ended
        assert re.search(r"12\.6 MB more are needed on \S+, [0-9.]+ MB are free", ended.error)
        assert here.served(model.pushed) == 0
        filler.unlink()
        assert_goes_on(here, model, ended, "too small from the beginning", had=0)


def test_a_disk_that_becomes_full_in_the_middle_keeps_what_came_and_says_how_much_is_needed(
    model: Published, tmp_path: Path
) -> None:
    with (
        powered(tmp_path, 40 * MIB) as disk,
        node(tmp_path, model.registry, hold_at=WEIGHTS_BYTES // 2, store=disk.path / "store") as here,
    ):
        process = here.start(model.pushed)
        here.wait_held(process)
        filler = fill(disk.path)
        here.proxy.hold_at = None
        ended = here.end(process)
        assert ended.code == Exit.NO_SPACE, ended
        assert re.search(r"no space left to .*: [0-9.]+ MB more are needed on \S+, 0\.0 MB are free", ended.error)
        filler.unlink()
        had = here.had
        assert had >= WEIGHTS_BYTES // 2 - 2 * MIB
        assert_goes_on(here, model, ended, "full in the middle of a pull", had=had)


def test_inodes_that_run_out_are_no_space_either(model: Published, tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", "tmpfs", "size=100m,nr_inodes=400") as disk,
        node(tmp_path, model.registry, hold_at=1 << 40, store=disk / "store") as here,
    ):
        Store(here.store)
        number = 0
        try:
            for number in range(1000):
                (disk / str(number)).touch()
        except OSError as e:
            assert e.errno == errno.ENOSPC
        ended = here.pull(model.pushed)
        assert ended.code == Exit.NO_SPACE, ended
        for each in range(number):
            (disk / str(each)).unlink()
        assert_goes_on(here, model, ended, "no inodes left", had=0)


# -- sick disks


def tracer(*injections: str) -> list[str]:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    return [program, "-f", "-qq", "-o", "/dev/null", *(f"--inject={each}" for each in injections)]


@pytest.mark.parametrize(
    ("injection", "code", "saying", "keeps"),
    [
        pytest.param(
            "pwrite64:error=EIO:when=40+",
            Exit.FAILURE,
            "cannot write sha256:.*Input/output error; look at the node's disk",
            True,
            id="a write fails: EIO",
        ),
        pytest.param(
            "pwrite64:error=EROFS:when=40+", Exit.FAILURE, "Read-only file system", True, id="a write fails: EROFS"
        ),
        pytest.param("pwrite64:error=ENOSPC:when=40+", Exit.NO_SPACE, "more are needed", True, id="a write: ENOSPC"),
        pytest.param("pwrite64:error=EDQUOT:when=40+", Exit.NO_SPACE, "more are needed", True, id="a write: EDQUOT"),
        pytest.param(
            "fsync:error=EIO:when=1+", Exit.FAILURE, "Input/output error", False, id="a sync of what came fails: EIO"
        ),
        pytest.param(
            "renameat2:error=EIO:when=1+", Exit.FAILURE, "Input/output error", False, id="a commit fails: EIO"
        ),
    ],
)
def test_a_disk_that_fails(
    injection: str, code: Exit, saying: str, keeps: bool, model: Published, tmp_path: Path
) -> None:
    with node(tmp_path, model.registry, hold_at=1 << 40) as here:
        Store(here.store)
        ended = here.pull(model.pushed, under=tracer(injection))
        assert ended.code == code, ended
        assert re.search(saying, ended.error)
        had = here.had
        assert (had > 0) or not keeps
        assert_goes_on(here, model, ended, f"strace {injection}", had=had)


def test_bytes_that_cannot_be_read_back_are_fetched_again(model: Published, tmp_path: Path) -> None:
    """The journal's check meets the errors first; then the hasher, which can't go on."""
    with node(tmp_path, model.registry, hold_at=WEIGHTS_BYTES // 2) as here:
        process = here.start(model.pushed)
        here.wait_held(process)
        process.kill()
        here.end(process)
        here.proxy.hold_at = None
        ended = here.pull(model.pushed, under=tracer("preadv:error=EIO:when=3+", "preadv2:error=EIO:when=3+"))
        assert ended.code == Exit.FAILURE, ended
        assert re.search(r"cannot read sha256:\S+ back: Input/output error; look at the node's disk", ended.error)
        assert_goes_on(here, model, ended, "what was written cannot be read back", had=here.had)


def test_a_file_system_that_turns_read_only_ends_the_pull_and_after_its_repair_the_next_goes_on(
    model: Published, tmp_path: Path
) -> None:
    with (
        powered(tmp_path, 60 * MIB) as disk,
        node(tmp_path, model.registry, hold_at=WEIGHTS_BYTES // 2, store=disk.path / "store") as here,
    ):
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(disk.path)], check=True)
        process = here.start(model.pushed)
        here.wait_held(process)
        break_down(disk)
        here.proxy.hold_at = None
        ended = here.end(process)
        assert ended.code == Exit.FAILURE, ended
        assert "Read-only file system" in ended.error
        repair(disk)
        assert_works_again(here, model, ended, "read-only in the middle of a pull")


def test_a_pool_that_becomes_full_under_a_disk_with_room_on_it(model: Published, tmp_path: Path) -> None:
    """As a thin pool of the device mapper does, which not every kernel has: writes are taken, and syncs fail."""
    with (
        mounted(tmp_path / "pool", "tmpfs", "size=32m") as pool,
        powered(pool, 120 * MIB) as disk,
        node(tmp_path, model.registry, hold_at=1 << 40, store=disk.path / "store") as here,
    ):
        Store(here.store)
        room = pool / "room"
        room.write_bytes(bytes(WEIGHTS_BYTES // 2))
        filler = fill(pool)
        room.unlink()
        ended = here.pull(model.pushed)
        assert ended.code in {Exit.FAILURE, Exit.NO_SPACE}, ended
        filler.unlink()
        repair(disk)
        assert_works_again(here, model, ended, "the pool below is full in the middle of a pull")


def assert_works_again(here: Node, model: Published, ended: Ended, what: str) -> None:
    """After a repair, which may have cost bytes that no checkpoint covered."""
    assert oracle.faults(here.store) == []
    here.let_go()
    done = here.pull(model.pushed)
    assert done.code == 0, done.errors
    assert contents(Path(done.result["tree"])) == model.files
    assert oracle.faults(here.store) == []
    crash.survived(crash.DISK, what, error=ended.error, registry={"sent": here.served(model.pushed)})


def break_down(disk: Disk) -> None:
    """As if ext4 had found an error in itself."""
    device = os.stat(disk.path).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    trigger = Path("/sys/fs/ext4") / name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("this kernel can't be told to find errors")
    trigger.write_text("a test\n")


def repair(disk: Disk) -> None:
    """What an admin does."""
    subprocess.run(["umount", str(disk.path)], check=True)
    subprocess.run(["e2fsck", "-fy", str(disk.image)], capture_output=True, check=False)
    disk.attach()
