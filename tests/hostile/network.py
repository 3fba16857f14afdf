"""H and C rows: registries that lie, stall and lead astray. A real registry's answers, spoilt on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

from tests.e2e.conftest import random_bytes
from tests.fakes import push
from tests.fakes.gateway import Act, Fault, Gateway, edit, header, instead, spoil
from tests.fakes.wire import Answer, Asked, blob, challenge, document, redirect
from tests.hostile.case import (
    ABORTED,
    DENIED,
    FAILED,
    NOT_FOUND,
    OK,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Case,
    Prepare,
)
from tests.hostile.world import PASSWORD, Attack, World, descriptor, digest_of, manifest

SMALL, LARGE = 3000, 2_200_000
AT = 1_500_000
SILENT = Answer(raw=b"", stall_after=0)
ANYTHING = ""
BLOB, MANIFEST = "/blobs/", "/manifests/"
NO_ACCESS = "not found or no access"


def files(repository: str, size: int) -> dict[str, bytes]:
    """A model of its own, so that no other case has its bytes."""
    return {"model.bin": random_bytes(size, int(digest_of(repository.encode())[7:15], 16))}


def spoilt(
    concerns: str,
    act: Act,
    *,
    size: int = SMALL,
    times: int | None = None,
    then: tuple[str, Act] | None = None,
    shown: bool = False,
    evidence: Callable[[World, str], str] | None = None,
) -> Prepare:
    """A good model whose answers are spoilt; `then` is what the second request that it concerns gets."""

    def prepare(world: World, repository: str) -> Attack:
        found = files(repository, size)
        pushed = world.model(repository, found)
        world.fault(repository, concerns, act, times=times)
        if then is not None:
            world.fault(repository, then[0], then[1])
        told = (lambda: evidence(world, repository)) if evidence is not None else (lambda: "")
        return Attack(pushed.reference, pushed.host, shows=found if shown else {}, evidence=told)

    return prepare


def asked_at_most(most: int) -> Callable[[World, str], str]:
    """How often the registry was asked for one publish; the kubelet may have made several."""

    def evidence(world: World, repository: str) -> str:
        count = len([each for each in world.front.asked() if each.path.startswith(f"/v2/{repository}/")])
        calls = world.calls + 1  # one may be under way
        assert count <= most * calls, count
        return f"{count} requests in {calls} calls"

    return evidence


def locked(act: Callable[[World], Act], *, password: str | None = PASSWORD, concerns: str = ANYTHING) -> Prepare:
    """A model behind a password, whose registry does this. The password never goes anywhere else."""

    def prepare(world: World, repository: str) -> Attack:
        pushed = world.model(repository, files(repository, SMALL), locked=True)
        world.fault(repository, concerns, act(world), gateway=world.guarded)
        return Attack(pushed.reference, pushed.host, password=password, evidence=lambda: keeps_the_password(world))

    return prepare


def keeps_the_password(world: World) -> str:
    """Nobody but its own registry saw it, and nothing that the driver wrote has it."""
    others = (world.elsewhere, world.front, world.wire, world.secure)
    assert not any("authorization" in asked.headers for server in others for asked in server.asked())
    assert PASSWORD not in world.driver.log.read_text()
    return "no foreign host and no log has seen the password"


def realm(value: str) -> Callable[[World], Act]:
    """A token server, by a pattern with `elsewhere` and `guarded` in it."""

    def act(world: World) -> Act:
        elsewhere = world.elsewhere.host.replace("127.0.0.1", "localhost")
        text = value.format(elsewhere=elsewhere, guarded=world.guarded.host)
        return instead(challenge(f'Bearer realm="{text}",service="x"'))

    return act


def realms_in_turn(world: World, repository: str) -> Attack:
    """Each challenge names another token server, on the registry's own host, whose token is refused in turn."""
    numbers = itertools.count()

    def next_realm(asked: Asked, gateway: Gateway) -> Answer:
        return challenge(f'Bearer realm="{gateway.url}/token-{next(numbers)}",service="x"')

    attack = locked(lambda world: next_realm)(world, repository)
    world.guarded.play(Fault(lambda asked: asked.path.startswith("/token-"), instead(document({"token": "t"})), None))

    def evidence() -> str:
        calls, count = world.calls + 1, next(numbers)  # one may be under way
        assert count <= 8 * calls, count
        return f"{attack.evidence()}; {count} realms in {calls} calls"

    return replace(attack, evidence=evidence)


def large_token(world: World, repository: str) -> Attack:
    attack = locked(realm("http://{guarded}/token"))(world, repository)
    huge = document({"token": "t" * (4 << 20)})
    world.guarded.play(Fault(lambda asked: asked.path == "/token", instead(huge), None))
    return attack


def odd_token(content: object) -> Prepare:
    def prepare(world: World, repository: str) -> Attack:
        attack = locked(realm("http://{guarded}/token"))(world, repository)
        world.guarded.play(Fault(lambda asked: asked.path == "/token", instead(document(content)), None))
        return attack

    return prepare


def redirected_token(world: World, repository: str) -> Attack:
    attack = locked(realm("http://{guarded}/token"))(world, repository)
    away = instead(redirect(f"{world.elsewhere.url}/token"))
    world.guarded.play(Fault(lambda asked: asked.path == "/token", away, None))
    return attack


def downgraded_realm(world: World, repository: str) -> Attack:
    """From https to a token server without it."""
    pushed = world.model(repository, files(repository, SMALL), gateway=world.secure)
    plain = f"http://localhost:{world.elsewhere.port}/token"
    world.fault(repository, ANYTHING, instead(challenge(f'Bearer realm="{plain}"')), gateway=world.secure)
    return Attack(pushed.reference, world.registry.host, password=PASSWORD)


def led_to(location: str) -> Prepare:
    """Blobs lie elsewhere, they say."""
    return spoilt(BLOB, instead(redirect(location)), evidence=asked_at_most(6))


def storage(*, password: bool) -> Prepare:
    """Storage on another host, which must not see the password."""

    def prepare(world: World, repository: str) -> Attack:
        found = files(repository, SMALL)
        pushed = world.model(repository, found, locked=True)
        for data in found.values():
            world.script(repository, f"blobs/{digest_of(data)}", blob(data))
        away: Act = lambda asked, gateway: redirect(f"{world.wire.url}{asked.path}?X-Amz-Signature=s3cret")  # noqa: E731
        world.fault(repository, BLOB, away, gateway=world.guarded)
        return Attack(
            pushed.reference, pushed.host, password=PASSWORD, shows=found, evidence=lambda: keeps_the_password(world)
        )

    return prepare


def downgraded(world: World, repository: str) -> Attack:
    pushed = world.model(repository, files(repository, SMALL), gateway=world.secure)
    plain: Act = lambda asked, gateway: redirect(f"{world.wire.url}{asked.path}")  # noqa: E731
    world.fault(repository, BLOB, plain, gateway=world.secure)
    return Attack(pushed.reference, world.registry.host)


def redirects_without_end(world: World, repository: str) -> Attack:
    numbers = itertools.count()
    away: Act = lambda asked, gateway: redirect(f"{asked.path}?n={next(numbers)}")  # noqa: E731
    return spoilt(MANIFEST, away, evidence=asked_at_most(18))(world, repository)


def named(name: str, shown: bool = False) -> Prepare:
    """The registry by a name with something odd about it."""

    def prepare(world: World, repository: str) -> Attack:
        found = files(repository, SMALL)
        world.model(repository, found)
        reference = f"{name}:{world.front.port}/{repository}:v1"
        return Attack(reference, world.front.host, shows=found if shown else {})

    return prepare


def rebinding(world: World, repository: str) -> Attack:
    """Storage whose name is at the metadata service once the connection has ended."""
    found = files(repository, LARGE)
    pushed = world.model(repository, found)
    for data in found.values():
        world.script(repository, f"blobs/{digest_of(data)}", Answer(200, data, cut_after=AT))
    away: Act = lambda asked, gateway: redirect(f"http://rebinding.test:{world.wire.port}{asked.path}")  # noqa: E731
    world.fault(repository, BLOB, away)
    return Attack(pushed.reference, pushed.host)


def certified(fault: str) -> Prepare:
    """A server with this certificate."""

    def prepare(world: World, repository: str) -> Attack:
        gateway, _ = world.certified[fault]
        world.model(repository, files(repository, SMALL))

        def evidence() -> str:
            assert gateway.asked() == []
            return "nothing was asked over it"

        return Attack(f"{gateway.host}/{repository}:v1", world.front.host, evidence=evidence)

    return prepare


def longer(answer: Answer) -> Answer:
    return replace(answer, body=answer.body + b"x" * 1000)


def flipped(answer: Answer) -> Answer:
    middle = len(answer.body) // 2
    return replace(answer, body=answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :])


def lengths(*values: str) -> Act:
    head = "".join(f"Content-Length: {value}\r\n" for value in values)
    return spoil(raw=f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())


def smuggled(answer: Answer) -> Answer:
    """Another answer behind the one that was asked for, on a connection that stays."""
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"
    return replace(answer, body=answer.body + second, declared=len(answer.body))


def both_framings(answer: Answer) -> Answer:
    """A length and chunks, which say different things."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    return replace(answer, raw=head, body=body, framing="length")


def bad_chunks(answer: Answer) -> Answer:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return replace(answer, raw=head, body=b"-5\r\n" + answer.body, cut_after=len(answer.body))


def whole(asked: Asked, gateway: Gateway) -> Answer:
    """The blob from its first byte, whatever was asked for."""
    return gateway.forward(asked, without={"range"})


def shorter(answer: Answer) -> Answer:
    """Half of the range, in a message that is whole."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def span(value: str | None) -> Act:
    return edit(lambda answer: header(answer, "Content-Range", value))


def in_parts(answer: Answer) -> Answer:
    kind = "multipart/byteranges; boundary=x"
    return header(header(answer, "Content-Range", None), "Content-Type", kind)


def garbage(data: bytes) -> Act:
    return instead(Answer(raw=data, framing="close"))


def linked(world: World, repository: str) -> Attack:
    found = files(repository, SMALL)
    pushed = world.model(repository, found)
    link = f'<{world.elsewhere.url}/v2/x/referrers?n=1>; rel="next"'
    world.fault(repository, ANYTHING, edit(lambda answer: header(answer, "Link", link)))
    return Attack(pushed.reference, pushed.host, shows=found)


def referrers(answer: Callable[[World], Act]) -> Prepare:
    """A list of what refers to a model that has to be attested. It has nothing that counts."""

    def prepare(world: World, repository: str) -> Attack:
        return spoilt("/referrers/", answer(world), evidence=asked_at_most(60))(world, repository)

    return prepare


def listed(count: int, *links: str) -> Answer:
    """That many referrers, none of a kind that matters, and links to more of them."""
    entry = {**descriptor(b"x", media_type=push.MANIFEST), "artifactType": "application/vnd.example"}
    index = {"schemaVersion": 2, "mediaType": push.INDEX, "manifests": [entry] * count}
    return document(index, 200, *(("Link", f'<{link}>; rel="next"') for link in links))


def pages_without_end(world: World) -> Act:
    """Each page names the next one."""
    numbers = itertools.count()
    return lambda asked, gateway: listed(2, f"{asked.path}?page={next(numbers)}")


def page_elsewhere(world: World) -> Act:
    """The next page is on another host."""
    return lambda asked, gateway: listed(2, f"{world.elsewhere.url}{asked.path}?page=2")


def in_this_environment(world: World, repository: str) -> Attack:
    """HTTP_PROXY, ALL_PROXY and a .netrc are there all the time; nobody looks at them."""
    found = files(repository, SMALL)
    pushed = world.model(repository, found)

    def evidence() -> str:
        asked = [each for each in world.front.asked() if each.path.startswith(f"/v2/{repository}/")]
        assert asked
        assert not any("authorization" in each.headers for each in asked)
        return f"{len(asked)} requests, none by a proxy, none with a password"

    return Attack(pushed.reference, pushed.host, shows=found, evidence=evidence)


def secret_in_an_address(world: World, repository: str) -> Attack:
    """Storage that fails, at an address with a signature in it."""
    pushed = world.model(repository, files(repository, SMALL))
    world.script(repository, "storage", Answer(403, b"s1gnature in the body"))
    away = redirect(f"{world.wire.url}/v2/{repository}/storage?X-Amz-Signature=s1gnature")
    world.fault(repository, MANIFEST, instead(away))

    def evidence() -> str:
        assert "s1gnature" not in world.driver.log.read_text()
        return "no log has the signature"

    return Attack(pushed.reference, pushed.host, evidence=evidence)


def errors_with_escapes(world: World, repository: str) -> Attack:
    """An error body that would write lines of its own into a log."""
    said = {"errors": [{"code": "DENIED", "message": '\x1b[2J\n{"level":"info","msg":"all is well"}' * 500}]}
    return spoilt(MANIFEST, instead(document(said, 412)), evidence=quiet_log)(world, repository)


def quiet_log(world: World, repository: str) -> str:
    lines = world.driver.lines()  # each one is JSON
    assert not any("\x1b" in json.dumps(line, ensure_ascii=False) for line in lines)
    assert not any(line.get("msg") == "all is well" for line in lines)
    return "each line of the log is one of ours"


def of_another_tenant(world: World, repository: str) -> Attack:
    """A manifest that names the private weights of the pod next door, which this registry doesn't have."""
    secret = world.secret_files["secret.bin"]
    stolen = json.dumps(manifest(descriptor(secret, "stolen.bin"))).encode()
    return world.scripted(repository, stolen)


def of_another_tenant_by_manifest(world: World, repository: str) -> Attack:
    """The private model by its digest, from the same registry, without a password."""
    pushed = world.model("private/resident", world.secret_files, locked=True)
    return Attack(pushed.pinned, world.guarded.host)


def with_a_wrong_password(world: World, repository: str) -> Attack:
    pushed = world.model("private/resident", world.secret_files, locked=True)
    return Attack(pushed.reference, world.guarded.host, password="guessed")


def revoked(world: World, repository: str) -> Attack:
    """The password counts for the manifest, and no longer for the blobs."""
    refuse = instead(challenge('Basic realm="x"'))
    return locked(lambda world: refuse, concerns=BLOB)(world, repository)


def expiring_tokens(world: World, repository: str) -> Attack:
    """Each token is over before it is used."""
    attack = locked(realm("http://{guarded}/token"))(world, repository)
    numbers = itertools.count()
    token: Act = lambda asked, gateway: document({"token": f"t{next(numbers)}", "expires_in": -5})  # noqa: E731
    world.guarded.play(Fault(lambda asked: asked.path == "/token", token, None))

    def evidence() -> str:
        count = next(numbers)
        assert count <= 20
        return f"{count} tokens were asked for"

    return replace(attack, evidence=evidence)


def moving(world: World, repository: str) -> Attack:
    """Each request is answered with another ETag, and the second half is of other bytes."""
    tags = itertools.count()
    cut: Act = lambda asked, gateway: replace(  # noqa: E731
        header(gateway.forward(asked), "ETag", f'"{next(tags)}"'), cut_after=AT
    )
    return spoilt(BLOB, cut, size=LARGE, times=1, then=(BLOB, edit(flipped)))(world, repository)


def weights_then_page(world: World, repository: str) -> Attack:
    page = Answer(200, b"<html>Please log in</html>")
    return spoilt(BLOB, spoil(cut_after=AT), size=LARGE, times=1, then=(BLOB, instead(page)))(world, repository)


def goes_on(act: Act, times: int = 1) -> Prepare:
    """The weights are cut, and what goes on is spoilt; they come all the same."""

    def prepare(world: World, repository: str) -> Attack:
        found = files(repository, LARGE)
        pushed = world.model(repository, found)
        world.fault(repository, BLOB, spoil(cut_after=AT), times=1)
        world.fault(repository, BLOB, act, times=times)
        return Attack(pushed.reference, pushed.host, shows=found)

    return prepare


CASES = [
    Case("H1 a 401 for ever, without a challenge", spoilt(ANYTHING, instead(challenge())), UNAUTHENTICATED, NO_ACCESS),
    Case(
        "H1 the same challenge for ever", locked(lambda world: instead(challenge('Basic realm="x"'))), DENIED, NO_ACCESS
    ),
    Case("H1 another realm each time", realms_in_turn, DENIED, NO_ACCESS),
    Case(
        "H1 challenges that nobody can answer",
        locked(lambda world: instead(challenge("Negotiate", "Bearer"))),
        DENIED,
        NO_ACCESS,
    ),
    Case(
        "H1 a challenge of 60 KiB",
        spoilt(ANYTHING, instead(challenge('Bearer realm="' + "x" * 60_000))),
        UNAUTHENTICATED,
        NO_ACCESS,
    ),
    Case("H2 a realm on another host", locked(realm("http://{elsewhere}/token")), DENIED, "isn't its own host"),
    Case(
        "H2 a realm at the metadata service",
        locked(realm("http://169.254.169.254/token")),
        DENIED,
        "isn't its own host",
    ),
    Case(
        "H2 the metadata service as a mapped address",
        locked(realm("http://[::ffff:169.254.169.254]/")),
        DENIED,
        "isn't its own host",
    ),
    Case("H2 a realm that is a file", locked(realm("file:///etc/shadow")), DENIED, "can't be asked"),
    Case("H2 a realm with a user's name in it", locked(realm("http://u:p@{elsewhere}/")), DENIED, "can't be asked"),
    Case("H2 a realm without TLS", downgraded_realm, DENIED, ""),
    Case("H2 a token of 4 MiB", large_token, UNAVAILABLE, ""),
    Case("H2 a token that is a list", odd_token([1, 2]), UNAVAILABLE, ""),
    Case("H2 a token with a line break in it", odd_token({"token": "a\r\nHost: evil"}), UNAVAILABLE, ""),
    Case("H2 a token server that redirects", redirected_token, UNAVAILABLE, ""),
    Case("H3 storage on another host", storage(password=True), OK),
    Case("H3 redirects without end", redirects_without_end, UNAVAILABLE, "redirects again and again"),
    Case("H3 from https to http", downgraded, DENIED, "redirects from https to http"),
    Case("H3 a redirect to a file", led_to("file:///etc/shadow"), DENIED, "may follow"),
    Case("H3 a redirect to ftp", led_to("ftp://example.com/x"), DENIED, "may follow"),
    Case("H3 a redirect to data", led_to("data:,x"), DENIED, "may follow"),
    Case("H3 a redirect to a socket", led_to("unix:///run/containerd/containerd.sock"), DENIED, "may follow"),
    Case("H3 a redirect to nowhere", spoilt(MANIFEST, instead(Answer(307))), UNAVAILABLE, ""),
    Case(
        "H4 a redirect to the metadata service",
        led_to("http://169.254.169.254/latest/meta-data/"),
        DENIED,
        "not connected to",
    ),
    Case("H4 as a mapped address", led_to("http://[::ffff:a9fe:a9fe]/"), DENIED, "not connected to"),
    Case("H4 through NAT64", led_to("http://[64:ff9b::a9fe:a9fe]/"), DENIED, "not connected to"),
    Case("H4 through 6to4", led_to("http://[2002:a9fe:a9fe::]/"), DENIED, "not connected to"),
    Case("H4 as a number", led_to("http://2852039166/"), DENIED, "not connected to|may follow"),
    Case("H4 another cloud's", led_to("http://100.100.100.200/"), DENIED, "not connected to"),
    Case("H4 the unspecified address", led_to("http://0.0.0.0:1/"), DENIED, "not connected to"),
    Case("H4 site-local", led_to("http://[fec0::1]/"), DENIED, "not connected to"),
    Case("H4 an address of the protocol's own", led_to("http://192.0.0.8/"), DENIED, "not connected to"),
    Case("H4 by a name", led_to("http://metadata.test/"), DENIED, "not connected to"),
    Case("H5 a name that changes its mind", rebinding, DENIED, "metadata-service address", partial=True),
    Case("H5 a name with a forbidden address among others", named("mixed.test", shown=True), OK),
    Case("H6 silence instead of a manifest", spoilt(MANIFEST, instead(SILENT)), UNAVAILABLE, "in time"),
    Case("H6 a manifest that trickles in", spoilt(MANIFEST, spoil(drip=(1, 0.3))), UNAVAILABLE, "in time"),
    Case(
        "H6 headers that trickle in",
        spoilt(MANIFEST, instead(Answer(raw=b"", body=b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 90, drip=(1, 0.1)))),
        UNAVAILABLE,
        "in time",
    ),
    Case("H6 weights that trickle in", spoilt(BLOB, spoil(drip=(1, 0.2))), ABORTED, "pulling"),
    Case("H7 a body that ends before its length", spoilt(BLOB, spoil(cut_after=1000), times=1, shown=True), OK),
    Case("H7 a second answer behind the first", spoilt(BLOB, edit(smuggled), shown=True), OK),
    Case(
        "H8 no length, and an early end", spoilt(BLOB, spoil(cut_after=1000, framing="close"), times=1, shown=True), OK
    ),
    Case("H8 chunks that end early", spoilt(BLOB, spoil(cut_after=1000, framing="chunked"), times=1, shown=True), OK),
    Case(
        "H9 more bytes than the blob has, with a length",
        spoilt(BLOB, edit(longer), size=LARGE),
        FAILED,
        "the manifest says",
    ),
    Case(
        "H9 more bytes than the blob has, without one",
        spoilt(BLOB, edit(lambda answer: replace(longer(answer), framing="close"))),
        FAILED,
        "more than the|the manifest says",
    ),
    Case("H9 a negative length", spoilt(BLOB, lengths("-1"), times=2, shown=True), OK),
    Case("H9 two lengths", spoilt(BLOB, lengths("5", "7"), times=2, shown=True), OK),
    Case("H9 a length that is no number", spoilt(BLOB, lengths("1e6"), times=2, shown=True), OK),
    Case("H9 a length and chunks", spoilt(BLOB, edit(both_framings), shown=True), OK),
    Case("H9 a chunk of negative length", spoilt(BLOB, edit(bad_chunks), times=1, shown=True), OK),
    Case(
        "H10 an encoding that nobody asked for",
        spoilt(BLOB, edit(lambda answer: header(answer, "Content-Encoding", "gzip")), times=1, shown=True),
        OK,
    ),
    Case(
        "H10 a manifest in an encoding",
        spoilt(MANIFEST, edit(lambda answer: header(answer, "Content-Encoding", "br"))),
        UNAVAILABLE,
        "encoded",
    ),
    Case("H11 another range", goes_on(span(f"bytes 0-{LARGE - 1}/{LARGE}")), OK),
    Case("H11 all of it instead of a range", goes_on(whole), OK),
    Case("H11 fewer bytes than the range", goes_on(edit(shorter)), OK),
    Case("H11 several parts", goes_on(edit(in_parts)), OK),
    Case("H11 a range that is none", goes_on(span("bytes ½-/*")), OK),
    Case("H11 416", goes_on(instead(Answer(416))), OK),
    Case(
        "H11 another total",
        goes_on(span(f"bytes {AT}-{LARGE - 1}/{LARGE + 1}")),
        FAILED,
        "the manifest says",
        partial=True,
    ),
    Case("H11 somebody's page instead of the rest", weights_then_page, FAILED, "the manifest says", partial=True),
    Case("H12 a flipped bit", spoilt(BLOB, edit(flipped)), FAILED, "wrong bytes"),
    Case("H12 a blob that changes between two requests", moving, FAILED, "wrong bytes"),
    Case(
        "H12 a manifest with a flipped bit",
        spoilt(MANIFEST, edit(flipped)),
        UNAVAILABLE,
        "other bytes than its digest names",
    ),
    Case(
        "H13 come again in eleven days",
        spoilt(MANIFEST, instead(Answer(429, headers=[("Retry-After", "999999")])), evidence=asked_at_most(3)),
        UNAVAILABLE,
        "asks to wait 600 s",
    ),
    Case(
        "H13 come again in 2099",
        spoilt(
            MANIFEST,
            instead(Answer(503, headers=[("Retry-After", "Fri, 31 Dec 2099 23:59:59 GMT")])),
            evidence=asked_at_most(3),
        ),
        UNAVAILABLE,
        "answered 503",
    ),
    Case(
        "H14 500 for ever",
        spoilt(MANIFEST, instead(Answer(500)), evidence=asked_at_most(9)),
        UNAVAILABLE,
        "answered 500",
    ),
    Case(
        "H14 the end of the connection before any answer",
        spoilt(MANIFEST, instead(Answer(hang_up=True))),
        UNAVAILABLE,
        "",
    ),
    Case("H14 a reset in the middle", spoilt(BLOB, spoil(cut_after=1000, reset=True), times=1, shown=True), OK),
    Case("H15 403", spoilt(MANIFEST, instead(Answer(403))), UNAUTHENTICATED, NO_ACCESS),
    Case("H15 404", spoilt(MANIFEST, instead(Answer(404))), NOT_FOUND, NO_ACCESS),
    Case("H15 a teapot", spoilt(MANIFEST, instead(Answer(418))), UNAVAILABLE, "answered 418"),
    Case("H15 no content", spoilt(MANIFEST, instead(Answer(204))), UNAVAILABLE, "answered 204"),
    *(
        Case(f"H16 a certificate: {fault}", certified(fault), UNAVAILABLE, "certificate that isn't trusted")
        for fault in ("another CA", "another name", "expired", "not yet valid")
    ),
    Case("H16 an old protocol", certified("an old protocol"), UNAVAILABLE, ""),
    Case("H17 tokens that are over before they are used", expiring_tokens, DENIED, NO_ACCESS),
    Case("H18 a password that counts no longer", revoked, DENIED, NO_ACCESS),
    Case("H19 a signature in an address", secret_in_an_address, UNAVAILABLE, "storage"),
    Case("H20 proxies and passwords of the environment", in_this_environment, OK),
    Case("H21 what is not HTTP", spoilt(MANIFEST, garbage(b"SSH-2.0-OpenSSH_9.2\r\n")), UNAVAILABLE, ""),
    Case("H21 nothing but zeros", spoilt(MANIFEST, garbage(bytes(4096))), UNAVAILABLE, ""),
    Case(
        "H21 200 headers",
        spoilt(MANIFEST, garbage(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"\r\n")),
        UNAVAILABLE,
        "",
    ),
    Case(
        "H21 a header of 70 KiB",
        spoilt(MANIFEST, garbage(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n")),
        UNAVAILABLE,
        "",
    ),
    Case(
        "H21 HTTP/2 that nobody asked for",
        spoilt(MANIFEST, garbage(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        UNAVAILABLE,
        "",
    ),
    Case(
        "H21 answers that only promise one",
        spoilt(MANIFEST, instead(Answer(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, stall_after=0))),
        UNAVAILABLE,
        "in time",
    ),
    Case("H22 links to further pages elsewhere", linked, OK),
    Case("H22 referrers on pages without end", referrers(pages_without_end), DENIED, "no attestation"),
    Case("H22 referrers whose next page is elsewhere", referrers(page_elsewhere), DENIED, "no attestation"),
    Case("H22 referrers by the thousand", referrers(lambda world: instead(listed(5000))), DENIED, "no attestation"),
    Case(
        "H22 referrers of more than 4 MiB",
        referrers(lambda world: instead(document({"manifests": [], "x": "y" * (4 << 20)}))),
        DENIED,
        "no attestation",
    ),
    Case("H23 a name that doesn't exist", named("gone.test"), UNAVAILABLE, "doesn't resolve"),
    Case("H23 a resolver that says nothing", named("silent.test"), UNAVAILABLE, "in time"),
    Case("H23 an address of a family that leads nowhere", named("six.test"), UNAVAILABLE, "refused|can't be reached"),
    Case("C1 a private model without a password", of_another_tenant_by_manifest, UNAUTHENTICATED, NO_ACCESS),
    Case("C1 a private model with a wrong password", with_a_wrong_password, DENIED, NO_ACCESS),
    Case("C2 another tenant's blob by its digest", of_another_tenant, NOT_FOUND, NO_ACCESS),
    Case("C8 an error that writes into logs", errors_with_escapes, DENIED, "a policy of"),
]
