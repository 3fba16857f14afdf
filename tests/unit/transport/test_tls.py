"""Certificates that are right, and every way in which they are not. Never is a connection made without."""

import datetime
import os
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from modelmount.config import Registry, Settings
from modelmount.errors import Unavailable
from modelmount.transport.addresses import Reach
from modelmount.transport.dial import Sockets
from modelmount.transport.pool import Pool, Request
from modelmount.transport.tls import Contexts
from modelmount.transport.trust import Trust
from modelmount.transport.url import Url
from tests.fakes.registry import Tls
from tests.fakes.wire import Answer, Names, WireServer
from tests.unit.transport.asking import drain, get, settings_for, soon

MakePool = Callable[..., Pool]


def context_for(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


def test_h16_the_admins_ca_is_trusted_for_its_host_and_bytes_go_straight_into_the_view(
    tmp_path: Path, make_pool: MakePool
) -> None:
    tls = Tls.make(tmp_path)
    data = os.urandom(300_000)
    with WireServer(tls=tls) as server:
        server.on("/b", Answer(body=data))
        pool = make_pool(settings_for(server, ca_file=str(tls.ca_file)))
        for _ in range(3):
            body = get(pool, server, "/b").body
            assert body.is_direct
            assert drain(body) == data
        assert server.connections == 1


@pytest.mark.parametrize("fault", ["self-signed", "other-ca", "wrong-host", "expired", "not-yet"])
def test_h16_a_certificate_that_is_not_right_is_refused(tmp_path: Path, make_pool: MakePool, fault: str) -> None:
    ca, other = trustme.CA(), trustme.CA()
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    leaf = {
        "self-signed": lambda: other.issue_cert("localhost"),
        "other-ca": lambda: other.issue_cert("localhost"),
        "wrong-host": lambda: ca.issue_cert("harbor.example.com"),
        "expired": lambda: ca.issue_cert("localhost", not_after=now - day),
        "not-yet": lambda: ca.issue_cert("localhost", not_before=now + day),
    }[fault]()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    with WireServer(context=context_for(leaf)) as server:
        settings = settings_for(server, ca_file=None if fault == "self-signed" else str(ca_file))
        with pytest.raises(Unavailable, match=r"llm/tiny:v1: localhost:\d+ has a certificate that isn't trusted"):
            get(make_pool(settings), server, "/b")
        assert server.asked() == []


def test_h16_a_certificate_that_only_has_a_common_name_is_refused(tmp_path: Path, make_pool: MakePool) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("other.example.com", common_name="localhost")
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    with WireServer(context=context_for(leaf)) as server, pytest.raises(Unavailable, match="isn't trusted"):
        get(make_pool(settings_for(server, ca_file=str(ca_file))), server, "/b")


def test_h16_tls_before_1_2_is_refused(tmp_path: Path, make_pool: MakePool) -> None:
    ca = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    context = context_for(ca.issue_cert("localhost"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with WireServer(context=context) as server:
        with pytest.raises(Unavailable, match="doesn't speak TLS as it is expected"):
            get(make_pool(settings_for(server, ca_file=str(ca_file))), server, "/b")
        assert server.asked() == []


def test_h16_plain_http_where_tls_is_expected_is_said_so_and_not_fallen_back_to(
    server: WireServer, make_pool: MakePool
) -> None:
    host = f"localhost:{server.port}"
    request = Request("GET", Url.parse(f"https://{host}/b"), host, "llm/tiny:v1")
    with pytest.raises(Unavailable, match="doesn't speak TLS as it is expected"):
        make_pool(Settings(registries={host: Registry()})).send(request, soon())
    assert server.asked() == []


def test_storage_behind_a_registry_may_have_a_certificate_of_its_ca_or_of_the_systems(
    tmp_path: Path, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = trustme.CA(), trustme.CA()
    private.cert_pem.write_to_path(tmp_path / "private.pem")
    public.cert_pem.write_to_path(tmp_path / "system.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    settings = Settings(registries={"localhost:5000": Registry(ca_file=str(tmp_path / "private.pem"))})
    pool = make_pool(settings, lookup=Names({"storage.test": ["127.0.0.1"], "localhost": ["127.0.0.1"]}))
    for ca in (private, public):
        with WireServer(context=context_for(ca.issue_cert("storage.test", "localhost"))) as server:
            server.on("/b", Answer(body=b"x"))
            storage = Url.parse(f"https://storage.test:{server.port}/b")
            assert drain(pool.send(Request("GET", storage, "localhost:5000", "llm/tiny:v1"), soon()).body) == b"x"
            own = Request("GET", Url.parse(f"https://localhost:{server.port}/b"), "localhost:5000", "llm/tiny:v1")
            if ca is private:
                assert drain(pool.send(own, soon()).body) == b"x"
            else:
                with pytest.raises(Unavailable, match="isn't trusted"):
                    pool.send(own, soon())


def test_a_ca_file_that_was_replaced_counts_from_then_on(tmp_path: Path, make_pool: MakePool) -> None:
    ca_file = tmp_path / "ca.pem"
    old, new = trustme.CA(), trustme.CA()
    old.cert_pem.write_to_path(ca_file)
    with WireServer(context=context_for(new.issue_cert("localhost"))) as server:
        server.on("/b", Answer(body=b"x"))
        pool = make_pool(settings_for(server, ca_file=str(ca_file)))
        with pytest.raises(Unavailable):
            get(pool, server, "/b")
        replacement = tmp_path / "new.pem"
        new.cert_pem.write_to_path(replacement)
        replacement.replace(ca_file)
        assert drain(get(pool, server, "/b").body) == b"x"


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_ca_file_that_cannot_be_used_is_the_admins_to_put_right(tmp_path: Path, content: bytes | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_bytes(content)
    with pytest.raises(Unavailable, match=r"the CA file .* can't be used"):
        Contexts(Sockets()).get(Trust(Reach.NETWORK, (str(ca_file),)))


def test_of_several_ca_files_each_counts_and_one_that_cannot_be_used_is_named(
    tmp_path: Path, make_pool: MakePool
) -> None:
    authorities = [trustme.CA() for _ in range(3)]
    files = [str(tmp_path / f"{number}.pem") for number in range(2)]
    for authority, file in zip(authorities, files, strict=False):
        authority.cert_pem.write_to_path(file)
    for number, authority in enumerate(authorities):
        with WireServer(context=context_for(authority.issue_cert("localhost"))) as server:
            server.on("/b", Answer(body=b"x"))
            pool = make_pool(settings_for(server, ca_files=files))
            if number < 2:
                assert drain(get(pool, server, "/b").body) == b"x"
            else:
                with pytest.raises(Unavailable, match="isn't trusted"):
                    get(pool, server, "/b")
    absent = str(tmp_path / "absent.pem")
    with pytest.raises(Unavailable, match=rf"the CA file {absent} can't be used \(No such file"):
        Contexts(Sockets()).get(Trust(Reach.NETWORK, (*files, absent)))


def test_one_context_serves_all_with_equal_trust() -> None:
    contexts = Contexts(Sockets())
    context = contexts.get(Trust(Reach.NETWORK, system_cas=True))
    assert contexts.get(Trust(Reach.ANYWHERE, system_cas=True)) is context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("reset", [False, True])
def test_h7_a_body_cut_under_tls_is_no_end(tmp_path: Path, make_pool: MakePool, *, reset: bool) -> None:
    tls = Tls.make(tmp_path)
    data = os.urandom(300_000)
    with WireServer(tls=tls) as server:
        server.on("/b", Answer(body=data, cut_after=100_000, reset=reset))
        body = get(make_pool(settings_for(server, ca_file=str(tls.ca_file))), server, "/b").body
        with pytest.raises(Unavailable, match=r"ended the answer|closed the connection"):
            drain(body)
