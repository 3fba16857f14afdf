"""One request at a time over kept connections, against servers that misbehave before the body."""

import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmount import __version__
from modelmount.config import Pull, Registry, Settings
from modelmount.errors import Forbidden, Unavailable
from modelmount.transport.pool import KEPT_ORIGINS, Pool, Request
from modelmount.transport.url import Url
from tests.fakes.wire import Answer, Names, WireServer
from tests.unit.transport.asking import QUICK, drain, get, request, settings_for, soon

MakePool = Callable[..., Pool]


def test_what_is_sent_is_what_was_asked_and_who_we_are(server: WireServer, make_pool: MakePool) -> None:
    server.on("/v2/x", Answer(201, b"made", [("X-One", "1"), ("X-Many", "a"), ("X-Many", "b")]))
    pool = make_pool(settings_for(server))
    with get(pool, server, "/v2/x?a=1&b=%2F", headers={"Accept": "application/json"}) as answer:
        assert (answer.status, str(answer.url)) == (201, f"{server.url}/v2/x")
        assert (answer.header("x-one"), answer.header("X-Many"), answer.header("none")) == ("1", "a, b", None)
        assert list(answer.header_values("X-MANY")) == ["a", "b"]
    (asked,) = server.asked()
    assert (asked.method, asked.path, asked.query, asked.body) == ("GET", "/v2/x", "a=1&b=%2F", b"")
    assert asked.headers == {
        "host": server.host,
        "user-agent": f"modelmount/{__version__}",
        "accept-encoding": "identity",
        "accept": "application/json",
    }


def test_a_header_cannot_bring_another_one(server: WireServer, make_pool: MakePool) -> None:
    pool = make_pool(settings_for(server))
    for value in ("a\r\nX-Two: b", "a\nX-Two: b", "a\rX-Two: b"):
        with pytest.raises(ValueError):
            get(pool, server, "/b", headers={"X-One": value})
    assert server.asked() == []


def test_many_threads_share_the_pool(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(body=b"x" * 100_000))
    pool = make_pool(settings_for(server))
    results: list[int] = []

    def ask() -> None:
        results.extend(len(drain(get(pool, server, "/b").body)) for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [100_000] * 80
    assert server.connections <= 8


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced_at_once(
    server: WireServer, make_pool: MakePool
) -> None:
    server.on("/b", Answer(body=b"one"), Answer(hang_up=True), Answer(body=b"three"))
    pool = make_pool(settings_for(server))
    assert [drain(get(pool, server, "/b").body) for _ in range(2)] == [b"one", b"three"]
    assert len(server.asked()) == 3


def test_a_server_that_always_hangs_up_is_unavailable_after_one_more_try(
    server: WireServer, make_pool: MakePool
) -> None:
    server.on("/b", Answer(hang_up=True))
    with pytest.raises(Unavailable, match=r"llm/tiny:v1: 127\.0\.0\.1:\d+ closed the connection"):
        get(make_pool(settings_for(server)), server, "/b")
    assert len(server.asked()) == 2


def test_what_may_have_been_done_already_is_not_sent_twice(server: WireServer, make_pool: MakePool) -> None:
    server.on("/token", Answer(hang_up=True))
    with pytest.raises(Unavailable):
        get(make_pool(settings_for(server)), server, "/token", method="POST")
    assert len(server.asked()) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"220 smtp.example.com ESMTP\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 " + b"2" * 70_000,
    ],
    ids=["nothing", "smtp", "no-number", "version", "h21-many-headers", "h21-long-header", "h21-long-status"],
)
def test_h21_what_is_not_sane_http_is_unavailable(server: WireServer, make_pool: MakePool, head: bytes) -> None:
    server.on("/b", Answer(raw=head, framing="close"))
    with pytest.raises(Unavailable, match="llm/tiny:v1") as told:
        get(make_pool(settings_for(server)), server, "/b")
    assert len(str(told.value)) < 300


def test_h21_answers_that_only_promise_an_answer_end_with_the_time(server: WireServer, make_pool: MakePool) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n"
    server.on("/b", Answer(raw=raw, body=raw * 100_000, drip=(len(raw), 0.01)))
    with pytest.raises(Unavailable, match="didn't answer in time"):
        get(make_pool(settings_for(server, pull=QUICK)), server, "/b")


def test_h6_headers_that_trickle_end_with_the_time(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(raw=b"HTTP/1.1 200 OK\r\n", body=b"X-Slow: y\r\n" * 50, drip=(1, 0.05)))
    with pytest.raises(Unavailable, match="didn't answer in time"):
        get(make_pool(settings_for(server, pull=QUICK)), server, "/b")


def test_silence_before_the_headers_ends_with_the_deadline(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(raw=b"HTTP", stall_after=0))
    pool = make_pool(settings_for(server))
    with pytest.raises(Unavailable, match="didn't answer in time"):
        pool.send(request(server, "/b"), time.monotonic() + 0.2)
    with pytest.raises(Unavailable, match="didn't answer in time"):
        pool.send(request(server, "/b"), time.monotonic() - 1)
    assert len(server.asked()) == 1


def test_a_timeout_of_headers_does_not_outlive_them(server: WireServer, make_pool: MakePool) -> None:
    """The deadline for headers must not hang over the body, nor over the next request of a kept connection."""
    server.on("/b", Answer(body=b"x" * 30, drip=(1, 0.08)), Answer(body=b"y" * 30, drip=(1, 0.08)))
    pool = make_pool(settings_for(server, pull=QUICK))
    assert drain(get(pool, server, "/b").body) == b"x" * 30
    assert drain(get(pool, server, "/b").body) == b"y" * 30
    assert server.connections == 1


@pytest.mark.parametrize("url", ["http://evil.test/v2/", "http://127.0.0.1:1/v2/"])
def test_plain_http_without_the_admins_word_is_refused_before_anything_is_sent(make_pool: MakePool, url: str) -> None:
    names = Names({"evil.test": ["127.0.0.1"]})
    with pytest.raises(Forbidden, match=r"llm/tiny:v1: .* plain http"):
        make_pool(Settings(), lookup=names).send(Request("GET", Url.parse(url), "evil.test", "llm/tiny:v1"), soon())
    assert names.asked == []


def test_a_host_nobody_lists_cannot_be_this_node(server: WireServer, make_pool: MakePool) -> None:
    url = Url.parse(f"https://evil.test:{server.port}/v2/")
    with pytest.raises(Forbidden, match=r"evil\.test is a loopback address"):
        make_pool(Settings(), lookup=Names({"evil.test": ["127.0.0.1"]})).send(
            Request("GET", url, f"evil.test:{server.port}", "llm/tiny:v1"), soon()
        )
    assert server.connections == 0


def test_h20_proxies_and_netrc_of_the_environment_are_not_used(
    server: WireServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login alice password secret\n")
    server.on("/b", Answer(body=b"direct"))
    assert drain(get(make_pool(settings_for(server)), server, "/b").body) == b"direct"
    assert "authorization" not in server.asked()[0].headers


def test_h19_neither_errors_nor_their_causes_show_the_query_or_headers(
    server: WireServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    pool = make_pool(settings_for(server, pull=QUICK))
    server.on("/b", Answer(hang_up=True))
    server.on("/silent", Answer(raw=b"HTTP", stall_after=0))
    server.on("/short", Answer(body=b"x" * 100, cut_after=10))
    server.on("/odd", Answer(raw=b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", framing="close", cut_after=0))
    for path in ("/b", "/silent", "/short", "/odd"):
        asked = request(server, f"{path}?X-Amz-Signature=secret", headers={"Authorization": "Bearer secret"})
        try:
            drain(pool.send(asked, soon()).body)
        except Unavailable as e:
            assert "secret" not in "".join(traceback.format_exception(e))
        assert "secret" not in repr(asked)
    assert "Bearer" not in caplog.text


def test_origins_are_kept_up_to_a_number_and_the_oldest_go(server: WireServer, make_pool: MakePool) -> None:
    hosts = [f"host{number}.test:{server.port}" for number in range(KEPT_ORIGINS + 5)]
    names = Names({host.partition(":")[0]: ["127.0.0.1"] for host in hosts})
    pool = make_pool(Settings(registries={host: Registry(plain_http=True) for host in hosts}), lookup=names)
    server.on("/b", Answer(body=b"x"))

    def ask(host: str) -> None:
        drain(pool.send(Request("GET", Url.parse(f"http://{host}/b"), host, "llm/tiny:v1"), soon()).body)

    for host in hosts:
        ask(host)
    ask(hosts[-1])
    assert server.connections == len(hosts)
    ask(hosts[0])
    assert server.connections == len(hosts) + 1


def test_a_closed_pool_sends_nothing(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(body=b"x"))
    pool = make_pool(settings_for(server))
    drain(get(pool, server, "/b").body)
    pool.close()
    pool.close()
    with pytest.raises(Unavailable, match="stopping"):
        get(pool, server, "/b")


PATIENT = Pull(connect_timeout_seconds=600, read_timeout_seconds=600, document_timeout_seconds=600)
"""Whoever waits so long waits for an interrupt."""


def test_closing_ends_the_wait_for_a_body_and_what_came_before_is_delivered(
    server: WireServer, make_pool: MakePool
) -> None:
    server.on("/b", Answer(body=b"x" * 1000, stall_after=100))
    pool = make_pool(settings_for(server, pull=PATIENT))
    body = pool.send(request(server, "/b"), time.monotonic() + 600).body
    view = memoryview(bytearray(100))
    assert body.readinto(view) == 100
    waiting = ended_by(lambda: body.readinto(view))
    pool.close()
    assert "the driver is stopping" in waiting()


@pytest.mark.parametrize("silent_at", ["name", "connect", "handshake", "headers"])
def test_closing_ends_every_wait(silent_at: str, make_pool: MakePool) -> None:
    released, asked = threading.Event(), threading.Event()

    def lookup(host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, Any]]:
        asked.set()
        if silent_at == "name":
            released.wait()
        return Names({"silent.test": ["127.0.0.1"]})(host, port)

    with contextlib.ExitStack() as stack:
        stack.callback(released.set)
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        if silent_at == "connect":
            fill_backlog(port, stack)
        scheme = "https" if silent_at == "handshake" else "http"
        host = f"silent.test:{port}"
        settings = Settings(registries={host: Registry(plain_http=scheme == "http")}, pull=PATIENT)
        pool = make_pool(settings, lookup=lookup)
        asking = Request("GET", Url.parse(f"{scheme}://{host}/b"), host, "llm/tiny:v1")
        waiting = ended_by(lambda: pool.send(asking, time.monotonic() + 600))
        assert asked.wait(60)
        if silent_at == "connect":
            while not any(is_connecting(sock) for sock in list(pool._sockets._open)):
                time.sleep(0.001)
        elif silent_at != "name":
            peer = stack.enter_context(silent.accept()[0])
            assert peer.recv(1)  # it has asked, and waits
        pool.close()
        assert "the driver is stopping" in waiting()


def is_connecting(sock: socket.socket) -> bool:
    """Whether it has sent its SYN and nothing came back (tcpi_state)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02"


def fill_backlog(port: int, stack: contextlib.ExitStack) -> None:
    """Connect until the kernel takes no more."""
    for _ in range(16):
        sock = stack.enter_context(socket.socket())
        sock.settimeout(0.2)
        try:
            sock.connect(("127.0.0.1", port))
        except TimeoutError:
            return
    raise AssertionError("the backlog has no end")


def ended_by(call: Callable[[], object]) -> Callable[[], str]:
    """Make a call in a thread; what comes back waits for it and returns what it was refused with."""
    failures: list[str] = []

    def run() -> None:
        try:
            call()
        except Unavailable as e:
            failures.append(e.message)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> str:
        thread.join(60)
        assert not thread.is_alive(), "it waits on"
        (failure,) = failures
        return failure

    return end
