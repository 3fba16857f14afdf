"""Real sockets on loopback; only the resolver is ours, so that names can mean what they mean to an attacker."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from modelmount.errors import Forbidden, Unavailable
from modelmount.transport.addresses import Reach
from modelmount.transport.dial import SLACK, Dialer, Timed
from tests.fakes.wire import Names

METADATA = "169.254.169.254"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def test_the_address_that_was_judged_is_the_one_connected_to(listener: socket.socket) -> None:
    names = Names({"registry.test": ["127.0.0.1"]})
    with Dialer(names).connect("registry.test", port_of(listener), Reach.NETWORK_AND_LOOPBACK, 5) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.gettimeout() == pytest.approx(5, rel=SLACK)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert names.asked == ["registry.test"]


def test_h5_a_name_that_changes_its_mind_after_the_check_gains_nothing(listener: socket.socket) -> None:
    answers = iter([["127.0.0.1"], [METADATA]])

    def rebinding(host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, Any]]:
        return Names({host: next(answers)})(host, port)

    with Dialer(rebinding).connect("registry.test", port_of(listener), Reach.NETWORK_AND_LOOPBACK, 5) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"
    assert next(answers) == [METADATA]  # nobody asked again


def test_h5_of_mixed_addresses_only_the_allowed_ones_are_tried(listener: socket.socket) -> None:
    names = Names({"registry.test": [METADATA, "::ffff:169.254.169.254", "127.0.0.1"]})
    with Dialer(names).connect("registry.test", port_of(listener), Reach.NETWORK_AND_LOOPBACK, 5) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "address", [METADATA, "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "100.100.100.200", "127.0.0.1", "::1"]
)
def test_h4_a_name_for_a_refused_address_is_not_connected_to(address: str) -> None:
    with pytest.raises(Forbidden, match=r"registry\.test is a (metadata-service|loopback) address"):
        Dialer(Names({"registry.test": [address]})).connect("registry.test", 80, Reach.NETWORK, 5)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "localhost"])
def test_h4_spellings_that_only_the_systems_resolver_understands_are_judged_by_their_meaning(
    host: str, listener: socket.socket
) -> None:
    with pytest.raises(Forbidden, match="loopback"):
        Dialer().connect(host, port_of(listener), Reach.NETWORK, 5)


def test_a_dead_address_leaves_time_for_the_next_one(listener: socket.socket) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.2", port_of(listener)))  # bound and not listening: refused at once
        names = Names({"registry.test": ["127.0.0.2", "127.0.0.1"]})
        with Dialer(names).connect("registry.test", port_of(listener), Reach.NETWORK_AND_LOOPBACK, 5) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


def test_nobody_listening_is_said_so(listener: socket.socket) -> None:
    port = port_of(listener)
    listener.close()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port} refused the connection"):
        Dialer().connect("127.0.0.1", port, Reach.ANYWHERE, 5)


def test_a_connection_that_nobody_takes_ends_with_the_time() -> None:
    with contextlib.ExitStack() as held:
        deaf = held.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)

        def connect_until_the_backlog_is_full() -> None:
            for _ in range(8):
                held.enter_context(Dialer().connect("127.0.0.1", port_of(deaf), Reach.ANYWHERE, 0.2))

        with pytest.raises(Unavailable, match="didn't take the connection in time"):
            connect_until_the_backlog_is_full()


def test_h23_a_name_that_does_not_exist_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"registry\.test doesn't resolve"):
        Dialer(Names({})).connect("registry.test", 443, Reach.NETWORK, 5)


def test_h23_a_name_without_addresses_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"registry\.test has no address"):
        Dialer(Names({"registry.test": []})).connect("registry.test", 443, Reach.NETWORK, 5)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
def test_h23_what_dns_cannot_hold_is_unavailable(host: str) -> None:
    with pytest.raises(Unavailable, match="doesn't resolve"):
        Dialer().connect(host, 443, Reach.NETWORK, 5)


def test_h23_a_resolver_that_stalls_has_a_deadline_and_is_asked_once_for_all() -> None:
    released, asked = threading.Event(), []

    def stalled(host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, Any]]:
        asked.append(host)
        released.wait()
        return []

    dialer = Dialer(stalled)
    try:
        for _ in range(3):
            with pytest.raises(Unavailable, match="DNS gave no answer"):
                dialer.connect("slow.test", 443, Reach.NETWORK, 0.05)
        assert asked == ["slow.test"]
    finally:
        released.set()


def test_a_deadline_covers_many_receives_together() -> None:
    left, right = socket.socketpair()
    with Timed(left.family, left.type, left.proto, left.detach()) as timed, right:
        timed.settimeout(5)
        timed.deadline = time.monotonic() + 0.2
        buffer = bytearray(1)
        right.send(b"x")
        assert timed.recv_into(buffer) == 1
        with pytest.raises(TimeoutError):
            timed.recv_into(buffer)
        right.send(b"y")
        with pytest.raises(TimeoutError):
            timed.recv_into(buffer)  # it is over, whatever has come
        timed.deadline = None
        timed.settimeout(5)
        assert timed.recv_into(buffer) == 1


@pytest.mark.parametrize(("ahead", "becomes"), [(3600.0, 600.0), (300.0, 300.0)])
def test_only_a_deadline_that_is_nearer_changes_the_timeout(ahead: float, becomes: float) -> None:
    left, right = socket.socketpair()
    with Timed(left.family, left.type, left.proto, left.detach()) as timed, right:
        timed.settimeout(600.0)
        right.send(b"x")
        timed.deadline = time.monotonic() + ahead
        assert timed.recv_into(bytearray(1)) == 1
        now = timed.gettimeout()
        assert now == 600.0 if becomes == 600.0 else now is not None and now <= becomes
