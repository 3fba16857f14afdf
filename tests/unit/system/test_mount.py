"""A publication is read-only, cannot be diverted, leaves nothing behind, and is told from a plain directory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelmount.system import atomic, mount, syscalls
from modelmount.system.mount import Capabilities
from tests.fakes import mounts
from tests.unit.content import powercut

from .processes import bound, detach, environment, mounted

pytestmark = pytest.mark.mount

NEW = mount.probe()
OLD = Capabilities(detached_mounts=False, mount_root_attribute=False, openat2=False, problem="as on Linux 5.4")
KERNELS = pytest.mark.parametrize("kernel", [NEW, OLD], ids=["new", "old"])
ALL_FLAGS = frozenset(mount.FLAGS)
MS_SHARED = 1 << 20


class Place:
    """A source with a file in it, a target, and a way to mount the one on the other."""

    def __init__(self, directory: Path, kernel: Capabilities) -> None:
        self.source, self.target, self.staging = directory / "source", directory / "target", directory / "staging"
        self.kernel = kernel
        for path in (self.source, self.target, self.staging):
            path.mkdir()
        (self.source / "weights").write_bytes(b"bytes")

    def publish(self, flags: frozenset[str] = ALL_FLAGS, target: Path | int | None = None) -> None:
        mount.clone_readonly(
            self.source,
            self.target if target is None else target,
            flags,
            capabilities=self.kernel,
            staging=self.staging,
        )

    def entries(self) -> list[mount.MountEntry]:
        return [e for e in mount.mountinfo() if e.mount_point == str(self.target)]


@pytest.fixture(params=[NEW, OLD], ids=["new", "old"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(tmp_path, request.param)
    try:
        yield made
    finally:
        detach(made.target)
        assert [e for e in mount.mountinfo() if e.mount_point.startswith(str(tmp_path))] == []


def test_this_kernel_is_probed_right() -> None:
    assert Capabilities(detached_mounts=True, mount_root_attribute=True, openat2=True, problem="") == NEW


def test_a_probe_without_the_calls_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_doors", {})
    old = mount.probe.__wrapped__()
    assert (old.detached_mounts, old.mount_root_attribute, old.openat2) == (False, False, False)
    assert old.problem.startswith("ENOSYS")


def test_a_publication_is_the_source_with_all_flags(place: Place) -> None:
    place.publish()
    (entry,) = place.entries()
    assert entry.options >= {"ro", "nosuid", "nodev", "noexec"}
    assert entry.root.endswith("/source")
    assert (place.target / "weights").read_bytes() == b"bytes"
    assert mount.identity(place.target) == mount.identity(place.source)
    assert list(place.staging.iterdir()) == []


def test_without_flags_it_is_only_read_only(place: Place) -> None:
    place.publish(frozenset())
    (entry,) = place.entries()
    assert "ro" in entry.options
    assert entry.options.isdisjoint({"nosuid", "nodev", "noexec"})


def test_what_the_source_forbids_stays_forbidden(place: Place) -> None:
    with bound(place.source, place.source):
        syscalls.mount(None, os.fsencode(place.source), None, 4096 | 32 | mount.FLAGS["noexec"])
        place.publish(frozenset({"nodev"}))
        (entry,) = place.entries()
    assert entry.options >= {"ro", "nodev", "noexec"}


def test_an_unknown_flag_is_refused(place: Place) -> None:
    with pytest.raises(ValueError, match="suid"):
        place.publish(frozenset({"suid"}))
    assert place.entries() == []


def test_n9_every_way_to_write_is_refused(place: Place) -> None:
    place.publish()
    target, weights = place.target, place.target / "weights"
    fd = os.open(weights, os.O_RDONLY)
    attempts = {
        "create": lambda: os.open(target / "new", os.O_CREAT | os.O_WRONLY),
        "open": lambda: os.open(weights, os.O_WRONLY),
        "reopen": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
        "tmpfile": lambda: os.open(target, os.O_TMPFILE | os.O_RDWR),
        "link": lambda: os.link(weights, target / "new"),
        "unlink": lambda: os.unlink(weights),
        "rename": lambda: os.rename(weights, target / "new"),
        "mkdir": lambda: os.mkdir(target / "new"),
        "chmod": lambda: os.chmod(weights, 0o777),
        "chown": lambda: os.chown(weights, 1, 1),
        "utime": lambda: os.utime(weights),
        "setxattr": lambda: os.setxattr(weights, "user.x", b"y"),
        "truncate": lambda: os.truncate(weights, 0),
    }
    try:
        answers = {name: errno_of(attempt) for name, attempt in attempts.items()}
    finally:
        os.close(fd)
    assert answers == dict.fromkeys(attempts, errno.EROFS)
    assert [p.name for p in place.source.iterdir()] == ["weights"]


def errno_of(attempt: object) -> int | None:
    assert callable(attempt)
    try:
        attempt()
    except OSError as e:
        return e.errno
    return None


def test_n9_root_without_cap_sys_admin_cannot_remount_it_writable(place: Place) -> None:
    place.publish()
    code = (
        "import os, sys\nfrom modelmount.system import syscalls\n"
        "try: syscalls.mount(None, os.fsencode(sys.argv[1]), None, 32 | 4096)\n"
        "except OSError as e: print(e.errno)"
    )
    argv = ["setpriv", "--bounding-set=-sys_admin", "--", sys.executable, "-c", code]
    done = subprocess.run(
        [*argv, str(place.target)], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == str(errno.EPERM)
    assert "ro" in place.entries()[0].options


def test_n10_setuid_devices_and_programs_are_inert(place: Place) -> None:
    os.mknod(place.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (place.source / "program").write_text("#!/bin/sh\n")
    (place.source / "program").chmod(0o4755)
    place.publish()
    with pytest.raises(PermissionError):
        (place.target / "null").read_bytes()
    with pytest.raises(PermissionError):
        subprocess.run([str(place.target / "program")], check=False)
    assert os.statvfs(place.target).f_flag & os.ST_NOSUID


def test_a_kill_or_error_before_attaching_leaves_no_mount(place: Place) -> None:
    with atomic.armed("system.mount.before_attach=error(EIO)"), pytest.raises(OSError):
        place.publish()
    assert place.entries() == []
    assert list(place.staging.iterdir()) == []


@pytest.mark.parametrize("missing", ["source", "target"])
def test_a_missing_directory_is_an_error_and_leaves_nothing(place: Place, missing: str) -> None:
    if missing == "source":
        place.source = place.source / "missing"
        with pytest.raises(FileNotFoundError):
            place.publish()
    else:
        with pytest.raises(FileNotFoundError):
            place.publish(target=place.target / "missing")
    assert list(place.staging.iterdir()) == []


def test_n3_a_symlink_is_no_target_and_no_source(place: Place, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place.target)
    with pytest.raises(NotADirectoryError):
        place.publish(target=tmp_path / "link")
    (tmp_path / "to_source").symlink_to(place.source)
    place.source = tmp_path / "to_source"
    with pytest.raises(NotADirectoryError):
        place.publish()
    assert place.entries() == []


def test_n3_a_target_swapped_for_a_symlink_after_opening_diverts_nothing(place: Place, tmp_path: Path) -> None:
    victim, moved = tmp_path / "victim", tmp_path / "moved"
    victim.mkdir()
    fd = os.open(place.target, os.O_PATH | os.O_DIRECTORY)
    try:
        place.target.rename(moved)
        place.target.symlink_to(victim)
        place.publish(target=fd)
        assert not mount.is_mount_root(victim)
        assert mount.is_mount_root(moved)
    finally:
        os.close(fd)
        detach(moved)


def test_a_target_deleted_after_opening_is_an_error(place: Place) -> None:
    fd = os.open(place.target, os.O_PATH | os.O_DIRECTORY)
    try:
        place.target.rmdir()
        with pytest.raises(FileNotFoundError):
            place.publish(target=fd)
    finally:
        os.close(fd)
    assert list(place.staging.iterdir()) == []


def test_mounts_made_later_cross_neither_way(place: Place, tmp_path: Path) -> None:
    """A clone of a shared mount is its peer unless made private: a pod's mount would reach the store and every pod."""
    store = tmp_path / "store"
    place.source.rename(store)
    (store / "sub").mkdir()
    place.source = store
    other = tmp_path / "other"
    other.mkdir()
    with bound(store, store, MS_SHARED):
        place.publish()
        place.publish(target=other)
        try:
            with mounted_on(place.target / "sub"):
                assert not mount.is_mount_root(store / "sub")
                assert not mount.is_mount_root(other / "sub")
            with mounted_on(store / "sub"):
                assert not mount.is_mount_root(place.target / "sub")
        finally:
            detach(other)


@contextmanager
def mounted_on(path: Path) -> Iterator[None]:
    syscalls.mount(b"test", os.fsencode(path), b"tmpfs", 0)
    try:
        yield
    finally:
        detach(path)


def test_mounts_below_the_source_do_not_come_along(place: Place) -> None:
    with mounted(place.source / "inner", "tmpfs"):
        (place.source / "inner" / "f").touch()
        place.publish()
        assert list((place.target / "inner").iterdir()) == []


def test_unmount_takes_a_whole_stack_and_then_nothing(place: Place) -> None:
    for _ in range(3):
        place.publish()
    assert len(place.entries()) == 3
    assert mount.unmount(place.target) == 3
    assert place.entries() == []
    assert mount.unmount(place.target) == 0
    place.target.rmdir()
    assert mount.unmount(place.target) == 0
    assert mount.unmount(place.target / "deeper") == 0


def test_unmount_detaches_a_busy_mount_and_readers_go_on(place: Place) -> None:
    place.publish()
    with (place.target / "weights").open("rb") as reader:
        assert mount.unmount(place.target) == 1
        assert reader.read() == b"bytes"
        place.target.rmdir()


def test_unmount_takes_nested_mounts_along(place: Place) -> None:
    (place.source / "sub").mkdir()
    place.publish()
    syscalls.mount(b"test", os.fsencode(place.target / "sub"), b"tmpfs", 0)
    assert mount.unmount(place.target) == 1
    assert [e for e in mount.mountinfo() if e.mount_point.startswith(str(place.target))] == []


def test_unmount_by_descriptor_ignores_a_swapped_parent(place: Place, tmp_path: Path) -> None:
    pods, elsewhere = tmp_path / "pods", tmp_path / "elsewhere"
    for directory in (pods / "t", elsewhere / "t"):
        directory.mkdir(parents=True)
        place.publish(target=directory)
    fd = os.open(pods, os.O_PATH | os.O_DIRECTORY)
    try:
        pods.rename(tmp_path / "moved")
        pods.symlink_to(elsewhere)
        assert mount.unmount("t", dir_fd=fd) == 1
        assert mount.is_mount_root(elsewhere / "t")
        assert not mount.is_mount_root(tmp_path / "moved" / "t")
    finally:
        os.close(fd)
        detach(elsewhere / "t")
        detach(tmp_path / "moved" / "t")


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "/"])
def test_unmount_with_a_descriptor_takes_one_plain_name(tmp_path: Path, name: str) -> None:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(ValueError, match="plain name"):
            mount.unmount(name, dir_fd=fd)
    finally:
        os.close(fd)


def test_n3_unmount_does_not_follow_a_symlink_to_a_mount(place: Place, tmp_path: Path) -> None:
    place.publish()
    (tmp_path / "link").symlink_to(place.target)
    assert mount.unmount(tmp_path / "link") == 0
    assert len(place.entries()) == 1


def test_n3_a_symlink_that_replaces_the_target_just_before_unmounting_is_not_followed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    (tmp_path / "link").symlink_to(place.target)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="umount2"):
        patch.setattr(mount, "is_mount_root", lambda *_, **__: True)  # what was true a moment ago
        mount.unmount(tmp_path / "link")
    assert len(place.entries()) == 1


def test_a_mount_that_the_kernel_will_not_remove_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: bytes, flags: int) -> None:
        raise OSError(errno.EINVAL, "locked")

    with mounted(tmp_path / "m", "tmpfs") as path, monkeypatch.context() as patch:
        patch.setattr(syscalls, "umount2", refuse)
        with pytest.raises(OSError, match="locked"):
            mount.unmount(path)


@KERNELS
def test_a_bind_within_one_file_system_is_seen(tmp_path: Path, kernel: Capabilities) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.mkdir()
    target.mkdir()
    (tmp_path / "link").symlink_to("t")
    with bound(source, target):
        assert not os.path.ismount(target)  # the reason for a test of our own
        assert mount.is_mount_root(target, capabilities=kernel)
        assert not mount.is_mount_root(tmp_path / "link", capabilities=kernel)
        assert not mount.is_mount_root(source, capabilities=kernel)
        fd = os.open(target, os.O_PATH)
        parent = os.open(tmp_path, os.O_PATH)
        try:
            assert mount.is_mount_root(fd, capabilities=kernel)
            assert not mount.is_mount_root(parent, capabilities=kernel)
            assert mount.is_mount_root("t", dir_fd=parent, capabilities=kernel)
            assert not mount.is_mount_root("s", dir_fd=parent, capabilities=kernel)
        finally:
            os.close(fd)
            os.close(parent)
    assert not mount.is_mount_root(target, capabilities=kernel)


@KERNELS
def test_what_is_missing_is_no_mount(tmp_path: Path, kernel: Capabilities) -> None:
    (tmp_path / "file").touch()
    assert not mount.is_mount_root(tmp_path / "missing", capabilities=kernel)
    assert not mount.is_mount_root(tmp_path / "missing" / "deeper", capabilities=kernel)
    assert not mount.is_mount_root(tmp_path / "file" / "deeper", capabilities=kernel)


def test_a_file_bind_is_a_mount_root(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    with bound(tmp_path / "a", tmp_path / "b"):
        assert mount.is_mount_root(tmp_path / "b")
        assert mount.identity(tmp_path / "b") == mount.identity(tmp_path / "a")


def test_a_dead_fuse_mount_is_seen_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "dead"
    path.mkdir()
    mounts.dead(path)
    try:
        with pytest.raises(OSError) as caught:
            mount.identity(path)
        assert caught.value.errno == errno.ENOTCONN
        assert mount.is_mount_root(path)
        assert mount.unmount(path) == 1
        assert not mount.is_mount_root(path)
    finally:
        detach(path)


def test_a_mount_of_an_xfs_whose_disk_is_gone_is_seen_and_removed(tmp_path: Path) -> None:
    with powercut.powered(tmp_path, 320 << 20, "xfs") as disk:
        (disk.path / "tree").mkdir()
        (tmp_path / "target").mkdir()
        with bound(disk.path / "tree", tmp_path / "target") as target:
            disk.cut(powercut.NOTHING)
            with pytest.raises(OSError) as caught:
                os.stat(target)
            assert caught.value.errno == errno.EIO
            assert mount.is_mount_root(target)
            assert mount.unmount(target) == 1
            assert not mount.is_mount_root(target)
