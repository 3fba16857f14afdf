"""Through a proxy, and with a certificate of our own to show."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from modelmount.config import Pull, Registry, Settings
from modelmount.errors import Forbidden, Unavailable
from modelmount.transport.pool import Pool, Request
from modelmount.transport.url import Url
from tests.fakes.registry import Registry as RealRegistry
from tests.fakes.registry import Tls
from tests.fakes.wire import Answer, WireServer
from tests.unit.transport.asking import drain, get, settings_for, soon

MakePool = Callable[..., Pool]


class ConnectProxy:
    """An http proxy that does CONNECT. Names are resolved by `names`; `answer` is said instead where it is set."""

    def __init__(self, names: dict[str, int], answer: bytes | None = None) -> None:
        self.asked: list[str] = []
        self.shown: list[str] = []
        self.login = ""
        """What clients must show, as Basic authentication has it; empty for nothing."""
        self._names, self._answer = names, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._sockets.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                received = peer.recv(1)
                if not received:
                    return
                head += received
            target = head.split()[1].decode()
            self.asked.append(f"{head.split()[0].decode()} {target}")
            shown = re.search(rb"\r\nProxy-Authorization: Basic (\S+)\r\n", head)
            self.shown.append(shown[1].decode() if shown is not None else "")
            if self.login and self.shown[-1] != self.login:
                self._refuse(peer)
                return
            if self._answer is not None:
                peer.sendall(self._answer)
                peer.close()
                return
            host, _, port = target.rpartition(":")
            there = socket.create_connection(("127.0.0.1", self._names.get(host, int(port))))
            self._sockets.append(there)
            peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=_pump, args=(there, peer), daemon=True).start()
            _pump(peer, there)

    def _refuse(self, peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
        peer.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Callable[..., ConnectProxy]]:
    made: list[ConnectProxy] = []

    def make(*arguments: Any) -> ConnectProxy:
        made.append(ConnectProxy(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(pool: Pool, url: str, registry: str) -> bytes:
    return drain(pool.send(Request("GET", Url.parse(url), registry, "llm/tiny:v1"), soon()).body)


def test_a_host_that_only_the_proxy_can_reach_is_reached_over_tls(
    tmp_path: Path, make_pool: MakePool, proxy: Callable[..., ConnectProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tls = Tls.make(tmp_path, "registry.example.com")
    with WireServer(tls=tls) as server:
        server.on("/a", Answer(body=b"here"))
        through = proxy({"registry.example.com": server.port})
        listed = Registry(ca_file=str(tls.ca_file))
        pool = make_pool(Settings(proxy=through.url, registries={"registry.example.com": listed}))
        for _ in range(2):
            assert ask(pool, "https://registry.example.com/a", "registry.example.com") == b"here"
        assert through.asked == ["CONNECT registry.example.com:443"]  # and kept


def test_the_environments_proxies_never_count(
    server: WireServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.on("/a", Answer(body=b"here"))
    assert drain(get(make_pool(settings_for(server)), server, "/a").body) == b"here"


def test_a_host_has_its_own_proxy_or_none(
    server: WireServer, make_pool: MakePool, proxy: Callable[..., ConnectProxy]
) -> None:
    server.on("/a", Answer(body=b"here"))
    names = {"registry.example.com": server.port}
    general, own = proxy(names), proxy(names)
    for said, asked in ((own.url, 0), ("", 1)):
        listed = Registry(plain_http=True, proxy=said)
        pool = make_pool(Settings(proxy=general.url, registries={"registry.example.com": listed}))
        assert ask(pool, "http://registry.example.com/a", "registry.example.com") == b"here"
        assert len(general.asked) == asked
    assert own.asked == ["CONNECT registry.example.com:80"]


@pytest.mark.parametrize(("said", "asked"), [("direct", 0), ("", 0), ("own", 1)])
def test_this_node_itself_is_behind_no_proxy_but_its_own(
    server: WireServer, make_pool: MakePool, proxy: Callable[..., ConnectProxy], said: str, asked: int
) -> None:
    server.on("/a", Answer(body=b"here"))
    through = proxy({})
    listed = Registry(plain_http=True, proxy=through.url if said == "own" else said)
    pool = make_pool(Settings(proxy=through.url, registries={server.host: listed}))
    assert drain(get(pool, server, "/a").body) == b"here"
    assert len(through.asked) == asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "it answered 403"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it answered 0"),
        (b"", "it answered 0"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "it answered 0"),
    ],
)
def test_a_proxy_that_lets_nobody_through_says_so(
    make_pool: MakePool, proxy: Callable[..., ConnectProxy], answer: bytes, words: str
) -> None:
    through = proxy({}, answer)
    pool = make_pool(Settings(proxy=through.url))
    with pytest.raises(Unavailable, match=r"the proxy 127.0.0.1:\d+ (lets nobody through|didn't answer)") as told:
        ask(pool, "https://registry.example.com/a", "registry.example.com")
    assert words in told.value.message or "didn't answer" in told.value.message


def test_a_proxy_gets_its_login_and_nobody_else_does(
    tmp_path: Path, server: WireServer, make_pool: MakePool, proxy: Callable[..., ConnectProxy]
) -> None:
    through = proxy({"registry.example.com": server.port})
    through.login = base64.b64encode(b"node:pr0xy-password:1").decode()
    login = tmp_path / "login"
    login.write_text("node:outdated-password\n")
    server.on("/a", Answer(body=b"here"))
    listed = Registry(plain_http=True)
    settings = Settings(proxy=through.url, proxy_login_file=str(login), registries={"registry.example.com": listed})
    pool = make_pool(settings)
    with pytest.raises(Unavailable, match=r"doesn't take what proxy_login_file says") as told:
        ask(pool, "http://registry.example.com/a", "registry.example.com")
    assert "outdated-password" not in f"{told.value} {told.value.__cause__}"
    login.write_text("node:pr0xy-password:1\n")  # rotated: counts at once
    assert ask(pool, "http://registry.example.com/a", "registry.example.com") == b"here"
    assert through.shown[-1] == through.login
    assert not any("proxy-authorization" in each.headers for each in server.asked())


def test_a_proxy_that_wants_a_login_says_so(make_pool: MakePool, proxy: Callable[..., ConnectProxy]) -> None:
    through = proxy({})
    through.login = "something"
    with pytest.raises(Unavailable, match="has to set proxy_login_file"):
        ask(make_pool(Settings(proxy=through.url)), "https://registry.example.com/a", "registry.example.com")


@pytest.mark.parametrize("content", [None, b"", b"no-colon-in-it", b":no-name", b"two:lines\nX-Evil: 1", b"nul:\0"])
def test_a_login_that_can_not_be_used_is_the_admins_to_put_right(
    tmp_path: Path, make_pool: MakePool, proxy: Callable[..., ConnectProxy], content: bytes | None
) -> None:
    through, login = proxy({}), tmp_path / "login"
    if content is not None:
        login.write_bytes(content)
    pool = make_pool(Settings(proxy=through.url, proxy_login_file=str(login)))
    with pytest.raises(Unavailable, match="the admin has to put it right") as told:
        ask(pool, "https://registry.example.com/a", "registry.example.com")
    assert "Evil" not in str(told.value)
    assert through.asked == []


def test_a_login_is_for_the_proxy_that_it_is_named_with(
    tmp_path: Path, server: WireServer, make_pool: MakePool, proxy: Callable[..., ConnectProxy]
) -> None:
    names = {"registry.example.com": server.port}
    general, own = proxy(names), proxy(names)
    login = tmp_path / "login"
    login.write_text("node:pr0xy-password")
    server.on("/a", Answer(body=b"here"))
    listed = Registry(plain_http=True, proxy=own.url)
    settings = Settings(proxy=general.url, proxy_login_file=str(login), registries={"registry.example.com": listed})
    assert ask(make_pool(settings), "http://registry.example.com/a", "registry.example.com") == b"here"
    assert own.shown == [""]


def test_a_proxy_that_is_down_says_so(make_pool: MakePool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        pool = make_pool(Settings(proxy=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(Unavailable, match=r"the proxy 127.0.0.1:\d+: .*refused the connection"):
            ask(pool, "https://registry.example.com/a", "registry.example.com")


def test_addresses_are_judged_as_without_a_proxy(make_pool: MakePool, proxy: Callable[..., ConnectProxy]) -> None:
    through = proxy({})
    pool = make_pool(Settings(proxy=through.url))
    for host in ("169.254.169.254", "127.0.0.1", "[::ffff:169.254.169.254]", "2852039166", "0xa9.0xfea9fe", "127.1"):
        with pytest.raises(Forbidden, match="address"):
            ask(pool, f"https://{host}/latest/meta-data", "registry.example.com")
    assert through.asked == []


# -- client certificates


def demanding(ca: trustme.CA, leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("apart", [True, False], ids=["in two files", "in one file"])
def test_a_certificate_is_shown_to_its_host_and_renewed_when_its_files_are(
    tmp_path: Path, make_pool: MakePool, apart: bool
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = ca.issue_cert("driver@example.com")
    certificate, key = tmp_path / "client.pem", tmp_path / "key.pem"
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
    certificate.write_bytes(chain + (b"" if apart else client.private_key_pem.bytes()))
    key.write_bytes(client.private_key_pem.bytes())
    with WireServer(context=demanding(ca, ca.issue_cert("localhost"))) as server:
        server.on("/a", Answer(body=b"here"))
        listed = Registry(
            ca_file=str(tmp_path / "ca.pem"),
            client_certificate=str(certificate),
            client_key=str(key) if apart else None,
        )
        pool = make_pool(Settings(registries={server.host: listed}))
        assert drain(get(pool, server, "/a").body) == b"here"
        certificate.write_bytes(b"nonsense")
        with pytest.raises(Unavailable, match=r"the client certificate .*client.pem.* can't be used") as told:
            get(pool, server, "/a")
        assert "PRIVATE" not in str(told.value)
        without = make_pool(settings_for(server, ca_file=str(tmp_path / "ca.pem")))
        with pytest.raises(Unavailable):
            drain(get(without, server, "/a").body)


def written(directory: Path, name: str, ca: trustme.CA) -> list[str]:
    """The files of a certificate and its key."""
    leaf = ca.issue_cert(f"{name}@example.com")
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)
    return [str(certificate), str(key)]


@pytest.mark.registry
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_of_several_certificates_the_one_is_shown_whose_issuer_a_registry_names(
    tmp_path: Path, make_pool: MakePool, wanted: int
) -> None:
    cas = [trustme.CA(organization_name=f"CA {number}") for number in range(3)]
    pairs = [written(tmp_path, f"driver-{number}", ca) for number, ca in enumerate(cas)]
    with RealRegistry(tmp_path / "registry", tls=Tls.make(tmp_path / "tls").demanding(cas[wanted])) as registry:
        assert registry.tls is not None
        ca_file = str(registry.tls.ca_file)
        listed = Registry(ca_file=ca_file, client_certificates=pairs)
        pool = make_pool(Settings(registries={registry.host: listed}))
        assert ask(pool, f"{registry.url}/v2/", registry.host) == b"{}"
        others = [pair for number, pair in enumerate(pairs) if number != wanted]
        without = make_pool(Settings(registries={registry.host: Registry(ca_file=ca_file, client_certificates=others)}))
        with pytest.raises(Unavailable):
            ask(without, f"{registry.url}/v2/", registry.host)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("demands", [True, False])
def test_to_a_server_that_names_no_issuer_the_first_of_several_is_shown(
    tmp_path: Path, make_pool: MakePool, version: ssl.TLSVersion, demands: bool
) -> None:
    """And to one that asks for none nothing is; neither is in the way of large answers."""
    ca, data = trustme.CA(), bytes(300_000)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pairs = [written(tmp_path, "one", ca), written(tmp_path, "two", trustme.CA())]
    context = demanding(ca, ca.issue_cert("localhost"))  # Python's servers name no issuers
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED if demands else ssl.CERT_NONE
    with WireServer(context=context) as server:
        server.on("/a", Answer(body=data))
        listed = Registry(ca_file=str(tmp_path / "ca.pem"), client_certificates=pairs)
        pool = make_pool(Settings(registries={server.host: listed}))
        for _ in range(2):
            assert drain(get(pool, server, "/a").body) == data
        turned = Registry(ca_file=str(tmp_path / "ca.pem"), client_certificates=pairs[::-1])
        pool = make_pool(Settings(registries={server.host: turned}))
        if demands:
            with pytest.raises(Unavailable):
                drain(get(pool, server, "/a").body)
        else:
            assert drain(get(pool, server, "/a").body) == data


def test_one_of_several_that_is_none_is_named(tmp_path: Path, make_pool: MakePool) -> None:
    pairs = [written(tmp_path, "one", trustme.CA()), [str(tmp_path / "two.pem")]]
    (tmp_path / "two.pem").write_text("nonsense")
    with WireServer(context=demanding(trustme.CA(), trustme.CA().issue_cert("localhost"))) as server:
        pool = make_pool(Settings(registries={server.host: Registry(client_certificates=pairs)}))
        with pytest.raises(Unavailable, match=r"the client certificate .*two.pem can't be used"):
            get(pool, server, "/a")


def test_a_certificate_is_not_shown_where_its_host_redirects(tmp_path: Path, make_pool: MakePool) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = ca.issue_cert("driver@example.com")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    with WireServer(context=demanding(ca, ca.issue_cert("localhost"))) as storage:
        storage.on("/a", Answer(body=b"here"))
        listed = Registry(ca_file=str(tmp_path / "ca.pem"), client_certificate=str(tmp_path / "client.pem"))
        pool = make_pool(Settings(registries={"127.0.0.1:1": listed}, pull=Pull(connect_timeout_seconds=5)))
        with pytest.raises(Unavailable):
            ask(pool, f"{storage.url}/a", "127.0.0.1:1")
        assert storage.asked() == []
