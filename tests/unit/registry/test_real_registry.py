"""The client against a real registry in each of its moods, and counted in its own log."""

import http.server
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelmount import __version__
from modelmount.config import Pull, Registry, Settings
from modelmount.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference, Repository
from modelmount.registry.auth import MAX_ROUNDS
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.registry.tokens import Tokens
from tests.fakes import push, registry, tokens
from tests.fakes.wire import WireServer, blob
from tests.unit.registry.asking import ALICE, ANONYMOUS
from tests.unit.transport.asking import drain

pytestmark = pytest.mark.registry
MakeClient = Callable[..., Client]
WEIGHTS = bytes(range(256)) * 8192
MALLORY = Credential(username="alice", password="wrong")


@pytest.fixture
def model(tmp_path: Path) -> push.Artifact:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    return push.oras(directory)


def listed(*hosts: str, pull: Pull | None = None, **options: object) -> Settings:
    return Settings(registries={host: Registry(**options) for host in hosts}, pull=pull or Pull())  # type: ignore[arg-type]


def place(pushed: push.Pushed) -> tuple[Repository, Digest, Digest]:
    """Repository, manifest and weights."""
    return Reference.parse(pushed.reference).repository, Digest.parse(pushed.digest), Digest.parse(pushed.layers[0])


def check_everything(client: Client, pushed: push.Pushed, credential: Credential) -> None:
    """All that a client does, with an answer that is right."""
    repository, manifest, weights = place(pushed)
    assert client.resolve(repository, pushed.tag, credential) == manifest
    client.exists(repository, manifest, credential)
    assert client.manifest(repository, pushed.tag, credential).data == pushed.document
    assert client.manifest(repository, manifest, credential).media_type == push.MANIFEST
    for offset in (0, 1, len(WEIGHTS) - 1):
        body = client.blob(repository, weights, offset, credential)
        assert (body.offset, body.total) == (offset, len(WEIGHTS))
        assert drain(body) == WEIGHTS[offset:]


def check_refusals(client: Client, pushed: push.Pushed, credential: Credential, kind: type[Exception]) -> None:
    """Nothing is to be had, and the words don't tell why."""
    repository, manifest, weights = place(pushed)
    asked: list[Callable[[], object]] = [
        lambda: client.resolve(repository, pushed.tag, credential),
        lambda: client.exists(repository, manifest, credential),
        lambda: client.manifest(repository, pushed.tag, credential),
        lambda: client.blob(repository, weights, 0, credential),
    ]
    for ask in asked:
        with pytest.raises(kind, match="not found or no access; check ") as refused:
            ask()
        assert type(refused.value) is kind


def test_an_open_registry_serves_everybody(tmp_path: Path, model: push.Artifact, make_client: MakeClient) -> None:
    with registry.Registry(tmp_path / "registry") as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        client = make_client(listed(real.host, plain_http=True))
        real.forget()
        check_everything(client, pushed, ANONYMOUS)
        check_everything(client, pushed, ALICE)
        assert {each.user_agent for each in real.requests()} == {f"modelmount/{__version__}"}
        assert {each.status for each in real.requests()} == {200, 206}
        missing = replace(pushed, repository="llm/other", digest=f"sha256:{'0' * 64}", layers=(f"sha256:{'0' * 64}",))
        check_refusals(client, missing, ANONYMOUS, NotFound)


def test_a_proof_of_access_is_one_head(tmp_path: Path, model: push.Artifact, make_client: MakeClient) -> None:
    with registry.Registry(tmp_path / "registry") as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        repository, manifest, _ = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        real.forget()
        client.exists(repository, manifest, ANONYMOUS)
        assert [(each.method, each.status) for each in real.requests()] == [("HEAD", 200)]


def test_a_registry_with_passwords(tmp_path: Path, model: push.Artifact, make_client: MakeClient) -> None:
    with registry.Registry(tmp_path / "registry", users={ALICE.username: ALICE.password}) as real:
        authorization = push.basic(ALICE.username, ALICE.password)
        pusher = push.Pusher(real.host, real.connection, authorization=authorization)
        pushed = pusher.artifact("llm/tiny", "v1", model)
        client = make_client(listed(real.host, plain_http=True))
        check_everything(client, pushed, ALICE)
        check_refusals(client, pushed, ANONYMOUS, Unauthenticated)
        check_refusals(client, pushed, MALLORY, Forbidden)
        check_refusals(
            client,
            replace(pushed, tag="none", digest=f"sha256:{'0' * 64}", layers=(f"sha256:{'0' * 64}",)),
            ALICE,
            NotFound,
        )
        real.forget()
        check_everything(client, pushed, ALICE)
        assert {each.status for each in real.requests()} == {200, 206}  # the password is shown at once now


@pytest.mark.parametrize("harbor_style", [False, True])
def test_a_registry_with_tokens(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient, *, harbor_style: bool
) -> None:
    """The Harbor contract, too: a powerless token for a wrong password instead of a refusal."""
    users = {"alice": tokens.User(ALICE.password), "bob": tokens.User("b", {"other/model": ("pull",)})}
    with (
        tokens.TokenServer(tmp_path, users=users, harbor_style=harbor_style) as server,
        registry.Registry(tmp_path / "registry", token=server.auth) as real,
    ):
        pushed = pushed_with_token(real, server, model)
        client = make_client(listed(real.host, plain_http=True))
        server.requests.clear()
        check_everything(client, pushed, ALICE)
        scopes = ("repository:llm/tiny:pull",)
        assert server.requests == [tokens.TokenRequest("alice", scopes, 200)]  # one token for all of it
        check_refusals(client, pushed, ANONYMOUS, Unauthenticated)
        check_refusals(client, pushed, MALLORY, Forbidden)
        check_refusals(client, pushed, Credential(username="bob", password="b"), Forbidden)
        server.anonymous["llm/tiny"] = ("pull",)
        check_everything(make_client(listed(real.host, plain_http=True)), pushed, ANONYMOUS)


def pushed_with_token(real: registry.Registry, server: tokens.TokenServer, model: push.Artifact) -> push.Pushed:
    _, document = server.answer("scope=repository:llm/tiny:pull,push", push.basic("alice", ALICE.password))
    authorization = f"Bearer {document['token']}"
    return push.Pusher(real.host, real.connection, authorization=authorization).artifact("llm/tiny", "v1", model)


def test_h17_a_token_that_expires_during_a_pull_is_replaced(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient
) -> None:
    """The answer promises an hour, and the registry refuses the token at once: clocks differ."""
    users = {"alice": tokens.User(ALICE.password)}
    with (
        tokens.TokenServer(tmp_path, users=users) as server,
        registry.Registry(tmp_path / "registry", token=server.auth) as real,
    ):
        pushed = pushed_with_token(real, server, model)
        repository, manifest, weights = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        server.lifetime_seconds, server.expires_in = -300, 3600
        with pytest.raises(Forbidden):
            client.exists(repository, manifest, ALICE)
        server.lifetime_seconds = 300
        assert drain(client.blob(repository, weights, 5, ALICE)) == WEIGHTS[5:]


@pytest.mark.parametrize("ahead", [7200, -7200], ids=["not yet good", "over already"])
def test_h17_a_token_server_with_another_clock_is_a_refusal_until_the_clocks_agree(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient, ahead: int
) -> None:
    """The registry takes no such token, however long it says to be good for. It is asked for twice at most."""
    users = {"alice": tokens.User(ALICE.password)}
    with (
        tokens.TokenServer(tmp_path, users=users) as server,
        registry.Registry(tmp_path / "registry", token=server.auth) as real,
    ):
        pushed = pushed_with_token(real, server, model)
        repository, manifest, _ = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        server.ahead_seconds = ahead
        server.requests.clear()
        with pytest.raises(Forbidden, match="not found or no access"):
            client.exists(repository, manifest, ALICE)
        assert len(server.requests) <= 2 * MAX_ROUNDS  # a HEAD, and a GET for the reason
        server.ahead_seconds = 0
        client.exists(repository, manifest, ALICE)


@pytest.mark.parametrize("jump", [86400.0, -86400.0], ids=["ahead", "behind"])
def test_our_own_clock_matters_to_no_token(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Neither when it is wrong from the beginning nor when it is set while a token is good."""
    users = {"alice": tokens.User(ALICE.password)}
    with (
        tokens.TokenServer(tmp_path, users=users, expires_in=3600) as server,
        registry.Registry(tmp_path / "registry", token=server.auth) as real,
    ):
        pushed = pushed_with_token(real, server, model)
        repository, manifest, _ = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        server.requests.clear()
        client.exists(repository, manifest, ALICE)
        ours = SimpleNamespace(**{name: getattr(time, name) for name in ("monotonic", "sleep")})
        ours.time = lambda: time.time() + jump
        for module in ("registry.tokens", "registry.client", "registry.answers", "transport.pool"):
            monkeypatch.setattr(f"modelmount.{module}.time", ours, raising=False)
        client.exists(repository, manifest, ALICE)
        make_client(listed(real.host, plain_http=True)).exists(repository, manifest, ALICE)
        assert [request.status for request in server.requests] == [200, 200]
    # What counts a token's life was bound before anything could be put in its place here.
    assert inspect.signature(Tokens).parameters["clock"].default is time.monotonic


def test_a_registry_with_its_own_ca(tmp_path: Path, model: push.Artifact, make_client: MakeClient) -> None:
    tls = registry.Tls.make(tmp_path / "tls")
    with registry.Registry(tmp_path / "registry", tls=tls) as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        check_everything(make_client(listed(real.host, ca_file=str(tls.ca_file))), pushed, ANONYMOUS)
        repository, manifest, _ = place(pushed)
        with pytest.raises(Unavailable, match="has a certificate that isn't trusted"):
            make_client(listed(real.host)).exists(repository, manifest, ANONYMOUS)
        with pytest.raises(Unavailable, match="answered 400"):
            make_client(listed(real.host, plain_http=True)).exists(repository, manifest, ANONYMOUS)


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """Storage beside the registry that serves its files and knows no ranges."""
    handler = partial(QuietFiles, directory=str(tmp_path / "registry/storage"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_registry_that_redirects_to_storage_without_ranges(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient, files: str
) -> None:
    with registry.Registry(tmp_path / "registry", redirect_to=files) as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        repository, _, weights = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        for _ in range(2):
            body = client.blob(repository, weights, 1000, ANONYMOUS)
            assert (body.offset, body.total) == (0, len(WEIGHTS))
            assert drain(body) == WEIGHTS
        assert real.blob_gets()[str(weights)] == 2  # storage is asked for anew each time


def test_a_registry_with_passwords_that_redirects_keeps_them_from_its_storage(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient
) -> None:
    users = {ALICE.username: ALICE.password}
    with (
        WireServer() as storage,
        registry.Registry(tmp_path / "registry", users=users, redirect_to=f"{storage.url}/") as real,
    ):
        authorization = push.basic(ALICE.username, ALICE.password)
        pushed = push.Pusher(real.host, real.connection, authorization=authorization).artifact("llm/tiny", "v1", model)
        repository, _, weights = place(pushed)
        data = f"/docker/registry/v2/blobs/sha256/{weights.hex[:2]}/{weights.hex}/data"
        storage.on(data, blob(WEIGHTS))
        client = make_client(listed(real.host, plain_http=True))
        assert drain(client.blob(repository, weights, 7, ALICE)) == WEIGHTS[7:]
        (asked,) = storage.asked()
        assert asked.headers["range"] == "bytes=7-"
        assert "authorization" not in asked.headers


def test_a_registry_that_is_down_is_unavailable_until_it_is_back(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient
) -> None:
    with registry.Registry(tmp_path / "registry") as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        repository, manifest, weights = place(pushed)
        client = make_client(listed(real.host, plain_http=True))
        client.exists(repository, manifest, ANONYMOUS)
        body = client.blob(repository, weights, 0, ANONYMOUS)
        real.stop(kill=True)
        with pytest.raises(Unavailable, match=rf"^{real.host}/llm/tiny@{manifest}: {real.host} refused the connection"):
            client.exists(repository, manifest, ANONYMOUS)
        body.close()
        real.start()
        check_everything(client, pushed, ANONYMOUS)


def test_a_registry_that_says_nothing_is_given_up(
    tmp_path: Path, model: push.Artifact, make_client: MakeClient
) -> None:
    with registry.Registry(tmp_path / "registry") as real:
        pushed = push.Pusher(real.host, real.connection).artifact("llm/tiny", "v1", model)
        repository, manifest, _ = place(pushed)
        quick = Pull(read_timeout_seconds=5, document_timeout_seconds=0.3)
        client = make_client(listed(real.host, plain_http=True, pull=quick))
        with real.frozen(), pytest.raises(Unavailable, match="didn't answer in time"):
            client.exists(repository, manifest, ANONYMOUS)
        client.exists(repository, manifest, ANONYMOUS)
