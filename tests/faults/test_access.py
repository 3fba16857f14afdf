"""Where a pull may be led and what it shows there: challenges, redirects, certificates, names, waits.

Played to real pulls like the rest; a test's name begins with its number on the threat model's list.
"""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from modelmount.config import Pull
from modelmount.errors import Forbidden, IntegrityError, Unavailable
from modelmount.transport.dial import Found
from tests.fakes import push
from tests.fakes.gateway import Act, Fault, Gateway, edit, header, instead, spoil
from tests.fakes.registry import Registry, Tls
from tests.fakes.tokens import TokenServer, User
from tests.fakes.wire import Answer, Asked, Names, challenge, redirect
from tests.faults.scene import ALICE, PATIENT, SECONDS, Scene, go_on, manifest, model_in, of

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

AT = (2 << 20) + 77
SECOND = f"bytes={AT}-"
SIGNATURE = "X-Amz-Signature"


def everything(asked: Asked) -> bool:
    return True


def signed(scene: Scene, url: str | None = None) -> Callable[[Asked, Gateway], Answer]:
    """Redirects each request to storage, with a signature of its own."""
    numbers = itertools.count(1)
    base = url or scene.storage.url
    return lambda asked, gateway: redirect(f"{base}{asked.path}?{SIGNATURE}=s3cret{next(numbers)}")


def faults(digest: str, *acts: Act, times: int | None = 1) -> Iterator[Fault]:
    """One after the other, for a blob."""
    return (Fault(of(digest), act, times) for act in acts)


def finish(scene: Scene) -> None:
    """The fault is over: the model comes, and nothing is held."""
    scene.gateway.calm()
    assert scene.pull() == scene.model.files
    scene.assert_sound()


# -- H1, H2: challenges


@pytest.mark.parametrize(
    "values",
    [
        pytest.param((), id="H1 a 401 without a challenge, for ever"),
        pytest.param(('Basic realm="x"',), id="H1 a 401 with the same challenge, for ever"),
        pytest.param(("Negotiate", "Bearer"), id="H1 challenges that cannot be answered"),
    ],
)
def test_challenges_without_end(values: tuple[str, ...], locked: Scene) -> None:
    locked.play(everything, instead(challenge(*values)), times=None)
    with pytest.raises(Forbidden, match="not found or no access"):
        locked.pull()
    assert len(locked.gateway.asked()) <= 3
    finish(locked)


@pytest.mark.parametrize(
    ("realm", "saying"),
    [
        pytest.param("http://{elsewhere}/token", "isn't its own host", id="H2 a realm on another host"),
        pytest.param("http://169.254.169.254/token", "isn't its own host", id="H2 a realm at the metadata service"),
        pytest.param("http://[::ffff:169.254.169.254]/", "isn't its own host", id="H2 a realm there, spelt otherwise"),
        pytest.param("file:///etc/passwd", "can't be asked", id="H2 a realm that is a file"),
        pytest.param("http://user:pw@{elsewhere}/", "can't be asked", id="H2 a realm with somebody's password in it"),
    ],
)
def test_realms_that_get_no_password(realm: str, saying: str, locked: Scene) -> None:
    elsewhere = locked.elsewhere.host.replace("127.0.0.1", "localhost")
    locked.play(everything, instead(challenge(f'Bearer realm="{realm.format(elsewhere=elsewhere)}"')), times=None)
    with pytest.raises(Forbidden, match=saying) as caught:
        locked.pull()
    assert ALICE.password not in str(caught.value)
    finish(locked)


# -- H3, H4: redirects


def test_h3_a_redirect_to_storage_takes_no_password_along_and_a_cut_goes_on_there(locked: Scene) -> None:
    weights = locked.model.weights
    locked.play(weights, signed(locked), times=None)
    locked.storage.play(*faults(weights, spoil(cut_after=AT)))
    assert locked.pull() == locked.model.files
    assert locked.ranges(weights, locked.storage) == ["", SECOND]
    assert all("authorization" not in asked.headers for asked in locked.storage.asked())
    assert all("authorization" in asked.headers for asked in locked.asked(weights))
    assert locked.fetched == locked.model.size
    locked.assert_sound()


def test_h3_addresses_that_expire_in_the_middle_of_a_pull_are_asked_for_anew(scene: Scene) -> None:
    weights = scene.model.weights
    scene.play(weights, signed(scene), times=None)
    expired = instead(Answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"))
    scene.storage.play(*faults(weights, spoil(cut_after=AT), expired, expired))
    assert scene.pull() == scene.model.files
    assert scene.ranges(weights, scene.storage) == ["", SECOND, SECOND, SECOND]
    signatures = [asked.query for asked in scene.storage.asked()]
    assert len(set(signatures)) == len(signatures) == 4  # no address was used twice
    assert scene.fetched == scene.model.size
    scene.assert_sound()


def test_h3_redirects_without_end_are_not_followed_for_ever(scene: Scene) -> None:
    scene.play(everything, lambda asked, gateway: redirect(f"{asked.path}?again"), times=None)
    with pytest.raises(Unavailable, match="redirects again and again"):
        scene.pull()
    assert len(scene.gateway.asked()) <= 6 * 3
    finish(scene)


def test_h3_nobody_follows_from_https_to_http(scene: Scene, tmp_path: Path) -> None:
    tls = Tls.make(tmp_path / "tls", "localhost")
    with Gateway(scene.model.registry, tls=tls) as secure:
        scene.go_through(secure, ca_file=str(tls.ca_file))
        scene.play(scene.model.weights, signed(scene), times=None)
        with pytest.raises(Forbidden, match="redirects from https to http"):
            scene.pull()
        assert scene.storage.asked() == []
        finish(scene)


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("file:///etc/passwd", id="H3 a redirect to a file"),
        pytest.param("ftp://example.com/blob", id="H3 a redirect to ftp"),
        pytest.param("data:,blob", id="H3 a redirect to data"),
        pytest.param("http://169.254.169.254/latest/meta-data/", id="H4 a redirect to the metadata service"),
        pytest.param("http://[::ffff:169.254.169.254]/", id="H4 the metadata service as a mapped address"),
        pytest.param("http://[64:ff9b::a9fe:a9fe]/", id="H4 the metadata service through NAT64"),
        pytest.param("http://100.100.100.200/", id="H4 another cloud's metadata service"),
        pytest.param("http://0.0.0.0:1/", id="H4 a redirect to the unspecified address"),
    ],
)
def test_redirects_that_nobody_follows(location: str, scene: Scene) -> None:
    scene.play(scene.model.weights, instead(redirect(location)), times=None)
    with pytest.raises(Forbidden, match=r"not connected to|may follow"):
        scene.pull()
    assert len(scene.asked(scene.model.weights)) == 1
    finish(scene)


# -- H5, H23: names


def test_h5_a_name_that_changes_its_mind_is_judged_each_time(scene: Scene) -> None:
    answers = itertools.cycle([["127.0.0.1"], ["169.254.169.254"]])
    scene.play(scene.model.weights, signed(scene, f"http://storage.test:{scene.storage.port}"), times=None)
    scene.storage.play(*faults(scene.model.weights, spoil(cut_after=AT)))
    scene.lookup = lambda host, port, **_: Names({host: next(answers)})(host, port)
    with pytest.raises(Forbidden, match="metadata-service address"):
        scene.pull()
    assert scene.ranges(scene.model.weights, scene.storage) == [""]
    scene.lookup = Names({"storage.test": ["127.0.0.1"]})
    scene.close()
    assert scene.pull() == scene.model.files
    assert scene.fetched == scene.model.size
    scene.assert_sound()


def test_h5_of_mixed_addresses_the_allowed_ones_are_used(scene: Scene) -> None:
    scene.lookup = Names({"storage.test": ["169.254.169.254", "127.0.0.1"]})
    scene.play(scene.model.weights, signed(scene, f"http://storage.test:{scene.storage.port}"), times=None)
    assert scene.pull() == scene.model.files
    assert scene.ranges(scene.model.weights, scene.storage) == [""]
    scene.assert_sound()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param(socket.EAI_NONAME, "Name or service not known", id="H23 a name that does not exist"),
        pytest.param(socket.EAI_AGAIN, "Temporary failure in name resolution", id="H23 a resolver in trouble"),
    ],
)
def test_names_that_do_not_resolve(code: int, text: str, scene: Scene) -> None:
    def fail(*_: Any, **__: Any) -> Found:
        raise socket.gaierror(code, text)

    scene.host = f"registry.test:{scene.gateway.port}"
    scene.lookup = fail
    with pytest.raises(Unavailable, match=rf"registry.test doesn't resolve \({text}\)"):
        scene.pull()
    scene.close()
    scene.lookup = Names({"registry.test": ["127.0.0.1"]})
    finish(scene)


def test_h23_a_resolver_that_recovers_within_a_pull_is_not_told(scene: Scene) -> None:
    known, failures = Names({"registry.test": ["127.0.0.1"]}), itertools.chain([True, True], itertools.repeat(False))

    def moody(host: str, port: int, **options: Any) -> Found:
        if next(failures):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return known(host, port, **options)

    scene.host = f"registry.test:{scene.gateway.port}"
    scene.lookup = moody
    assert scene.pull() == scene.model.files
    scene.assert_sound()


def test_h23_a_resolver_that_stalls_has_a_deadline(scene: Scene) -> None:
    stalled = threading.Event()

    def stall(host: str, port: int, **options: Any) -> Found:
        stalled.wait(SECONDS)
        return Names({"registry.test": ["127.0.0.1"]})(host, port, **options)

    scene.host = f"registry.test:{scene.gateway.port}"
    scene.lookup = stall
    scene.pull_settings = Pull(connect_timeout_seconds=0.3, document_timeout_seconds=20)
    with pytest.raises(Unavailable, match=r"DNS gave no answer for registry.test in time"):
        scene.pull()
    stalled.set()
    scene.close()
    scene.pull_settings = PATIENT
    finish(scene)


def test_h23_an_address_of_a_family_that_leads_nowhere_is_passed_over(scene: Scene) -> None:
    scene.host = f"registry.test:{scene.gateway.port}"
    scene.lookup = Names({"registry.test": ["::1"]})
    with pytest.raises(Unavailable, match=r"registry.test:\d+ (refused|can't be reached)"):
        scene.pull()
    scene.close()
    scene.lookup = Names({"registry.test": ["::1", "127.0.0.1"]})
    finish(scene)


# -- connecting


def test_a_connection_that_is_refused_is_unavailable_and_the_next_pull_goes_on(scene: Scene) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening
        scene.host = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Unavailable, match="refused the connection; is the registry running"):
            scene.pull()
    scene.close()
    scene.host = scene.gateway.host
    finish(scene)


def test_a_connection_that_nobody_takes_has_a_deadline(scene: Scene) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # the backlog is full
            each.setblocking(False)
            each.connect_ex(address)
        scene.host = f"127.0.0.1:{address[1]}"
        scene.pull_settings = Pull(connect_timeout_seconds=0.3, document_timeout_seconds=20)
        with pytest.raises(Unavailable, match="in time"):
            scene.pull()
        for each in waiting:
            each.close()
    scene.close()
    scene.host, scene.pull_settings = scene.gateway.host, PATIENT
    finish(scene)


# -- H13: waits that are asked for


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        pytest.param("7", 7.0, 7.5, id="H13 Retry-After in seconds is kept"),
        pytest.param("999999", 600.0, 600.5, id="H13 an absurd Retry-After is capped"),
        pytest.param("Fri, 31 Dec 2099 23:59:59 GMT", 600.0, 600.5, id="H13 a date in 2099 is capped"),
        pytest.param("Fri, 31 Dec 1999 23:59:59 GMT", 0.25, 0.5, id="H13 a date in the past is no wait"),
        pytest.param("soon", 0.25, 0.5, id="H13 a wait that makes no sense is none"),
    ],
)
def test_waits_of_a_blob(value: str, least: float, most: float, scene: Scene) -> None:
    scene.play(scene.model.weights, instead(Answer(429, headers=[("Retry-After", value)])))
    assert scene.pull() == scene.model.files
    assert scene.waits
    assert all(least <= wait <= most for wait, _ in scene.waits)
    scene.assert_sound()


def test_h13_a_manifest_does_not_wait_for_long_and_says_how_long_it_would(scene: Scene) -> None:
    scene.play(manifest, instead(Answer(503, headers=[("Retry-After", "120")])), times=None)
    scene.hurry = False
    with pytest.raises(Unavailable, match="answered 503") as caught:
        scene.pull()
    assert caught.value.retry_after == 120
    assert len(scene.gateway.asked()) == 1
    finish(scene)


# -- H16: certificates


def certificate(fault: str, directory: Path) -> tuple[Any, str]:
    """A server's context with something wrong, and the CA file that the admin names."""
    ca, other = trustme.CA(), trustme.CA()
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    leaf = {
        "another CA": lambda: other.issue_cert("localhost"),
        "another name": lambda: ca.issue_cert("harbor.example.com"),
        "expired": lambda: ca.issue_cert("localhost", not_after=now - day),
        "not yet": lambda: ca.issue_cert("localhost", not_before=now + day),
    }[fault]()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context, str(directory / "ca.pem")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=f"H16 a certificate: {fault}")
        for fault in ("another CA", "another name", "expired", "not yet")
    ],
)
def test_certificates_that_are_refused(fault: str, scene: Scene, tmp_path: Path) -> None:
    context, ca_file = certificate(fault, tmp_path)
    with Gateway(scene.model.registry, context=context) as wrong:
        scene.go_through(wrong, ca_file=ca_file)
        with pytest.raises(Unavailable, match="has a certificate that isn't trusted"):
            scene.pull()
        assert wrong.asked() == []
    scene.close()
    scene.assert_sound()


@pytest.mark.parametrize(
    "reset", [pytest.param(False, id="H7 an end under TLS"), pytest.param(True, id="H14 a reset under TLS")]
)
def test_cuts_under_tls(*, reset: bool, scene: Scene, tmp_path: Path) -> None:
    tls = Tls.make(tmp_path / "tls", "localhost")
    with Gateway(scene.model.registry, tls=tls) as secure:
        scene.go_through(secure, ca_file=str(tls.ca_file))
        scene.play(scene.model.weights, spoil(cut_after=AT, reset=reset))
        assert scene.pull() == scene.model.files
        assert len(scene.ranges(scene.model.weights)) == 2
        assert scene.fetched == scene.model.size
        scene.assert_sound()


# -- H17, H18: credentials in the middle of a pull


def unauthorised(asked: Asked, gateway: Gateway) -> Answer:
    """The registry's own answer to somebody whose token it doesn't take any more."""
    return gateway.forward(asked, without={"authorization"})


def test_h17_a_token_that_expires_in_the_middle_of_a_pull_is_replaced_and_the_pull_goes_on(
    tmp_path: Path, scene: Scene
) -> None:
    with (
        TokenServer(tmp_path / "tokens", users={"alice": User(ALICE.password)}) as server,
        Registry(tmp_path / "registry", token=server.auth) as real,
        Gateway(real) as gateway,
    ):
        _, document = server.answer("scope=repository:llm/tiny:pull,push", push.basic("alice", ALICE.password))
        with model_in(real, tmp_path / "model", f"Bearer {document['token']}") as model:
            scene.model, scene.credential = model, ALICE
            scene.go_through(gateway)
            server.requests.clear()
            scene.play(model.weights, spoil(cut_after=AT))
            scene.play(go_on, unauthorised)
            assert scene.pull() == model.files
            assert scene.ranges(model.weights) == ["", SECOND, SECOND]
            tokens = [asked.headers["authorization"] for asked in scene.asked(model.weights)]
            assert tokens[0] == tokens[1] != tokens[2]
            assert len(server.requests) == 2  # one token at first, one in its place
            assert scene.fetched == model.size
            scene.assert_sound()


def test_h18_a_secret_that_vanishes_in_the_middle_of_a_pull_is_not_missed(locked: Scene, tmp_path: Path) -> None:
    secret = tmp_path / "config.json"
    login = push.basic(ALICE.username, ALICE.password).removeprefix("Basic ")
    secret.write_text(json.dumps({"auths": {locked.host: {"auth": login}}}))
    locked.docker_config = str(secret)
    locked.credential = None

    def cut(asked: Asked, gateway: Gateway) -> Answer:
        secret.unlink(missing_ok=True)
        return replace(gateway.forward(asked), cut_after=AT)

    locked.play(locked.model.weights, cut)
    assert locked.pull() == locked.model.files
    assert locked.ranges(locked.model.weights)[-1] == SECOND
    assert not secret.exists()
    locked.assert_sound()


# -- H19, H20, H22: what nobody sees and nobody follows


def test_h19_no_message_and_no_log_shows_a_signature_or_a_password(
    locked: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    locked.play(locked.model.weights, signed(locked), times=None)
    locked.storage.play(*faults(locked.model.weights, instead(Answer(500, b"s3cret in the body")), times=None))
    with pytest.raises(Unavailable) as caught:
        locked.pull()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("modelmount")]
    seen = "\n".join([*ours, repr(caught.value), str(caught.value)])
    assert ours
    assert "s3cret" not in seen
    assert SIGNATURE not in seen
    assert ALICE.password not in seen
    stored = b"".join(path.read_bytes() for path in locked.store.rglob("*") if path.is_file())
    assert b"s3cret" not in stored
    assert ALICE.password.encode() not in stored
    finish(locked)


def test_h20_proxies_of_the_environment_are_not_used(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, scene.elsewhere.url)
    assert scene.pull() == scene.model.files
    scene.assert_sound()


def test_h22_links_to_further_pages_are_not_followed(scene: Scene) -> None:
    link = f'<{scene.elsewhere.url}/v2/llm/tiny/referrers?n=1>; rel="next"'
    scene.play(everything, edit(lambda answer: header(answer, "Link", link)), times=None)
    assert scene.pull() == scene.model.files
    assert all("/manifests/" in asked.path or "/blobs/" in asked.path for asked in scene.gateway.asked())
    scene.assert_sound()


# -- H12: by digest


def test_h12_a_manifest_that_is_not_the_digests_is_never_taken(scene: Scene) -> None:
    def flipped(answer: Answer) -> Answer:
        return replace(answer, body=answer.body.replace(b"config.json", b"evil_f.json"))

    scene.tag = f"@{scene.model.pushed.digest}"
    scene.play(manifest, edit(flipped), times=None)
    with pytest.raises(IntegrityError, match="other bytes than its digest names"):
        scene.pull()
    finish(scene)
