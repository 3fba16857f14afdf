from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.registration import registration_pb2
from csi.v1 import csi_pb2
from modelmount import errors
from modelmount.service import registration
from tests.fakes.publisher import EVENT_SECONDS
from tests.unit.service.conftest import Door, eventually, raw


def test_the_driver_introduces_itself_as_a_csi_plugin_with_its_endpoint(door: Door) -> None:
    assert door.registration.GetInfo(registration_pb2.InfoRequest()) == registration_pb2.PluginInfo(
        type="CSIPlugin",
        name="csi.modelmount.io",
        endpoint=str(door.settings.socket_path),
        supported_versions=["1.0.0"],
    )


def test_the_service_has_the_name_that_kubelets_call(door: Door) -> None:
    call = raw(door.registration_channel, "/pluginregistration.Registration/GetInfo")
    assert b"CSIPlugin" in call(b"")


def test_the_endpoint_may_have_another_path_for_the_kubelet(open_door: Callable[..., Door]) -> None:
    door = open_door(registration_endpoint="/var/lib/k0s/kubelet/plugins/csi.modelmount.io/csi.sock")
    info = door.registration.GetInfo(registration_pb2.InfoRequest())
    assert info.endpoint == "/var/lib/k0s/kubelet/plugins/csi.modelmount.io/csi.sock"


def test_the_socket_is_named_after_the_driver_and_private(door: Door) -> None:
    assert [p.name for p in (door.directory / "reg").iterdir()] == ["csi.modelmount.io-reg.sock"]
    assert stat.S_IMODE(door.registration_socket.stat().st_mode) == 0o600


def test_registration_can_be_switched_off(open_door: Callable[..., Door]) -> None:
    door = open_door(registration_dir="none")
    assert not door.registration_socket.exists()
    door.identity.Probe(csi_pb2.ProbeRequest())


def test_nothing_appears_in_the_kubelets_directory_while_the_csi_socket_is_silent(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_ANSWER_SECONDS", 0.2)
    silent = directory / "csi.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(silent))
        listening.listen()
        early = registration.Registration(
            directory / "reg", driver_name="csi.x.io", endpoint=str(silent), csi_socket=silent, on_refused=print
        )
        with pytest.raises(errors.Unavailable, match=r"csi\.sock doesn't answer"):
            early.start()
    assert list((directory / "reg").iterdir()) == []


def test_a_start_that_fails_leaves_no_socket_behind(open_door: Callable[..., Door], directory: Path) -> None:
    (directory / "reg" / "csi.modelmount.io-reg.sock").write_text("in the way")
    with pytest.raises(errors.Precondition, match="isn't a socket"):
        open_door()
    assert list((directory / "csi").iterdir()) == []


def test_success_is_taken_note_of(door: Door) -> None:
    door.registration.NotifyRegistrationStatus(registration_pb2.RegistrationStatus(plugin_registered=True))
    assert door.fatal == []


def test_a_refusal_by_the_kubelet_stops_the_driver_with_the_reason_on_one_line(door: Door) -> None:
    refused = registration_pb2.RegistrationStatus(plugin_registered=False, error="unsupported\nversion " + "x" * 5000)
    door.registration.NotifyRegistrationStatus(refused)
    door.registration.NotifyRegistrationStatus(refused)
    eventually(lambda: bool(door.fatal))
    (reason,) = door.fatal
    assert reason.startswith("the kubelet refused to register csi.modelmount.io: unsupported\\nversion xxx")
    assert len(reason) < 1200


def test_a_vanished_socket_is_made_again_and_the_csi_socket_stays(door: Door) -> None:
    inode = door.settings.socket_path.stat().st_ino
    door.registration_socket.unlink()
    eventually(door.registration_socket.exists)
    assert door.registration.GetInfo(registration_pb2.InfoRequest(), wait_for_ready=True, timeout=EVENT_SECONDS).name
    assert door.settings.socket_path.stat().st_ino == inode
    assert door.fatal == []


def test_a_directory_that_vanishes_and_returns_gets_its_socket_again(door: Door) -> None:
    aside = door.directory / "aside"
    (door.directory / "reg").rename(aside)
    door.server.check()
    (door.directory / "reg").mkdir()
    eventually(door.registration_socket.exists)
    assert door.fatal == []


def test_a_living_socket_of_somebody_else_is_not_fought_over(door: Door) -> None:
    with socket.socket(socket.AF_UNIX) as registrar:
        other = door.directory / "other.sock"
        registrar.bind(str(other))
        registrar.listen()
        other.rename(door.registration_socket)
        inode = door.registration_socket.stat().st_ino
        for _ in range(3):
            door.server.check()
        assert door.registration_socket.stat().st_ino == inode
    eventually(lambda: answers(door.registration_socket))  # not by its inode: the freed number may come again
    assert door.fatal == []


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


def test_stopping_removes_both_sockets(door: Door) -> None:
    door.server.stop(EVENT_SECONDS)
    assert not os.path.lexists(door.registration_socket)
    assert not os.path.lexists(door.settings.socket_path)
