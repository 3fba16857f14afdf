"""Challenges and token servers, honest and not: who is shown a credential, how often, and what is remembered."""

import base64
import contextlib
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from modelmount.errors import Forbidden, ModelMountError, Unauthenticated, Unavailable
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.registry.tokens import Key, Tokens
from modelmount.transport.pool import Pool
from modelmount.transport.url import Url
from tests.fakes.wire import Answer, Asked, Scripted, WireServer, challenge, document, redirect
from tests.unit.registry.asking import ALICE, ANONYMOUS, MANIFEST, MANIFEST_DIGEST, PINNED, TAGGED, settings_for, tiny

MakeClient = Callable[..., Client]
BASIC_ALICE = "Basic " + base64.b64encode("alice:wonder:land é".encode()).decode()


@pytest.fixture
def tokens() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


def behind(authorizations: set[str], *challenges: str) -> Callable[[Asked], Answer]:
    """A manifest for whoever shows one of these, a 401 with these challenges for everybody else."""

    def serve(asked: Asked) -> Answer:
        return Answer(body=MANIFEST) if asked.headers.get("authorization") in authorizations else challenge(*challenges)

    return serve


def bearer(realm: str, **parameters: str) -> str:
    return ", ".join([f'Bearer realm="{realm}"', *(f'{name}="{value}"' for name, value in parameters.items())])


def fetch(client: Client, server: WireServer, credential: Credential) -> bytes:
    return client.manifest(tiny(server), "v1", credential).data


def shown(server: WireServer, path: str | None = None) -> list[str | None]:
    """The Authorization of each request."""
    return [each.headers.get("authorization") for each in server.asked(path)]


# -- Basic


def test_a_password_is_shown_once_asked_for_and_then_at_once(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, behind({BASIC_ALICE}, 'Basic realm="harbor"'))
    client = make_client(settings_for(server))
    assert [fetch(client, server, ALICE) for _ in range(2)] == [MANIFEST] * 2
    assert shown(server) == [None, BASIC_ALICE, BASIC_ALICE]


@pytest.mark.parametrize("credential", [ANONYMOUS, Credential(username="alice", password="wrong")])
def test_a_wrong_password_is_tried_once(server: WireServer, make_client: MakeClient, credential: Credential) -> None:
    server.on(TAGGED, behind({BASIC_ALICE}, 'Basic realm="harbor"'))
    client = make_client(settings_for(server))
    for _ in range(2):
        with pytest.raises(Unauthenticated if credential is ANONYMOUS else Forbidden, match="not found or no access"):
            fetch(client, server, credential)
    assert len([each for each in shown(server) if each]) == (0 if credential is ANONYMOUS else 2)


def test_one_mans_password_is_not_shown_for_another(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, behind({BASIC_ALICE}, 'Basic realm="harbor"'))
    client = make_client(settings_for(server))
    fetch(client, server, ALICE)
    with pytest.raises(Unauthenticated):
        fetch(client, server, ANONYMOUS)
    with pytest.raises(Forbidden):
        fetch(client, server, Credential(username="bob", password="b"))


# -- Bearer


def test_a_token_is_fetched_with_the_password_and_used_until_it_expires(
    server: WireServer, make_client: MakeClient
) -> None:
    realm = f"{server.url}/token?tenant=1"
    scope = "repository:llm/tiny:pull,push,delete"
    server.on(TAGGED, behind({"Bearer one"}, bearer(realm, service="harbor-registry", scope=scope)))
    server.on("/token", document({"token": "one", "expires_in": 1800}))
    client = make_client(settings_for(server))
    for _ in range(3):
        assert fetch(client, server, ALICE) == MANIFEST
    assert shown(server, TAGGED) == [None, "Bearer one", "Bearer one", "Bearer one"]
    (asked,) = server.asked("/token")
    assert asked.headers["authorization"] == BASIC_ALICE
    assert urllib.parse.parse_qs(asked.query) == {
        "tenant": ["1"],
        "service": ["harbor-registry"],
        "scope": ["repository:llm/tiny:pull"],
    }


@pytest.mark.parametrize(
    ("proposed", "asked_for"),
    [
        (None, "repository:llm/tiny:pull"),
        ("repository:mirror/llm/tiny:pull", "repository:mirror/llm/tiny:pull"),
        ("repository:llm/tiny:push,pull,delete", "repository:llm/tiny:pull"),
        ("repository:llm/tiny:*", "repository:llm/tiny:pull"),
        ("repository:llm/tiny:push", "repository:llm/tiny:pull"),
        ("registry:catalog:*", "repository:llm/tiny:pull"),
        ("repository:a:pull repository:b:pull", "repository:llm/tiny:pull"),
        ("repository:../../x:pull&scope=all", "repository:llm/tiny:pull"),
    ],
)
def test_only_pulling_is_asked_for_whatever_the_registry_proposes(
    server: WireServer, make_client: MakeClient, proposed: str | None, asked_for: str
) -> None:
    parameters = {} if proposed is None else {"scope": proposed}
    server.on(TAGGED, behind({"Bearer one"}, bearer(f"{server.url}/token", **parameters)))
    server.on("/token", document({"access_token": "one"}))
    fetch(make_client(settings_for(server)), server, ANONYMOUS)
    (asked,) = server.asked("/token")
    assert urllib.parse.parse_qs(asked.query) == {"scope": [asked_for]}
    assert "authorization" not in asked.headers


def test_h17_a_token_that_is_refused_is_replaced_once(server: WireServer, make_client: MakeClient) -> None:
    """It expired before its time: the registry's clock is ahead, or it was revoked."""
    good = {"Bearer one"}
    server.on(TAGGED, behind(good, bearer(f"{server.url}/token")))
    server.on("/token", document({"token": "one", "expires_in": 3600}), document({"token": "two"}))
    client = make_client(settings_for(server))
    fetch(client, server, ALICE)
    good.clear()
    good.add("Bearer two")
    assert fetch(client, server, ALICE) == MANIFEST
    assert shown(server, TAGGED) == [None, "Bearer one", "Bearer one", "Bearer two"]
    good.clear()
    with pytest.raises(Forbidden, match="not found or no access"):
        fetch(client, server, ALICE)
    assert len(server.asked("/token")) == 3


def test_a_refusal_with_a_fresh_token_costs_one_get_for_its_reason(server: WireServer, make_client: MakeClient) -> None:
    """As of a registry where a token without rights is no token."""
    server.on(PINNED, behind(set(), bearer(f"{server.url}/token")))
    server.on("/token", document({"token": "one", "expires_in": 3600}), document({"token": "two"}))
    client = make_client(settings_for(server))
    with pytest.raises(Forbidden, match="not found or no access"):
        client.exists(tiny(server), MANIFEST_DIGEST, ALICE)
    asked = [(each.method, each.headers.get("authorization")) for each in server.asked(PINNED)]
    assert asked == [("HEAD", None), ("HEAD", "Bearer one"), ("GET", "Bearer one")]
    assert len(server.asked("/token")) == 1


def test_an_identity_token_is_exchanged_by_post(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, behind({"Bearer access"}, bearer(f"{server.url}/token", service="registry")))
    server.on("/token", document({"access_token": "access", "expires_in": 300, "refresh_token": "other"}))
    credential = Credential(username="00000000-0000-0000-0000-000000000000", identity_token="refresh+me")
    assert fetch(make_client(settings_for(server)), server, credential) == MANIFEST
    (asked,) = server.asked("/token")
    assert asked.method == "POST"
    assert "authorization" not in asked.headers
    assert urllib.parse.parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh+me"],
        "service": ["registry"],
        "scope": ["repository:llm/tiny:pull"],
        "client_id": ["modelmount"],
    }
    server.on("/token", document({"error": "invalid_grant"}, 400))
    with pytest.raises(Forbidden, match="not found or no access"):
        fetch(make_client(settings_for(server)), server, credential)


def test_a_service_accounts_token_is_exchanged_by_post_and_shown_to_the_token_server_alone(
    server: WireServer, make_client: MakeClient
) -> None:
    server.on(TAGGED, behind({"Bearer access"}, bearer(f"{server.url}/token", service="registry"), 'Basic realm="x"'))
    server.on("/token", document({"access_token": "access", "expires_in": 300}))
    credential = Credential(account_token="jwt.of.pod")
    assert fetch(make_client(settings_for(server)), server, credential) == MANIFEST
    (asked,) = server.asked("/token")
    assert urllib.parse.parse_qs(asked.body.decode()) == {
        "grant_type": ["urn:ietf:params:oauth:grant-type:token-exchange"],
        "subject_token": ["jwt.of.pod"],
        "subject_token_type": ["urn:ietf:params:oauth:token-type:jwt"],
        "service": ["registry"],
        "scope": ["repository:llm/tiny:pull"],
        "client_id": ["modelmount"],
    }
    assert shown(server, TAGGED) == [None, "Bearer access"]
    server.on("/token", document({"error": "invalid_grant"}, 400))
    with pytest.raises(Forbidden, match="not found or no access"):
        fetch(make_client(settings_for(server)), server, credential)


def test_a_registry_token_goes_to_the_registry_alone(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, behind({"Bearer mine"}, bearer(f"{server.url}/token"), 'Basic realm="x"'))
    client = make_client(settings_for(server))
    assert fetch(client, server, Credential(registry_token="mine")) == MANIFEST
    with pytest.raises(Forbidden):
        fetch(client, server, Credential(registry_token="other"))
    assert shown(server) == ["Bearer mine", "Bearer other"]


@pytest.mark.parametrize("credential", [ANONYMOUS, ALICE], ids=["anonymous", "alice"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_the_token_server_is_a_refusal(
    server: WireServer, make_client: MakeClient, credential: Credential, status: int
) -> None:
    server.on(TAGGED, challenge(bearer(f"{server.url}/token"), 'Basic realm="x"'))
    server.on("/token", document({"details": "incorrect username or password"}, status))
    with pytest.raises(Unauthenticated if credential is ANONYMOUS else Forbidden, match="not found or no access"):
        fetch(make_client(settings_for(server)), server, credential)
    assert len(server.asked()) == 2


@pytest.mark.parametrize(
    "answer",
    [
        document({}),
        document([]),
        document("token"),
        document({"token": 5}),
        document({"token": ""}),
        document({"token": "two words"}),
        document({"token": "a\r\nX-Injected: 1"}),
        document({"token": "ü"}),
        document({"token": "x" * 70_000}),
        Answer(body=b"<html>"),
        Answer(body=b"[" * 100_000),
        Answer(body=b'{"token": "x"}' + b" " * (1 << 20)),
        Answer(body=b'{"token": "one"}', cut_after=5),
        Answer(404),
        Answer(500),
        Answer(429, headers=[("Retry-After", "7")]),
        redirect("/elsewhere"),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:16]!r}",
)
def test_h2_a_token_server_that_makes_no_sense_is_unavailable(
    server: WireServer, make_client: MakeClient, answer: Answer
) -> None:
    server.on(TAGGED, challenge(bearer(f"{server.url}/token")))
    server.on("/token", answer)
    server.on("/elsewhere", document({"token": "one"}))
    with pytest.raises(Unavailable, match=f"^{server.host}/llm/tiny:v1: ") as told:
        fetch(make_client(settings_for(server)), server, ALICE)
    assert len(told.value.message) < 300
    assert server.asked("/elsewhere") == []
    assert told.value.retry_after == (7.0 if answer.status == 429 else None)


# -- H1: never content


@pytest.mark.parametrize(
    "challenges",
    [
        (),
        ("",),
        ("Bearer",),
        ('Bearer service="x"',),
        ("Negotiate", 'Digest realm="x", nonce="y"'),
        ('Basic realm="again"',),
        ('Basic realm="one"', 'Basic realm="two"'),
    ],
    ids=str,
)
def test_h1_a_401_for_ever_ends_soon(server: WireServer, make_client: MakeClient, challenges: tuple[str, ...]) -> None:
    server.on(TAGGED, challenge(*challenges))
    with pytest.raises(Forbidden, match="not found or no access"):
        fetch(make_client(settings_for(server)), server, ALICE)
    assert len(server.asked(TAGGED)) <= 2


def test_h1_realms_that_alternate_are_followed_at_most_twice(server: WireServer, make_client: MakeClient) -> None:
    """The second round is for registries that give a powerless token for a wrong password and then ask for Basic."""
    turns: list[Scripted] = []
    for number in range(10):
        turns += [challenge(bearer(f"{server.url}/token{number}")), challenge(f'Basic realm="{number}"')]
        server.on(f"/token{number}", document({"token": f"powerless{number}"}))
    server.on(TAGGED, *turns)
    with pytest.raises(Forbidden, match="not found or no access"):
        fetch(make_client(settings_for(server)), server, ALICE)
    assert shown(server, TAGGED) == [None, "Bearer powerless0", BASIC_ALICE]


# -- H2: who may be a token server


@pytest.mark.parametrize(
    "realm",
    [
        "http://{tokens}/token",
        "http://localhost:{port}/token",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/token",
        "http://2130706433:{port}/token",
        "https://evil.example.com/token",
        "http://127.0.0.1.evil.example.com/token",
        "http://127.0.0.1@evil.example.com/token",
        "ftp://127.0.0.1/token",
        "file:///etc/passwd",
        "/token",
        "token",
    ],
)
def test_h2_a_realm_that_is_not_the_registrys_own_gets_nothing(
    server: WireServer, tokens: WireServer, make_client: MakeClient, realm: str
) -> None:
    other = f"127.0.0.2:{tokens.port}"  # an address that is not the registry's
    server.on(TAGGED, challenge(bearer(realm.format(tokens=other, port=tokens.port))))
    for credential in (ALICE, ANONYMOUS):
        with pytest.raises(Forbidden, match=f"^{server.host}/llm/tiny:v1: {server.host} "):
            fetch(make_client(settings_for(server)), server, credential)
    assert tokens.connections == 0


def test_h2_a_realm_on_the_registrys_own_host_is_believed_on_any_port(
    server: WireServer, tokens: WireServer, make_client: MakeClient
) -> None:
    server.on(TAGGED, behind({"Bearer one"}, bearer(f"{tokens.url}/token")))
    tokens.on("/token", document({"token": "one"}))
    assert fetch(make_client(settings_for(server)), server, ALICE) == MANIFEST


def test_h2_a_realm_that_the_admin_trusts_for_this_registry_is_believed(
    server: WireServer, tokens: WireServer, make_client: MakeClient
) -> None:
    other = f"localhost:{tokens.port}"
    server.on(TAGGED, behind({"Bearer one"}, bearer(f"http://{other}/token")))
    tokens.on("/token", document({"token": "one"}))
    assert fetch(make_client(settings_for(server, trusted_realms=[other])), server, ALICE) == MANIFEST
    with pytest.raises(Forbidden, match="the admin can add it to trusted_realms"):
        fetch(make_client(settings_for(server, trusted_realms=["localhost:1"])), server, ALICE)


# -- many at once


def test_a_token_is_fetched_once_for_all_who_wait(server: WireServer, make_client: MakeClient) -> None:
    release = threading.Event()

    def slow(asked: Asked) -> Answer:
        release.wait(10)
        return document({"token": "one", "expires_in": 300})

    server.on(TAGGED, behind({"Bearer one"}, bearer(f"{server.url}/token")))
    server.on("/token", slow)
    client, results = make_client(settings_for(server)), []

    def ask() -> None:
        results.append(fetch(client, server, ALICE))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(server.asked(TAGGED)) < len(threads):
        threading.Event().wait(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert results == [MANIFEST] * 6
    assert len(server.asked("/token")) == 1


def test_tokens_of_different_credentials_and_registries_are_kept_apart(
    server: WireServer, tokens: WireServer, make_client: MakeClient
) -> None:
    def issue(asked: Asked) -> Answer:
        return document(
            {"token": "for-" + asked.headers.get("authorization", "none").rpartition(" ")[2], "expires_in": 300}
        )

    for each in (server, tokens):
        each.on(TAGGED, behind({"Bearer for-none"}, bearer(f"{each.url}/token")))
        each.on("/token", issue)
    client = make_client(settings_for(server, tokens))
    assert fetch(client, server, ANONYMOUS) == MANIFEST
    with pytest.raises(Forbidden):
        fetch(client, server, ALICE)
    assert fetch(client, server, ANONYMOUS) == MANIFEST
    assert fetch(client, tokens, ANONYMOUS) == MANIFEST
    assert len(server.asked("/token")) == 2
    assert len(tokens.asked("/token")) == 1


# -- lifetimes, by a clock of our own


@pytest.mark.parametrize(
    ("expires_in", "good_until", "over_at"),
    [
        (300, 269, 270),
        (1800, 1769, 1770),
        (30, 26, 27),
        (None, 53, 54),
        ("300", 53, 54),
        (True, 53, 54),
        (10**9, 3569, 3570),
        (10**400, 3569, 3570),
    ],
)
def test_h17_a_token_is_good_until_shortly_before_its_end(
    server: WireServer, expires_in: Any, good_until: float, over_at: float
) -> None:
    server.on("/token", document({"token": "one", "expires_in": expires_in}))
    now = [1000.0]
    with tokens_of(server, lambda: now[0]) as (tokens, key, get):
        assert tokens.peek(key) is None
        assert get() == "one"
        now[0] = 1000.0 + good_until
        assert tokens.peek(key) == get() == "one"
        assert len(server.asked()) == 1
        now[0] = 1000.0 + over_at
        assert tokens.peek(key) is None
        assert get() == "one"
        assert len(server.asked()) == 2


@pytest.mark.parametrize("expires_in", [0, -5, float("nan")])
def test_a_token_without_a_lifetime_is_used_once(server: WireServer, expires_in: float) -> None:
    server.on("/token", Answer(body=json.dumps({"token": "one", "expires_in": expires_in}).encode()))
    with tokens_of(server, lambda: 1000.0) as (tokens, key, get):
        assert get() == get() == "one"
        assert tokens.peek(key) is None
        assert len(server.asked()) == 2


@pytest.mark.parametrize(
    "slow",
    [
        Answer(body=b'{"token": "one"}', stall_after=0),
        Answer(body=b'{"token": "one"}', stall_after=5),
        Answer(body=b'{"token": "one"}' + b" " * 10_000, drip=(1, 0.05)),
    ],
    ids=["silent", "silent in the middle", "dripping"],
)
def test_h6_a_slow_token_server_is_named_within_the_time_and_delays_nobody_else(
    server: WireServer, tokens: WireServer, slow: Answer
) -> None:
    server.on("/token", slow)
    tokens.on("/token", document({"token": "two"}))
    with tokens_of(server, time.monotonic, tokens) as (kept, key, _):
        told: list[ModelMountError] = []

        def wait() -> None:
            with pytest.raises(Unavailable) as caught:
                kept.get(key, None, "the model", soon(1.0))
            told.append(caught.value)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not server.asked("/token") and waiting.is_alive():
            threading.Event().wait(0.01)
        other = replace(key, registry=tokens.host, server=Url.parse(f"{tokens.url}/token"))
        assert kept.get(other, None, "another model", soon(60.0)) == "two"
        waiting.join()
    assert told[0].message.startswith("the model: ")
    assert server.host in told[0].message
    assert len(server.asked("/token")) <= 1


def test_who_waits_for_anothers_fetch_waits_no_longer_than_its_own_deadline(server: WireServer) -> None:
    server.on("/token", Answer(body=b"{", stall_after=0))
    with tokens_of(server, time.monotonic) as (tokens, key, _):

        def wait_long() -> None:
            with pytest.raises(Unavailable):
                tokens.get(key, None, "x", soon(1.0))

        first = threading.Thread(target=wait_long)
        first.start()
        while not server.asked():
            threading.Event().wait(0.01)
        with pytest.raises(Unavailable, match=r"^x: the token server .* didn't answer in time"):
            tokens.get(key, None, "x", soon(0.05))
        first.join()
    assert len(server.asked()) == 1


@contextlib.contextmanager
def tokens_of(
    server: WireServer, clock: Callable[[], float], *others: WireServer
) -> Iterator[tuple[Tokens, Key, Callable[[], str]]]:
    """Tokens over a real pool with a clock of the test's own, a key, and how to get its token."""
    pool = Pool(settings_for(server, *others))
    tokens = Tokens(pool, clock)
    key = Key(server.host, Url.parse(f"{server.url}/token"), "", "repository:llm/tiny:pull", ANONYMOUS)
    yield tokens, key, lambda: tokens.get(key, None, "x", soon())
    pool.close()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds
