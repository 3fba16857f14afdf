"""Manifests and blobs from registries that answer as registries do, and as they shouldn't."""

import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from modelmount.config import Pull
from modelmount.errors import (
    BadArtifact,
    Forbidden,
    IntegrityError,
    ModelMountError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST
from modelmount.registry.client import DOCUMENT_TRIES, Client
from modelmount.transport.retry import Policy
from tests.fakes.wire import Answer, Asked, WireServer, blob, document, redirect
from tests.unit.registry.asking import (
    ALICE,
    ANONYMOUS,
    BLOB,
    BLOB_DIGEST,
    BLOB_PATH,
    MANIFEST,
    MANIFEST_DIGEST,
    PINNED,
    TAGGED,
    settings_for,
    tiny,
)
from tests.unit.transport.asking import drain

MakeClient = Callable[..., Client]
DIGEST_HEADER = ("Docker-Content-Digest", str(MANIFEST_DIGEST))
MANIFEST_ANSWER = Answer(body=MANIFEST, headers=[("Content-Type", OCI_MANIFEST), DIGEST_HEADER])


def test_a_manifest_comes_with_its_type_and_the_digest_of_its_bytes(
    server: WireServer, make_client: MakeClient
) -> None:
    server.on(TAGGED, MANIFEST_ANSWER)
    fetched = make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)
    assert (fetched.data, fetched.media_type, fetched.digest) == (MANIFEST, OCI_MANIFEST, MANIFEST_DIGEST)
    accepted = server.asked()[0].headers["accept"].split(", ")
    assert {OCI_MANIFEST, OCI_INDEX, "application/vnd.docker.distribution.manifest.v2+json"} <= set(accepted)
    assert "*/*" not in accepted


def test_a_header_shows_damage_and_proves_nothing(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(body=b"other", headers=[DIGEST_HEADER]), MANIFEST_ANSWER)
    client = make_client(settings_for(server))
    assert client.manifest(tiny(server), "v1", ANONYMOUS).digest == MANIFEST_DIGEST
    server.on(TAGGED, Answer(body=b"other", headers=[DIGEST_HEADER]))
    with pytest.raises(Unavailable, match="other bytes than its digest names"):
        client.manifest(tiny(server), "v1", ANONYMOUS)
    assert {each.method for each in server.asked()} == {"GET"}
    assert len(server.asked()) == 2 + DOCUMENT_TRIES


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_bytes_that_are_not_those_of_the_digest_asked_for_are_refused(
    server: WireServer, make_client: MakeClient, algorithm: str
) -> None:
    hasher = Digest(algorithm, "0" * (64 if algorithm == "sha256" else 128)).hasher()
    hasher.update(MANIFEST)
    digest = Digest(algorithm, hasher.hexdigest())
    path = f"/v2/llm/tiny/manifests/{digest}"
    server.on(path, MANIFEST_ANSWER, Answer(body=b"other", headers=[("Docker-Content-Digest", str(digest))]))
    client = make_client(settings_for(server))
    assert client.manifest(tiny(server), digest, ANONYMOUS).digest == digest
    with pytest.raises(IntegrityError, match=rf"{server.host}/llm/tiny@{digest}: the registry served other bytes"):
        client.manifest(tiny(server), digest, ANONYMOUS)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_manifest_larger_than_any_is_refused(server: WireServer, make_client: MakeClient, framing: Any) -> None:
    whole = Answer(body=b" " * MAX_DOCUMENT_BYTES, framing=framing)
    server.on(TAGGED, whole, Answer(body=b" " * (MAX_DOCUMENT_BYTES + 1), framing=framing))
    client = make_client(settings_for(server))
    assert len(client.manifest(tiny(server), "v1", ANONYMOUS).data) == MAX_DOCUMENT_BYTES
    with pytest.raises(BadArtifact, match="larger than"):
        client.manifest(tiny(server), "v1", ANONYMOUS)


def test_a_manifest_cut_short_is_unavailable(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(body=MANIFEST, cut_after=3))
    with pytest.raises(Unavailable, match=f"after 3 of {len(MANIFEST)} bytes"):
        make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)


def test_h6_a_manifest_that_trickles_has_a_deadline(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(body=MANIFEST * 1000, drip=(1, 0.05)))
    settings = settings_for(server, pull=Pull(read_timeout_seconds=5, document_timeout_seconds=0.5))
    with pytest.raises(Unavailable, match="didn't answer in time"):
        make_client(settings).manifest(tiny(server), "v1", ANONYMOUS)


# -- HEAD


def test_a_tag_is_resolved_by_one_head(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, MANIFEST_ANSWER)
    assert make_client(settings_for(server)).resolve(tiny(server), "v1", ANONYMOUS) == MANIFEST_DIGEST
    assert [each.method for each in server.asked()] == ["HEAD"]


@pytest.mark.parametrize("header", ["", "nonsense", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e"])
def test_a_tag_is_resolved_by_its_bytes_where_a_head_says_nothing_useful(
    server: WireServer, make_client: MakeClient, header: str
) -> None:
    server.on(TAGGED, Answer(body=MANIFEST, headers=[("Docker-Content-Digest", header)]))
    assert make_client(settings_for(server)).resolve(tiny(server), "v1", ANONYMOUS) == MANIFEST_DIGEST
    assert [each.method for each in server.asked()] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 412, 501])
def test_a_head_that_is_refused_is_asked_again_by_get(server: WireServer, make_client: MakeClient, status: int) -> None:
    client = make_client(settings_for(server))
    for path in (TAGGED, PINNED):
        server.on(path, lambda asked: Answer(status) if asked.method == "HEAD" else MANIFEST_ANSWER)
    assert client.resolve(tiny(server), "v1", ANONYMOUS) == MANIFEST_DIGEST
    client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)


def test_access_to_what_a_tag_means_is_asked_for_on_condition(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(304), MANIFEST_ANSWER)  # a registry that knows conditions, and one that doesn't
    client = make_client(settings_for(server))
    for _ in range(2):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS, tag="v1")
    assert [(each.method, each.path) for each in server.asked()] == [("HEAD", TAGGED)] * 2
    assert {each.headers["if-none-match"] for each in server.asked()} == {f'"{MANIFEST_DIGEST}"'}


@pytest.mark.parametrize("header", ["", f"sha256:{'0' * 64}"])
def test_a_tag_that_moved_is_asked_for_once_and_then_the_digest(
    server: WireServer, make_client: MakeClient, header: str
) -> None:
    server.on(TAGGED, Answer(body=MANIFEST, headers=[("Docker-Content-Digest", header)]))
    server.on(PINNED, MANIFEST_ANSWER)
    client = make_client(settings_for(server))
    for _ in range(2):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS, tag="v1")
    assert [(each.method, each.path) for each in server.asked()] == [
        ("HEAD", TAGGED),
        ("HEAD", PINNED),
        ("HEAD", PINNED),
    ]


@pytest.mark.parametrize(("status", "refusal"), [(401, Unauthenticated), (403, Unauthenticated), (404, NotFound)])
def test_a_tag_that_is_refused_is_decided_by_a_get_of_the_digest(
    server: WireServer, make_client: MakeClient, status: int, refusal: type[ModelMountError]
) -> None:
    server.on(TAGGED, Answer(status))
    server.on(PINNED, MANIFEST_ANSWER, Answer(status))
    client = make_client(settings_for(server))
    client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS, tag="v1")
    with pytest.raises(refusal):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS, tag="v1")
    assert [(each.method, each.path) for each in server.asked()] == [("HEAD", TAGGED), ("GET", PINNED)] * 2


def test_not_modified_is_no_answer_to_who_set_no_condition(server: WireServer, make_client: MakeClient) -> None:
    server.on(PINNED, Answer(304))
    with pytest.raises(ModelMountError):
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert "if-none-match" not in server.asked()[0].headers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_registry_in_trouble_is_asked_a_few_times_and_never_by_get(
    server: WireServer, make_client: MakeClient, status: int
) -> None:
    client = make_client(settings_for(server))
    server.on(PINNED, Answer(status))
    with pytest.raises(Unavailable):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert [each.method for each in server.asked()] == ["HEAD"] * DOCUMENT_TRIES


def test_trouble_that_passes_is_not_told(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(503), Answer(body=MANIFEST, cut_after=3), MANIFEST_ANSWER)
    assert make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS).digest == MANIFEST_DIGEST


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_asks_for_a_long_wait_is_not_waited_for(
    status: int, server: WireServer, make_client: MakeClient
) -> None:
    server.on(TAGGED, Answer(status, headers=[("Retry-After", "3600")]))
    with pytest.raises(Unavailable, match="asks to wait 600 s") as caught:
        make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)
    assert caught.value.retry_after == 600
    assert len(server.asked()) == 1


def test_closing_ends_the_wait_between_tries(server: WireServer) -> None:
    asked = threading.Event()

    def busy(_: Asked) -> Answer:
        asked.set()
        return Answer(503)

    server.on(TAGGED, busy)
    client = Client(settings_for(server), policy=Policy(first_seconds=4, longest_seconds=4))

    def close() -> None:
        asked.wait()
        client.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(Unavailable):
        client.manifest(tiny(server), "v1", ANONYMOUS)
    closing.join()
    assert len(server.asked()) == 1


def test_access_is_proved_by_one_head(server: WireServer, make_client: MakeClient) -> None:
    server.on(PINNED, Answer(body=MANIFEST, headers=[DIGEST_HEADER]))
    client = make_client(settings_for(server))
    for _ in range(3):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert [each.method for each in server.asked()] == ["HEAD"] * 3
    assert server.connections == 1


def test_a_head_that_names_no_digest_proves_nothing(server: WireServer, make_client: MakeClient) -> None:
    """Any page for people is answered with 200."""
    server.on(PINNED, Answer(body=MANIFEST), Answer(body=MANIFEST), Answer(body=b"<html>Who are you?</html>"))
    client = make_client(settings_for(server))
    client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert [each.method for each in server.asked()] == ["HEAD", "GET"]
    with pytest.raises(IntegrityError):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)


def test_a_head_that_names_another_digest_proves_nothing(server: WireServer, make_client: MakeClient) -> None:
    server.on(PINNED, Answer(body=b"other", headers=[("Docker-Content-Digest", str(BLOB_DIGEST))]))
    with pytest.raises(IntegrityError):
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)


# -- what answers mean


@pytest.mark.parametrize("credential", [ANONYMOUS, ALICE], ids=["anonymous", "alice"])
def test_h15_missing_and_forbidden_are_one_text(server: WireServer, make_client: MakeClient, credential: Any) -> None:
    client, texts, kinds = make_client(settings_for(server)), set(), []
    for status in (401, 403, 404):
        server.on(PINNED, document({"errors": [{"code": "DENIED", "message": f"because {status}"}]}, status))
        with pytest.raises(ModelMountError) as refused:
            client.exists(tiny(server), MANIFEST_DIGEST, credential)
        texts.add(refused.value.message)
        kinds.append(type(refused.value))
    (text,) = texts
    assert text.startswith(f"{server.host}/llm/tiny@{MANIFEST_DIGEST}: not found or no access; check ")
    assert kinds == [*[Unauthenticated if credential is ANONYMOUS else Forbidden] * 2, NotFound]


def test_a_missing_blob_is_named(server: WireServer, make_client: MakeClient) -> None:
    with pytest.raises(NotFound, match=f"blob {BLOB_DIGEST} of {server.host}/llm/tiny: not found"):
        make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 0, ANONYMOUS)


def test_a_policy_of_the_registry_shows_its_reason(server: WireServer, make_client: MakeClient) -> None:
    """Harbor: the HEAD has no body, so a GET is made for the words."""
    words = "current image with 3 vulnerabilities cannot be pulled due to configured policy"
    refusal = document({"errors": [{"code": "PROJECTPOLICYVIOLATION", "message": f"{words}\n\x1b[31m"}]}, 412)
    server.on(PINNED, refusal)
    with pytest.raises(Forbidden) as refused:
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ALICE)
    assert words in refused.value.message
    assert refused.value.message.isprintable()
    server.on(PINNED, Answer(412))
    with pytest.raises(Forbidden, match="ask the admin of the registry why"):
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ALICE)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ([], None),
        ([("Retry-After", "17")], 17.0),
        ([("Retry-After", "999999")], 600.0),
        ([("Retry-After", "Fri, 31 Dec 2099 23:59:59 GMT")], 600.0),
        ([("Date", "Fri, 31 Dec 2099 23:59:00 GMT"), ("Retry-After", "Fri, 31 Dec 2099 23:59:59 GMT")], 59.0),
        ([("Date", "gibberish"), ("Retry-After", "soon")], None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_h13_a_wait_that_is_asked_for_comes_along_capped(
    server: WireServer, make_client: MakeClient, status: int, headers: list[tuple[str, str]], wait: float | None
) -> None:
    server.on(PINNED, Answer(status, headers=headers))
    with pytest.raises(Unavailable) as told:
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert told.value.retry_after == wait


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 406, 418, 451, 500, 502, 503, 504, 599])
def test_h14_any_other_status_is_unavailable_and_named(
    server: WireServer, make_client: MakeClient, status: int
) -> None:
    said = b"" if status in {204, 304} else b'{"errors": [{"code": "UNSUPPORTED", "message": "not today"}]}'
    server.on(TAGGED, Answer(status, said))
    with pytest.raises(Unavailable, match=f"{server.host} answered {status}") as told:
        make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)
    assert ("UNSUPPORTED: not today" in told.value.message) is bool(said)


def test_reasons_without_end_are_cut(server: WireServer, make_client: MakeClient) -> None:
    reasons = [{"code": f"CODE{number}", "message": "x" * 3000} for number in range(10)]
    server.on(PINNED, document({"errors": reasons}, 412))
    with pytest.raises(Forbidden, match="CODE0: x") as refused:
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ALICE)
    assert len(refused.value.message) < 1200


def test_an_error_page_is_not_repeated(server: WireServer, make_client: MakeClient) -> None:
    server.on(TAGGED, Answer(502, b"<html>" + b"x" * 200_000))
    with pytest.raises(Unavailable) as told:
        make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)
    assert len(told.value.message) < 200


def test_a_registry_that_is_down_is_unavailable_and_comes_back(make_client: MakeClient) -> None:
    with WireServer() as server:
        pass
    with pytest.raises(Unavailable, match=rf"^{server.host}/llm/tiny:v1: {server.host} refused the connection"):
        make_client(settings_for(server)).manifest(tiny(server), "v1", ANONYMOUS)


# -- blobs


@pytest.mark.parametrize("offset", [0, 1, 200_000, len(BLOB) - 1])
def test_a_blob_is_received_from_an_offset_on(server: WireServer, make_client: MakeClient, offset: int) -> None:
    server.on(BLOB_PATH, blob(BLOB))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, offset, ANONYMOUS)
    assert (body.offset, body.total) == (offset, len(BLOB))
    assert drain(body) == BLOB[offset:]
    assert server.asked()[0].headers.get("range") == (f"bytes={offset}-" if offset else None)


def test_h11_a_registry_that_ignores_ranges_sends_the_whole_and_it_is_said_so(
    server: WireServer, make_client: MakeClient
) -> None:
    server.on(BLOB_PATH, Answer(body=BLOB))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 1000, ANONYMOUS)
    assert (body.offset, body.total) == (0, len(BLOB))
    assert drain(body) == BLOB
    assert len(server.asked()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        Answer(206, BLOB[1000:]),
        Answer(206, BLOB[1000:], [("Content-Range", f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}")]),
        Answer(206, BLOB[999:], [("Content-Range", f"bytes 999-{len(BLOB) - 1}/{len(BLOB)}")]),
        Answer(206, BLOB[1000:2000], [("Content-Range", f"bytes 1000-{len(BLOB) - 1}/{len(BLOB)}")]),
        Answer(206, BLOB[1000:], [("Content-Range", f"bytes 1000-{len(BLOB) - 1}/5")]),
        Answer(206, BLOB[1000:], [("Content-Range", "bytes 1000-500/2000")]),
        Answer(206, BLOB[1000:], [("Content-Range", "items 1000-2000/3000")]),
        Answer(206, b"--x", [("Content-Type", "multipart/byteranges; boundary=x")]),
        Answer(416, b"", [("Content-Range", f"bytes */{len(BLOB)}")]),
        Answer(416, BLOB[:3], declared=len(BLOB), cut_after=3),
    ],
    ids=["none", "other-start", "off-by-one", "length", "total", "backwards", "unit", "multipart", "416", "416-short"],
)
def test_h11_a_range_that_is_answered_wrongly_is_given_up_for_the_whole(
    server: WireServer, make_client: MakeClient, wrong: Answer
) -> None:
    server.on(BLOB_PATH, lambda asked: wrong if "range" in asked.headers else Answer(body=BLOB))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 1000, ANONYMOUS)
    assert (body.offset, body.total) == (0, len(BLOB))
    assert drain(body) == BLOB
    assert ["range" in each.headers for each in server.asked()] == [True, False]


def test_h11_a_shorter_range_is_progress(server: WireServer, make_client: MakeClient) -> None:
    server.on(BLOB_PATH, Answer(206, BLOB[1000:2000], [("Content-Range", f"bytes 1000-1999/{len(BLOB)}")]))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 1000, ANONYMOUS)
    assert (body.offset, body.total) == (1000, len(BLOB))
    assert drain(body) == BLOB[1000:2000]


def test_h11_a_range_of_something_whose_size_nobody_knows_is_fine(server: WireServer, make_client: MakeClient) -> None:
    content_range = ("Content-Range", f"bytes 1000-{len(BLOB) - 1}/*")
    server.on(BLOB_PATH, Answer(206, BLOB[1000:], [content_range], framing="chunked"))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 1000, ANONYMOUS)
    assert (body.offset, body.total) == (1000, None)
    assert drain(body) == BLOB[1000:]


def test_h11_a_range_nobody_asked_for_is_refused(server: WireServer, make_client: MakeClient) -> None:
    server.on(BLOB_PATH, Answer(206, BLOB, [("Content-Range", f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}")]))
    with pytest.raises(Unavailable, match="answered 206"):
        make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 0, ANONYMOUS)


def test_storage_is_asked_for_anew_each_time_and_never_sees_credentials(
    server: WireServer, make_client: MakeClient
) -> None:
    with WireServer() as storage:
        server.on(BLOB_PATH, *(redirect(f"{storage.url}/{number}?signature={number}") for number in range(3)))
        for number in range(3):
            storage.on(f"/{number}", blob(BLOB))
        client = make_client(settings_for(server))
        for offset in (0, 1000, 2000):
            body = client.blob(tiny(server), BLOB_DIGEST, offset, ALICE)
            assert drain(body) == BLOB[offset:]
        assert [each.path for each in storage.asked()] == ["/0", "/1", "/2"]
        assert [each.headers.get("range") for each in storage.asked()] == [None, "bytes=1000-", "bytes=2000-"]
        assert not any("authorization" in each.headers for each in storage.asked())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
def test_h19_storage_that_refuses_is_the_registrys_trouble_and_nobodys_credential(
    server: WireServer, make_client: MakeClient, status: int
) -> None:
    with WireServer() as storage:
        server.on(BLOB_PATH, redirect(f"{storage.url}/bucket/blob?X-Amz-Signature=secret"))
        storage.on("/bucket/blob", Answer(status, headers=[("WWW-Authenticate", 'Basic realm="steal"')]))
        with pytest.raises(Unavailable, match=f"redirects to {storage.host}, which answered {status}") as told:
            make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 0, ALICE)
        assert "secret" not in "".join(traceback.format_exception(told.value))
        assert len(storage.asked()) == 1


def test_reading_a_blob_fails_in_words_about_it(server: WireServer, make_client: MakeClient) -> None:
    server.on(BLOB_PATH, Answer(body=BLOB, cut_after=5))
    body = make_client(settings_for(server)).blob(tiny(server), BLOB_DIGEST, 0, ANONYMOUS)
    with pytest.raises(Unavailable, match=f"^blob {BLOB_DIGEST} of {server.host}/llm/tiny: "):
        drain(body)


def test_a_closed_client_asks_nobody(server: WireServer, make_client: MakeClient) -> None:
    client = make_client(settings_for(server))
    client.close()
    client.close()
    with pytest.raises(Unavailable, match="stopping"):
        client.exists(tiny(server), MANIFEST_DIGEST, ANONYMOUS)
    assert server.asked() == []


def test_a_mirror_is_told_what_the_admin_wants_it_told_and_storage_is_not(
    server: WireServer, make_client: MakeClient
) -> None:
    with WireServer() as storage:
        server.on(BLOB_PATH, redirect(f"{storage.url}/stored"))
        storage.on("/stored", blob(BLOB))
        client = Client(settings_for(server), headers={"X-Dragonfly-Registry": "https://harbor.example.com"})
        try:
            body = client.blob(tiny(server), BLOB_DIGEST, 3, ANONYMOUS, query="ns=harbor.example.com")
            assert drain(body) == BLOB[3:]
        finally:
            client.close()
        (asked,), (stored,) = server.asked(), storage.asked()
    assert (asked.query, asked.headers["range"]) == ("ns=harbor.example.com", "bytes=3-")
    assert asked.headers["x-dragonfly-registry"] == "https://harbor.example.com"
    assert "x-dragonfly-registry" not in stored.headers
    assert (stored.query, stored.headers["range"]) == ("", "bytes=3-")


@pytest.mark.parametrize(
    "said",
    [
        "nobody called alice with wonder:land é here",
        "got Authorization: Basic YWxpY2U6d29uZGVyOmxhbmQgw6k=",
        "bad header 'Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.abc1'",
        f"{'no ' * 97}wonder:land é",  # cut in the middle, and escaped in JSON
        "bad form: password=wonder%3Aland%20%C3%A9",
    ],
)
def test_words_that_repeat_a_credential_are_left_out(server: WireServer, make_client: MakeClient, said: str) -> None:
    server.on(PINNED, document({"errors": [{"code": "DENIED", "message": said}]}, 412))
    with pytest.raises(Forbidden) as told:
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ALICE)
    assert "its words are left out" in told.value.message
    assert said[-12:] not in told.value.message
    assert "wonder" not in told.value.message


def test_words_about_authentication_are_no_credential(server: WireServer, make_client: MakeClient) -> None:
    said = "bearer authentication_is_required by policy 7"
    server.on(PINNED, document({"errors": [{"code": "DENIED", "message": said}]}, 412))
    with pytest.raises(Forbidden, match=said):
        make_client(settings_for(server)).exists(tiny(server), MANIFEST_DIGEST, ALICE)
