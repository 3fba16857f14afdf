"""Redirects between real servers: what follows, what is left behind, and where nobody goes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden, Unavailable
from modelmount.transport import redirects
from modelmount.transport.pool import Pool
from tests.fakes.registry import Tls
from tests.fakes.wire import Answer, Names, WireServer, blob, redirect
from tests.unit.transport.asking import drain, request, settings_for, soon

MakePool = Callable[..., Pool]
SECRET = {"Authorization": "Bearer secret", "X-Token": "secret", "Range": "bytes=2-"}


@pytest.fixture
def storage() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_h3_credentials_stay_at_their_origin_and_the_range_goes_along(
    server: WireServer, storage: WireServer, make_pool: MakePool, status: int
) -> None:
    server.on("/b", redirect(f"{storage.url}/stored?signature=1", status))
    storage.on("/stored", blob(b"abcdef"))
    pool = make_pool(settings_for(server))
    with redirects.send(pool, request(server, "/b", headers=SECRET), soon()) as answer:
        assert (answer.status, str(answer.url)) == (206, f"{storage.url}/stored")
        assert drain(answer.body) == b"cdef"
    (asked,) = storage.asked()
    assert asked.query == "signature=1"
    assert asked.headers["range"] == "bytes=2-"
    assert asked.headers.keys().isdisjoint({"authorization", "x-token"})


def test_h3_within_an_origin_credentials_go_along(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", redirect("/moved"))
    server.on("/moved", Answer(body=b"x"))
    with redirects.send(make_pool(settings_for(server)), request(server, "/b", headers=SECRET), soon()) as answer:
        assert answer.status == 200
    assert [each.headers["authorization"] for each in server.asked()] == ["Bearer secret"] * 2
    assert [each.headers["x-token"] for each in server.asked()] == ["secret"] * 2


def test_h3_credentials_that_were_left_behind_do_not_come_back(
    server: WireServer, storage: WireServer, make_pool: MakePool
) -> None:
    server.on("/b", redirect(f"{storage.url}/away"))
    storage.on("/away", redirect(f"{server.url}/back"))
    server.on("/back", Answer(body=b"x"))
    with redirects.send(make_pool(settings_for(server)), request(server, "/b", headers=SECRET), soon()):
        assert "authorization" not in server.asked("/back")[0].headers


@pytest.mark.parametrize("other", ["port", "name"])
def test_h3_another_port_or_name_is_another_origin(
    server: WireServer, storage: WireServer, make_pool: MakePool, other: str
) -> None:
    target = storage if other == "port" else server
    host = f"127.0.0.1:{target.port}" if other == "port" else f"localhost:{target.port}"
    server.on("/b", redirect(f"http://{host}/stored"))
    target.on("/stored", Answer(body=b"x"))
    with redirects.send(make_pool(settings_for(server)), request(server, "/b", headers=SECRET), soon()) as answer:
        assert answer.status == 200
    assert "authorization" not in target.asked("/stored")[0].headers


@pytest.mark.parametrize("hops", [0, 1, 5, 6, 50])
def test_h3_at_most_five_redirects_are_followed(server: WireServer, make_pool: MakePool, hops: int) -> None:
    for hop in range(hops):
        server.on(f"/{hop}", redirect(f"/{hop + 1}"))
    server.on(f"/{hops}", Answer(body=b"arrived"))
    pool = make_pool(settings_for(server))
    if hops <= 5:
        with redirects.send(pool, request(server, "/0"), soon()) as answer:
            assert drain(answer.body) == b"arrived"
    else:
        with pytest.raises(Unavailable, match="redirects again and again"):
            redirects.send(pool, request(server, "/0"), soon())
        assert len(server.asked()) == 6
    assert server.connections == 1


def test_h3_from_https_to_http_nobody_follows(tmp_path: Path, storage: WireServer, make_pool: MakePool) -> None:
    tls = Tls.make(tmp_path)
    with WireServer(tls=tls) as registry:
        registry.on("/b", redirect(f"{storage.url}/stored"))
        hosts = {registry.host: Registry(ca_file=str(tls.ca_file)), storage.host: Registry(plain_http=True)}
        with pytest.raises(Forbidden, match="from https to http"):
            redirects.send(make_pool(Settings(registries=hosts)), request(registry, "/b"), soon())
    assert storage.asked() == []


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://storage.example.com/x",
        "data:text/plain,x",
        "gopher://127.0.0.1:70/",
        "http://user:pw@storage.example.com/",
        "http://storage.example.com:99999/",
        "/" + "x" * 20_000,
    ],
    ids=lambda text: text[:12],
)
def test_h3_only_http_and_https_are_followed(server: WireServer, make_pool: MakePool, location: str) -> None:
    server.on("/b", redirect(location))
    with pytest.raises(Forbidden, match="redirects to where nobody may follow"):
        redirects.send(make_pool(settings_for(server)), request(server, "/b"), soon())


def test_a_redirect_to_nowhere_is_unavailable(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(307))
    with pytest.raises(Unavailable, match="redirects to nowhere"):
        redirects.send(make_pool(settings_for(server)), request(server, "/b"), soon())


@pytest.mark.parametrize(
    "target",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1]",
        "100.100.100.200",
        "0.0.0.0",
        "0x0.1",
        "metadata.test",
        "mapped.test",
    ],
)
def test_h4_redirects_to_refused_addresses_are_not_followed(
    server: WireServer, make_pool: MakePool, target: str
) -> None:
    server.on("/b", redirect(f"http://{target}/latest/meta-data/"))
    known = {"metadata.test": ["169.254.169.254"], "mapped.test": ["::ffff:169.254.169.254"], "0x0.1": ["0.0.0.1"]}
    pool = make_pool(settings_for(server), lookup=Names(known))
    with pytest.raises(Forbidden, match=r"llm/tiny:v1: .* address, and those are not connected to"):
        redirects.send(pool, request(server, "/b"), soon())


def test_h4_a_registry_that_is_not_on_loopback_cannot_send_us_there(
    server: WireServer, storage: WireServer, make_pool: MakePool
) -> None:
    host = f"registry.test:{server.port}"
    server.on("/b", redirect(f"{storage.url}/stored"))
    storage.on("/stored", Answer(body=b"x"))
    names = Names({"registry.test": ["127.0.0.1"]})
    listed = {host: Registry(plain_http=True)}
    asked = request(server, "/b")
    by_name = type(asked)("GET", asked.url.parse(f"http://{host}/b"), host, asked.what)
    with pytest.raises(Forbidden, match="loopback"):
        redirects.send(make_pool(Settings(registries=listed), lookup=names), by_name, soon())
    listed[storage.host] = Registry()
    pool = make_pool(Settings(registries=listed), lookup=names)
    with redirects.send(pool, by_name, soon()) as answer:
        assert answer.status == 200


def test_what_is_discarded_leaves_its_connection_usable(server: WireServer, make_pool: MakePool) -> None:
    server.on("/b", Answer(body=b"x" * 1000), Answer(body=b"x" * 1_000_000), Answer(body=b"x", cut_after=0))
    pool = make_pool(settings_for(server))
    for connections in (1, 1, 2):
        redirects.discard(pool.send(request(server, "/b"), soon()))
        assert server.connections == connections
