from __future__ import annotations

import os
import socket
import stat
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import listener, sockets
from tests.unit.service.conftest import Door, eventually


@pytest.fixture
def served(directory: Path) -> listener.Listener:
    return listener.Listener(directory / "a.sock", [], workers=1, name="test")


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


def test_a_socket_is_accessible_to_its_owner_only_and_the_umask_of_the_process_stays(served: listener.Listener) -> None:
    before = os.umask(0o022)
    try:
        served.start()
        assert os.umask(0o022) == 0o022
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
        served.stop(0)


def test_other_threads_keep_their_umask_while_a_socket_is_bound() -> None:
    def look() -> int:
        value = os.umask(0o022)
        os.umask(value)
        return value

    def compare() -> tuple[int, int]:
        with futures.ThreadPoolExecutor(1) as other:
            return look(), other.submit(look).result()

    with futures.ThreadPoolExecutor(1) as bystander:
        outside = bystander.submit(look).result()
        inside = sockets._with_private_umask(lambda: (look(), bystander.submit(look).result()))
    assert inside == (0o077, outside)


def test_a_dead_socket_in_the_way_is_replaced(served: listener.Listener) -> None:
    dead_socket(served.path)
    served.start()
    assert connects(served.path)
    served.stop(0)


def test_a_living_socket_in_the_way_is_left_alone_and_refused(directory: Path, served: listener.Listener) -> None:
    served.start()
    second = listener.Listener(served.path, [], workers=1, name="second")
    with pytest.raises(errors.Precondition, match="another process serves"):
        second.start()
    second.stop(0)
    assert served.is_reachable()
    assert connects(served.path)
    served.stop(0)


def test_a_living_socket_with_a_full_backlog_is_alive(directory: Path) -> None:
    path = directory / "full.sock"
    with (
        socket.socket(socket.AF_UNIX) as busy,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
    ):
        busy.bind(str(path))
        busy.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(errors.Precondition, match="another process serves"):
            sockets.remove_stale(path)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling"])
def test_anything_but_a_socket_in_the_way_is_refused_and_kept(served: listener.Listener, kind: str) -> None:
    if kind == "file":
        served.path.write_text("mine")
    elif kind == "directory":
        served.path.mkdir()
    else:
        served.path.symlink_to("/etc/passwd" if kind == "symlink" else "/nowhere")
    with pytest.raises(errors.Precondition, match="isn't a socket"):
        served.start()
    assert os.path.lexists(served.path)


def test_a_missing_directory_is_refused_with_its_name(directory: Path) -> None:
    missing = listener.Listener(directory / "no" / "a.sock", [], workers=1, name="test")
    with pytest.raises(errors.Precondition, match=r"no/a\.sock"):
        missing.start()


def test_a_path_over_107_bytes_is_refused_with_the_limit(directory: Path) -> None:
    with pytest.raises(errors.Precondition, match="107"):
        listener.Listener(directory / ("x" * 107), [], workers=1, name="test").start()


def test_a_path_with_percent_signs_and_spaces_is_served_as_it_is_written(directory: Path) -> None:
    (directory / "a %41#?b").mkdir()
    odd = listener.Listener(directory / "a %41#?b" / "c%2F s.sock", [], workers=1, name="test")
    odd.start()
    assert connects(odd.path)
    with grpc.insecure_channel(sockets.target(odd.path)) as channel:
        grpc.channel_ready_future(channel).result(60)
    odd.stop(0)
    assert not odd.path.exists()


def test_stopping_removes_the_socket(served: listener.Listener) -> None:
    served.start()
    served.stop(0)
    assert not os.path.lexists(served.path)


def test_stopping_an_old_server_leaves_the_socket_of_a_newer_one(served: listener.Listener) -> None:
    served.start()
    served.path.unlink()
    newer = listener.Listener(served.path, [], workers=1, name="newer")
    newer.start()
    assert not served.is_reachable()
    served.stop(0)
    assert newer.is_reachable()
    assert connects(newer.path)
    newer.stop(0)


def test_a_socket_that_is_removed_and_made_again_is_not_ours_even_with_the_same_inode_number(
    served: listener.Listener,
) -> None:
    served.start()
    assert served.is_reachable()
    for _ in range(50):  # the file system likes to give the number of a removed file to the next one
        served.path.unlink()
        assert not served.is_reachable()
        dead_socket(served.path)
        assert not served.is_reachable()
    served.stop(0)
    assert os.path.lexists(served.path)


def test_no_descriptor_is_left_open_by_a_server_that_came_and_went(directory: Path) -> None:
    def sockets_and_directories() -> list[str]:
        links = []
        for fd in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(fd.readlink()))
            except OSError:
                continue
        return [link for link in links if str(directory) in link]

    for _ in range(3):
        one = listener.Listener(directory / "a.sock", [], workers=1, name="test")
        one.start()
        one.stop(0)
    assert sockets_and_directories() == []


def test_the_directory_of_the_csi_socket_is_made_private_and_holds_nothing_else(door: Door) -> None:
    path = door.settings.socket_path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["csi.sock"]
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("replaced", [False, True])
def test_losing_the_csi_socket_is_fatal_once(door: Door, *, replaced: bool) -> None:
    door.identity.Probe(csi_pb2.ProbeRequest())
    door.settings.socket_path.unlink()
    if replaced:
        dead_socket(door.settings.socket_path)
    eventually(lambda: bool(door.fatal))
    door.server.check()
    assert len(door.fatal) == 1
    assert "removed or replaced" in door.fatal[0]
    door.identity.Probe(csi_pb2.ProbeRequest())  # connections that exist go on
    door.server.stop(0)
    assert os.path.lexists(door.settings.socket_path) == replaced
