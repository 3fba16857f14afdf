"""Targets: the text is judged, no link is followed, nothing of others is taken or deleted. Rows N2 to N6 of the threat
table.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.errors import Internal, InvalidRequest, NoSpace, Precondition, Unavailable
from modelmount.system import mount, syscalls, target
from modelmount.system.target import TargetRoots
from tests.fakes import mounts

from .processes import bound, detach, mounted

NEW = mount.Capabilities(detached_mounts=True, mount_root_attribute=True, openat2=True, problem="")
WALK = mount.Capabilities(detached_mounts=True, mount_root_attribute=True, openat2=False, problem="")


@pytest.fixture(params=[NEW, WALK], ids=["openat2", "walk"])
def capabilities(request: pytest.FixtureRequest) -> mount.Capabilities:
    assert isinstance(request.param, mount.Capabilities)
    return request.param


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    path = tmp_path / "kubelet" / "pods"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def roots(pods: Path, capabilities: mount.Capabilities) -> Iterator[TargetRoots]:
    """Roots on `pods`; whatever a test does with them, no descriptor may be left open."""
    made = TargetRoots([pods], capabilities=capabilities)
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before


def every_method(roots: TargetRoots) -> list[Callable[[str], object]]:
    return [roots.open_target, roots.state, roots.unmount_target, roots.remove_target]


# --- N2: the text -------------------------------------------------------------------------------------------------

N2_TEXTS = {
    "empty": "",
    "relative": "kubelet/pods/x",
    "dots": "{pods}/x/../../../etc",
    "trailing dots": "{pods}/x/..",
    "only dots below": "{pods}/..",
    "a single dot": "{pods}/./x",
    "outside": "/etc",
    "the slash": "/",
    "the root itself": "{pods}",
    "the root with slashes": "{pods}///",
    "above the root": "{pods}/..",
    "a sibling with the root as prefix": "{pods}-evil/x",
    "a NUL": "{pods}/x\0/y",
    "a NUL at the end": "{pods}/x\0",
    "a lone surrogate": "{pods}/\ud800",
    "a long name": "{pods}/" + "n" * 256,
    "a long path": "{pods}" + "/n" * 2100,
}


@pytest.mark.parametrize("text", N2_TEXTS.values(), ids=N2_TEXTS.keys())
def test_n2_a_bad_target_path_is_an_invalid_request(roots: TargetRoots, pods: Path, text: str) -> None:
    for method in every_method(roots):
        with pytest.raises(InvalidRequest):
            method(text.replace("{pods}", str(pods)))
    assert list(pods.iterdir()) == []


def test_n2_the_message_names_the_roots_and_escapes_the_path(roots: TargetRoots, pods: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        roots.locate("/etc/\n\x1b[31mpasswd" + "/x" * 500)
    assert str(pods) in caught.value.message
    assert "\\n\\x1b" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 800


@given(st.lists(st.text(max_size=8), max_size=6))
def test_n2_any_text_is_refused_or_lies_below_the_root(parts: list[str]) -> None:
    roots = TargetRoots([Path("/usr/share")], capabilities=WALK)
    try:
        location = roots.locate("/".join(["/usr/share", *parts]))
    except InvalidRequest:
        return
    assert os.path.normpath(location.path) == location.path
    assert Path(location.path).is_relative_to("/usr/share")
    assert location.path != "/usr/share"


def test_a_path_has_one_spelling(roots: TargetRoots, pods: Path) -> None:
    assert roots.locate(f"{pods}//a///b/").path == f"{pods}/a/b"


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        TargetRoots([Path("pods")])


def test_every_absolute_path_lies_below_the_slash_as_root(tmp_path: Path, capabilities: mount.Capabilities) -> None:
    roots = TargetRoots([Path("/")], capabilities=capabilities)
    with roots.open_target(str(tmp_path / "t")) as handle:
        assert handle.created


# --- the ordinary case --------------------------------------------------------------------------------------------


def test_a_missing_target_is_made_with_its_mode_whatever_the_umask(roots: TargetRoots, pods: Path) -> None:
    before = os.umask(0o077)
    try:
        with roots.open_target(f"{pods}/t") as handle:
            assert handle.created
            assert not handle.is_mount
            assert handle.name == "t"
            assert handle.identity() == mount.identity(pods / "t")
    finally:
        os.umask(before)
    assert (pods / "t").stat().st_mode & 0o7777 == 0o750


def test_an_empty_directory_is_taken_as_it_is(roots: TargetRoots, pods: Path) -> None:
    (pods / "t").mkdir(mode=0o700)
    with roots.open_target(f"{pods}/t") as handle:
        assert not handle.created
    assert (pods / "t").stat().st_mode & 0o7777 == 0o700


def test_parents_are_never_made(roots: TargetRoots, pods: Path) -> None:
    with pytest.raises(Precondition, match="directory above"):
        roots.open_target(f"{pods}/missing/t")
    with pytest.raises(Precondition):
        roots.open_target(f"{pods}/t", create=False)
    assert list(pods.iterdir()) == []


def test_a_state_names_what_stands_there(roots: TargetRoots, pods: Path) -> None:
    (pods / "d").mkdir()
    (pods / "f").touch()
    assert roots.state(f"{pods}/missing") == roots.state(f"{pods}/missing/deeper") == target.TargetState("missing")
    assert roots.state(f"{pods}/d") == target.TargetState("directory", mount.identity(pods / "d"))
    assert roots.state(f"{pods}/f") == target.TargetState("other", mount.identity(pods / "f"))


def test_a_root_may_itself_lie_behind_symbolic_links(
    tmp_path: Path, pods: Path, capabilities: mount.Capabilities
) -> None:
    (tmp_path / "var").symlink_to(tmp_path / "kubelet")
    roots = TargetRoots([tmp_path / "var" / "pods"], capabilities=capabilities)
    for spelling in (f"{tmp_path}/var/pods/t", f"{pods}/t"):
        with roots.open_target(spelling) as handle:
            assert handle.path == f"{pods}/t"


def test_a_root_may_appear_later_and_is_resolved_then(tmp_path: Path, capabilities: mount.Capabilities) -> None:
    roots = TargetRoots([tmp_path / "late"], capabilities=capabilities)
    path = f"{tmp_path}/late/t"
    with pytest.raises(Precondition, match="does not exist"):
        roots.open_target(path)
    assert roots.state(path).kind == "missing"
    assert roots.remove_target(path) is False
    (tmp_path / "real").mkdir()
    (tmp_path / "late").symlink_to("real")
    roots.open_target(path).close()
    assert (tmp_path / "real" / "t").is_dir()


# --- N3: symbolic links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["last", "middle", "first", "dangling", "within", "relative", "magic"])
def test_n3_a_symlink_component_is_refused(roots: TargetRoots, pods: Path, tmp_path: Path, where: str) -> None:
    victim = tmp_path / "victim"
    (victim / "b" / "t").mkdir(parents=True)
    (pods / "a" / "b").mkdir(parents=True)
    links = {
        "last": (pods / "a" / "b" / "t", victim / "b" / "t"),
        "middle": (pods / "x" / "b", victim / "b"),
        "first": (pods / "x", victim),
        "dangling": (pods / "a" / "b" / "t", tmp_path / "nowhere"),
        "within": (pods / "x", pods / "a"),
        "relative": (pods / "x", Path("a")),
        "magic": (pods / "x", Path("/proc/self/cwd")),
    }
    link, to = links[where]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(to)
    path = str(link) if where in {"last", "dangling"} else f"{pods}/x/b/t"
    refusing: list[Callable[[str], object]] = [roots.open_target, roots.state, roots.remove_target]
    if where in {"last", "dangling"}:
        assert roots.unmount_target(path) == 0  # the link itself is no mount
    else:
        refusing.append(roots.unmount_target)
    for method in refusing:
        with pytest.raises(Precondition, match=r"symbolic link|not a directory"):
            method(path)
    assert link.is_symlink()
    assert (victim / "b" / "t").is_dir()
    assert not (tmp_path / "nowhere").exists()


def test_n3_a_component_that_keeps_changing_never_leads_outside(roots: TargetRoots, pods: Path, tmp_path: Path) -> None:
    """The race of CVE-2017-1002101: a component is a directory one moment and a link to the victim the next."""
    (tmp_path / "victim").mkdir()
    (pods / "a").mkdir()
    (pods / "link").symlink_to(tmp_path / "victim")
    done = threading.Event()

    def flip() -> None:
        exchange = 2  # RENAME_EXCHANGE, man 2 renameat2
        names = os.fsencode(pods / "a"), os.fsencode(pods / "link")
        while not done.is_set():
            syscalls.call("renameat2", syscalls.AT_FDCWD, names[0], syscalls.AT_FDCWD, names[1], exchange)

    flipper = threading.Thread(target=flip)
    flipper.start()
    opened = refused = 0
    try:
        while (opened < 50 or refused < 50) and opened + refused < 200_000:
            try:
                with roots.open_target(f"{pods}/a/t"):
                    opened += 1
            except Precondition:
                refused += 1
    finally:
        done.set()
        flipper.join()
    assert opened >= 50
    assert refused >= 50
    assert list((tmp_path / "victim").iterdir()) == []


# --- N4: something is there already -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "fifo", "socket directory entry"])
def test_n4_something_else_than_a_directory_is_refused(roots: TargetRoots, pods: Path, kind: str) -> None:
    if kind == "file":
        (pods / "t").write_bytes(b"precious")
    elif kind == "fifo":
        os.mkfifo(pods / "t")
    else:
        os.mknod(pods / "t", 0o140600)
    with pytest.raises(Precondition, match="not a directory"):
        roots.open_target(f"{pods}/t")
    with pytest.raises(Precondition, match="not a directory"):
        roots.remove_target(f"{pods}/t")
    assert (pods / "t").exists()


def test_n4_a_file_among_the_parents_is_refused(roots: TargetRoots, pods: Path) -> None:
    (pods / "f").touch()
    for method in every_method(roots):
        with pytest.raises(Precondition, match="not a directory"):
            method(f"{pods}/f/t")


def test_n4_a_directory_with_files_is_refused(roots: TargetRoots, pods: Path) -> None:
    (pods / "t").mkdir()
    (pods / "t" / ".hidden").touch()
    with pytest.raises(Precondition, match="files in it"):
        roots.open_target(f"{pods}/t")


@pytest.mark.mount
def test_n4_a_mount_of_something_else_is_told_by_its_identity(roots: TargetRoots, pods: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "f").touch()
    with mounted(pods / "t", "tmpfs") as path:
        (path / "file").touch()
        with roots.open_target(str(path)) as handle:
            assert handle.is_mount
            assert handle.identity() != mount.identity(ours)
        assert roots.state(str(path)) == target.TargetState("mount", mount.identity(path))
    (pods / "u").mkdir()
    with bound(ours, pods / "u"), roots.open_target(f"{pods}/u") as handle:
        assert handle.is_mount
        assert handle.identity() == mount.identity(ours)


@pytest.mark.mount
def test_n4_a_dead_mount_is_a_mount_without_identity(roots: TargetRoots, pods: Path) -> None:
    (pods / "t").mkdir()
    mounts.dead(pods / "t")
    try:
        assert roots.state(f"{pods}/t") == target.TargetState("mount")
        assert roots.unmount_target(f"{pods}/t") == 1
        assert roots.remove_target(f"{pods}/t")
    finally:
        detach(pods / "t")


# --- N5, N6: leaving ----------------------------------------------------------------------------------------------


@pytest.mark.mount
def test_n6_a_live_mount_is_unmounted_and_its_content_untouched(roots: TargetRoots, pods: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "weights").write_bytes(b"bytes")
    path = f"{pods}/t"
    with roots.open_target(path) as handle:
        mount.clone_readonly(tmp_path / "tree", handle.fd, frozenset())
    try:
        with pytest.raises(Unavailable, match="still mounted"):
            roots.remove_target(path)
        assert roots.unmount_target(path) == 1
        assert roots.unmount_target(path) == 0
        assert roots.remove_target(path)
        assert not roots.remove_target(path)
    finally:
        detach(Path(path))
    assert (tmp_path / "tree" / "weights").read_bytes() == b"bytes"


def test_n6_a_target_with_files_is_never_emptied(roots: TargetRoots, pods: Path) -> None:
    (pods / "t" / "sub").mkdir(parents=True)
    (pods / "t" / "sub" / "data").write_bytes(b"of the pod")
    with pytest.raises(Precondition, match="not ours to delete"):
        roots.remove_target(f"{pods}/t")
    assert (pods / "t" / "sub" / "data").read_bytes() == b"of the pod"


@pytest.mark.mount
def test_the_roots_keep_no_mount_busy(tmp_path: Path, capabilities: mount.Capabilities) -> None:
    with mounted(tmp_path / "pods", "tmpfs") as pods:
        roots = TargetRoots([pods], capabilities=capabilities)
        roots.open_target(f"{pods}/t").close()
        syscalls.umount2(os.fsencode(pods), 0)


@pytest.mark.mount
def test_a_full_or_read_only_disk_has_its_own_words(tmp_path: Path, capabilities: mount.Capabilities) -> None:
    with mounted(tmp_path / "pods", "tmpfs", "nr_inodes=2") as pods:
        roots = TargetRoots([pods], capabilities=capabilities)
        roots.open_target(f"{pods}/t").close()
        with pytest.raises(NoSpace, match="no space"):
            roots.open_target(f"{pods}/u")
        syscalls.mount(None, os.fsencode(pods), None, 32 | 1)  # remount read-only
        with pytest.raises(Internal) as caught:
            roots.open_target(f"{pods}/u")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EROFS
