"""Writing to registries: real ones, counted in their own logs, and scripted ones for what real ones do seldom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Cancelled, Forbidden, IntegrityError, NotFound, Unauthenticated, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import OCI_MANIFEST
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential
from modelmount.registry.uploads import TRIES, Bytes, Uploads
from modelmount.transport.retry import Policy
from tests.fakes import registry, tokens
from tests.fakes.gateway import Fault, Gateway, instead
from tests.fakes.wire import Answer, Asked, WireServer, challenge, document, redirect
from tests.unit.registry.asking import ALICE, ANONYMOUS, BLOB, BLOB_DIGEST, BLOB_PATH, MANIFEST, TAGGED, settings_for

MakeUploads = Callable[..., Uploads]
START = "/v2/llm/tiny/blobs/uploads/"
QUICK = Policy(first_seconds=0.01, longest_seconds=0.01)


@dataclass
class Pieces:
    """A body in pieces, and how often it was begun."""

    data: bytes = BLOB
    begun: int = 0
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.data)

    def pieces(self) -> Iterator[bytes]:
        self.begun += 1
        for start in range(0, len(self.data), 1000):
            yield self.data[start : start + 1000]


@pytest.fixture
def make() -> Iterator[MakeUploads]:
    """Makes uploads to `llm/tiny` of a host over http, closed when the test ends."""
    made: list[Uploads] = []

    def uploads(host: str, credential: Credential = ANONYMOUS, path: str = "llm/tiny", **options: Any) -> Uploads:
        settings = Settings(registries={host: Registry(plain_http=True)})
        made.append(Uploads(settings, Repository(host, path), credential, policy=QUICK, **options))
        return made[-1]

    yield uploads
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    with registry.Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


def asked(server: registry.Registry) -> list[tuple[str, int]]:
    return [(each.method, each.status) for each in server.requests()]


@pytest.mark.registry
class TestRealRegistry:
    def test_a_blob_is_sent_once_and_found_afterwards(self, real: registry.Registry, make: MakeUploads) -> None:
        uploads, body = make(real.host, path="once/tiny"), Pieces()
        real.forget()
        assert uploads.blob(BLOB_DIGEST, body) == "sent"
        assert asked(real) == [("HEAD", 404), ("POST", 202), ("PUT", 201)]
        assert real.blob_file(str(BLOB_DIGEST)).read_bytes() == BLOB
        real.forget()
        assert uploads.blob(BLOB_DIGEST, body) == "found"
        assert asked(real) == [("HEAD", 200)]
        assert body.begun == 1

    def test_an_empty_blob(self, real: registry.Registry, make: MakeUploads) -> None:
        uploads = make(real.host, path="empty/tiny")
        assert uploads.blob(Digest.of(b""), Bytes(b"")) == "sent"
        assert uploads.blob(Digest.of(b""), Bytes(b"")) == "found"

    def test_a_blob_of_another_repository_is_mounted(self, real: registry.Registry, make: MakeUploads) -> None:
        make(real.host, path="first/tiny").blob(BLOB_DIGEST, Pieces())
        real.forget()
        body = Pieces()
        assert make(real.host, path="second/tiny", beside=("absent/tiny", "first/tiny")).blob(BLOB_DIGEST, body) == (
            "mounted"
        )
        assert asked(real) == [("HEAD", 404), ("HEAD", 404), ("HEAD", 200), ("POST", 201)]
        assert body.begun == 0

    def test_bytes_of_another_digest_are_not_taken(self, real: registry.Registry, make: MakeUploads) -> None:
        with pytest.raises(IntegrityError, match="the file may have changed meanwhile"):
            make(real.host).blob(Digest.of(b"something else"), Pieces())

    def test_a_manifest_is_sent_once(self, real: registry.Registry, make: MakeUploads) -> None:
        uploads = make(real.host, path="manifests/tiny")
        uploads.blob(Digest.of(b"{}"), Bytes(b"{}"))
        digest, size = Digest.of(b"{}"), 2
        described = f'{{"mediaType": "application/vnd.oci.empty.v1+json", "digest": "{digest}", "size": {size}}}'
        data = (
            f'{{"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {described}, "layers": [{described}]}}'
        ).encode()
        assert uploads.manifest("v1", data, OCI_MANIFEST) is True
        real.forget()
        assert uploads.manifest("v1", data, OCI_MANIFEST) is False
        assert asked(real) == [("HEAD", 200)]
        assert uploads.manifest(str(Digest.of(data)), data, OCI_MANIFEST) is False

    def test_a_manifest_whose_blobs_are_missing_is_refused(self, real: registry.Registry, make: MakeUploads) -> None:
        described = f'{{"mediaType": "x/y", "digest": "{Digest.of(b"nowhere")}", "size": 7}}'
        data = f'{{"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {described}, "layers": []}}'.encode()
        with pytest.raises(Forbidden, match=r"refuses it .*MANIFEST_BLOB_UNKNOWN"):
            make(real.host).manifest("v1", data, OCI_MANIFEST)

    def test_a_body_that_fails_ends_the_push_with_its_own_error(
        self, real: registry.Registry, make: MakeUploads
    ) -> None:
        class Failing(Pieces):
            def pieces(self) -> Iterator[bytes]:
                yield self.data[:1000]
                raise Cancelled("interrupted")

        uploads = make(real.host, path="failing/tiny")
        with pytest.raises(Cancelled, match="interrupted"):
            uploads.blob(BLOB_DIGEST, Failing())
        assert uploads.blob(BLOB_DIGEST, Pieces()) == "sent"

    def test_an_upload_that_breaks_off_is_begun_anew(self, real: registry.Registry, make: MakeUploads) -> None:
        with Gateway(real) as gateway:
            gateway.play(Fault(lambda each: each.method == "PUT", instead(Answer(hang_up=True)), times=2))
            body = Pieces()
            assert make(gateway.host, path="broken/tiny").blob(BLOB_DIGEST, body) == "sent"
            assert body.begun == 3
            assert [each.method for each in gateway.asked()] == 3 * ["HEAD", "POST", "PUT"]

    def test_a_blob_whose_answer_was_lost_is_found(self, real: registry.Registry, make: MakeUploads) -> None:
        def lose(each: Asked, gateway: Gateway) -> Answer:
            assert gateway.forward(each).status == 201
            return Answer(hang_up=True)

        with Gateway(real) as gateway:
            gateway.play(Fault(lambda each: each.method == "PUT", lose))
            body = Pieces()
            assert make(gateway.host, path="lost/tiny").blob(BLOB_DIGEST, body) == "found"
            assert body.begun == 1

    def test_a_read_only_registry_says_so(self, tmp_path: Path, make: MakeUploads) -> None:
        with registry.Registry(tmp_path, read_only=True) as closed, pytest.raises(Forbidden, match="may be read-only"):
            make(closed.host).blob(BLOB_DIGEST, Pieces())

    def test_a_password_is_asked_for_and_believed(self, tmp_path: Path, make: MakeUploads) -> None:
        with registry.Registry(tmp_path, users={ALICE.username: ALICE.password}) as private:
            with pytest.raises(Unauthenticated, match="takes it from nobody without a credential"):
                make(private.host).blob(BLOB_DIGEST, Pieces())
            with pytest.raises(Forbidden, match="doesn't take it from this account"):
                make(private.host, Credential(username="alice", password="wrong")).blob(BLOB_DIGEST, Pieces())
            assert make(private.host, ALICE).blob(BLOB_DIGEST, Pieces()) == "sent"

    def test_a_token_is_good_for_what_is_done_and_no_more(self, tmp_path: Path, make: MakeUploads) -> None:
        rights = {"llm/base": ("pull", "push"), "llm/tiny": ("pull", "push"), "llm/secret": ("pull", "push")}
        users = {"alice": tokens.User(ALICE.password, rights), "bob": tokens.User("b", {"llm/base": ("pull",)})}
        with (
            tokens.TokenServer(tmp_path, users=users) as server,
            registry.Registry(tmp_path / "registry", token=server.auth) as real,
        ):
            assert make(real.host, ALICE, path="llm/base").blob(BLOB_DIGEST, Pieces()) == "sent"
            server.requests.clear()
            assert make(real.host, ALICE, beside=["llm/base"]).blob(BLOB_DIGEST, Pieces()) == "mounted"
            assert [each.scopes for each in server.requests] == [
                ("repository:llm/tiny:pull,push",),
                ("repository:llm/base:pull",),
                ("repository:llm/tiny:pull,push", "repository:llm/base:pull"),
            ]
            with pytest.raises(Forbidden, match="ask its admin for the right to push"):
                make(real.host, Credential(username="bob", password="b"), path="llm/base").blob(
                    Digest.of(b"new"), Bytes(b"new")
                )


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as started:
        yield started


def begins(server: WireServer, location: str = "/upload?state=a%2Fb") -> None:
    """It has nothing, and takes uploads at `location`."""
    server.on(BLOB_PATH, Answer(404))
    server.on(START, Answer(202, headers=[("Location", location)]))


def test_the_place_to_send_to_keeps_its_query(server: WireServer, make: MakeUploads) -> None:
    begins(server)
    server.on("/upload", Answer(201))
    assert make(server.host).blob(BLOB_DIGEST, Pieces()) == "sent"
    (put,) = server.asked("/upload")
    assert put.query == f"state=a%2Fb&digest=sha256%3A{BLOB_DIGEST.hex}"
    assert put.body == BLOB
    assert put.headers["content-length"] == str(len(BLOB))
    assert "transfer-encoding" not in put.headers


def test_another_host_gets_the_bytes_and_no_credential(server: WireServer, make: MakeUploads) -> None:
    with WireServer() as storage:
        settings = settings_for(server, storage)
        server.on(BLOB_PATH, challenge('Basic realm="x"'), Answer(404))
        server.on(START, Answer(202, headers=[("Location", f"{storage.url}/upload")]))
        storage.on("/upload", Answer(201))
        uploads = Uploads(settings, Repository(server.host, "llm/tiny"), ALICE, policy=QUICK)
        assert uploads.blob(BLOB_DIGEST, Pieces()) == "sent"
        uploads.close()
        (put,) = storage.asked()
        assert "authorization" not in put.headers
        assert "authorization" in server.asked(START)[0].headers


def test_a_registry_that_does_not_mount_is_sent_the_bytes(server: WireServer, make: MakeUploads) -> None:
    begins(server)
    server.on("/v2/llm/base/blobs/" + str(BLOB_DIGEST), Answer(200))
    server.on("/upload", Answer(201))
    assert make(server.host, beside=["llm/base"]).blob(BLOB_DIGEST, Pieces()) == "sent"
    mount, start = server.asked(START)
    assert mount.query == f"mount=sha256%3A{BLOB_DIGEST.hex}&from=llm%2Fbase"
    assert start.query == ""


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(413), Forbidden, "larger than .* takes; have the limit on request bodies raised"),
        (Answer(404), Unavailable, "forgot the upload"),
        (redirect("/elsewhere"), Unavailable, "answered 307"),
        (document({"errors": [{"code": "TOOMANYREQUESTS"}]}, 429), Unavailable, "too many requests"),
        (Answer(500), Unavailable, "answered 500"),
        (Answer(412), Forbidden, "a policy of"),
    ],
)
def test_what_a_refusal_of_the_bytes_means(
    server: WireServer, make: MakeUploads, answer: Answer, error: type[Exception], text: str
) -> None:
    begins(server)
    server.on("/upload", answer)
    with pytest.raises(error, match=text):
        make(server.host).blob(BLOB_DIGEST, Pieces())
    assert len(server.asked("/upload")) == (TRIES if error is Unavailable else 1)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (document({"errors": [{"code": "NAME_UNKNOWN"}]}, 404), NotFound, "no place for it .*NAME_UNKNOWN"),
        (Answer(202), Unavailable, "names no place .*no Location"),
        (Answer(202, headers=[("Location", "ftp://x/")]), Unavailable, "names no place"),
        (Answer(202, headers=[("Location", "http://192.0.2.1 /")]), Unavailable, "names no place"),
    ],
)
def test_what_a_refusal_to_begin_means(
    server: WireServer, make: MakeUploads, answer: Answer, error: type[Exception], text: str
) -> None:
    server.on(BLOB_PATH, Answer(404))
    server.on(START, answer)
    body = Pieces()
    with pytest.raises(error, match=text):
        make(server.host).blob(BLOB_DIGEST, body)


def test_an_upload_is_not_led_to_where_nobody_may_go(server: WireServer, make: MakeUploads) -> None:
    begins(server, "http://169.254.169.254/latest")
    body = Pieces()
    with pytest.raises(Forbidden, match="metadata-service address"):
        make(server.host).blob(BLOB_DIGEST, body)


def test_a_manifest_that_became_another_is_noticed(server: WireServer, make: MakeUploads) -> None:
    server.on(TAGGED, Answer(404), Answer(201, headers=[("Docker-Content-Digest", str(BLOB_DIGEST))]))
    with pytest.raises(IntegrityError, match="says that it is"):
        make(server.host).manifest("v1", MANIFEST, OCI_MANIFEST)


def test_closing_ends_the_waits_between_tries(server: WireServer, make: MakeUploads) -> None:
    begins(server)
    uploads = make(server.host)

    def close(asked: Asked) -> Answer:
        uploads._closing.set()
        return Answer(503, headers=[("Retry-After", "600")])

    server.on("/upload", close)
    with pytest.raises(Unavailable, match="answered 503"):
        uploads.blob(BLOB_DIGEST, Pieces())
    assert len(server.asked("/upload")) == 1
