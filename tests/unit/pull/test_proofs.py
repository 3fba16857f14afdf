"""Who may read what is here: a real registry behind a real token server, whose users come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelmount.config import Auth, Settings
from modelmount.content.store import Store
from modelmount.errors import Forbidden, ModelMountError, NotFound, Precondition, Unauthenticated, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference, Repository
from modelmount.pull.proofs import MOST_RECORDS, Proof, Proofs
from modelmount.pull.resolver import PullPolicy, Resolver
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.transport.retry import Policy
from tests.fakes import push
from tests.fakes.registry import Registry
from tests.fakes.tokens import TokenServer, User

pytestmark = pytest.mark.registry

HOUR = 3600.0
ALICE = Credential(username="alice", password="a-secret")
BOB = Credential(username="bob", password="b-secret")
WRONG = Credential(username="alice", password="guessed")
NOBODY = Credential.anonymous()
TEAM: dict[str, tuple[str, ...]] = {"team/tiny": ("pull",)}


class Bench:
    """A registry with one model of Alice's team, and a store."""

    def __init__(self, registry: Registry, tokens: TokenServer, directory: Path) -> None:
        self.registry, self.tokens, self.directory = registry, tokens, directory
        (directory / "model").mkdir()
        self.pushed = self.push("{}")
        self.store = Store(directory / "store")
        self.clients: list[Client] = []
        self.node()

    def push(self, content: str) -> push.Pushed:
        """A model with this content becomes what the tag means."""
        (self.directory / "model/config.json").write_text(content)
        self.tokens.anonymous = {"*": ("pull", "push")}
        _, granted = self.tokens.answer("scope=repository:team/tiny:pull,push", None)
        pusher = push.Pusher(self.registry.host, self.registry.connection, authorization=f"Bearer {granted['token']}")
        pushed = pusher.artifact("team/tiny", "v1", push.modelpack(self.directory / "model"))
        self.tokens.anonymous = {}
        self.registry.forget()
        return pushed

    def node(self, *, audit: bool = False, **auth: Any) -> None:
        """A driver that starts on this store, with nothing in its memory."""
        host = {"plain_http": True, "audit": audit}
        settings = msgspec.convert({"registries": {self.registry.host: host}, "auth": auth}, Settings)
        self.clients.append(Client(settings, policy=Policy(first_seconds=0.01)))
        self.resolver = Resolver(self.store, self.clients[-1], settings.auth)

    def read(self, credential: Credential, policy: PullPolicy = "IfNotPresent", reference: str = "") -> Proof:
        """By what it may."""
        wanted = Reference.parse(reference or self.pushed.reference)
        return self.resolver.resolve(wanted, policy, credential).proof

    def requests(self) -> list[str]:
        """What the registry was asked since the last time, apart from challenges."""
        found = [r.method for r in self.registry.manifest_requests() if r.status != 401]
        self.registry.forget()
        return found

    def records(self) -> list[Path]:
        return sorted(self.store.root.glob("models/*/proofs/*"))

    def grow_old(self, seconds: float) -> None:
        """As if everything had been proved so long ago (negative: as if the clock had been set back)."""
        for path in self.records():
            at = path.stat().st_mtime - seconds
            os.utime(path, (at, at))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    users = {"alice": User("a-secret", TEAM), "bob": User("b-secret", TEAM)}
    with (
        TokenServer(tmp_path / "tokens", users=users, expires_in=0) as tokens,
        Registry(tmp_path / "registry", token=tokens.auth) as registry,
    ):
        made = Bench(registry, tokens, tmp_path)
        yield made
        for client in made.clients:
            client.close()


REFUSED = (Forbidden, Unauthenticated, NotFound)


# -- the registry is there


def test_always_asks_once_for_each_publish(bench: Bench) -> None:
    assert [bench.read(ALICE) for _ in range(3)] == ["registry"] * 3
    assert bench.requests() == ["GET", "HEAD", "HEAD"]


def test_a_tag_that_moved_away_is_no_obstacle_and_opens_nothing(bench: Bench) -> None:
    bench.read(ALICE)
    bench.push('{"model_type": "llama"}')
    assert [bench.read(ALICE) for _ in range(2)] == ["registry"] * 2
    assert bench.requests() == ["HEAD", "HEAD", "HEAD"]  # the tag and the digest, then the digest
    for credential in (WRONG, NOBODY):
        with pytest.raises(REFUSED):
            bench.read(credential)


def test_the_first_credential_opens_nothing_for_the_second(bench: Bench) -> None:
    bench.read(ALICE)
    for credential in (WRONG, NOBODY):
        with pytest.raises(REFUSED):
            bench.read(credential)
    assert bench.read(BOB) == "registry"


def test_with_records_the_same_credential_is_not_proved_again_within_their_time(bench: Bench) -> None:
    bench.node(verification="record", record_seconds=HOUR)
    assert [bench.read(ALICE) for _ in range(3)] == ["registry", "record", "record"]
    assert bench.requests() == ["GET"]
    bench.grow_old(HOUR + 1)
    assert bench.read(ALICE) == "registry"
    assert bench.requests() == ["HEAD"]


def test_records_without_an_end_stay_good(bench: Bench) -> None:
    bench.node(verification="record", record_seconds=0)
    bench.read(ALICE)
    bench.grow_old(1000 * HOUR)
    assert bench.read(ALICE) == "record"


def test_a_rotated_secret_is_proved_anew(bench: Bench) -> None:
    bench.node(verification="record")
    bench.read(ALICE)
    bench.tokens.users["alice"] = User("rotated", TEAM)
    bench.requests()
    assert bench.read(Credential(username="alice", password="rotated")) == "registry"
    assert bench.requests() == ["HEAD"]


def test_a_deleted_secret_opens_nothing_once_its_record_is_over(bench: Bench) -> None:
    bench.node(verification="record", record_seconds=HOUR)
    bench.read(ALICE)
    del bench.tokens.users["alice"]
    assert bench.read(ALICE) == "record"
    bench.grow_old(HOUR + 1)
    for _ in range(2):
        with pytest.raises(REFUSED):
            bench.read(ALICE)


def test_records_are_for_one_repository(bench: Bench) -> None:
    bench.node(verification="record")
    bench.read(ALICE)
    other = f"{bench.registry.host}/other/tiny@{bench.pushed.digest}"
    with pytest.raises(REFUSED):
        bench.read(ALICE, reference=other)


def test_what_was_read_without_a_credential_is_for_everybody(bench: Bench) -> None:
    bench.node(verification="record")
    bench.tokens.anonymous = TEAM
    assert bench.read(NOBODY) == "registry"
    bench.tokens.anonymous = {}
    assert [bench.read(credential) for credential in (NOBODY, BOB, WRONG)] == ["record"] * 3


def test_unless_the_admin_wants_each_credential_judged_for_itself(bench: Bench) -> None:
    bench.node(verification="record", anonymous=False)
    bench.tokens.anonymous = TEAM
    assert bench.read(NOBODY) == "registry"
    bench.tokens.anonymous = {}
    assert bench.read(NOBODY) == "record"
    assert bench.read(BOB) == "registry"
    with pytest.raises(REFUSED):
        bench.read(WRONG)
    bench.registry.stop()
    assert bench.read(NOBODY) == "record"
    with pytest.raises(Unavailable):
        bench.read(WRONG)


def test_without_verification_nobody_is_asked(bench: Bench) -> None:
    bench.read(ALICE)
    bench.node(verification="never")
    bench.requests()
    assert [bench.read(credential) for credential in (NOBODY, WRONG)] == ["off", "off"]
    assert bench.requests() == []


def test_a_host_that_is_marked_audit_gets_a_get(bench: Bench) -> None:
    bench.read(ALICE)
    bench.node(audit=True)
    bench.requests()
    assert bench.read(ALICE) == "registry"
    assert bench.requests() == ["GET"]


def test_a_token_is_asked_for_once_for_all_its_time(bench: Bench) -> None:
    bench.tokens.expires_in = None
    for _ in range(3):
        bench.read(ALICE)
    assert bench.requests() == ["GET", "HEAD", "HEAD"]
    assert [each.user for each in bench.tokens.requests].count("alice") == 1


# -- the registry is down


def test_a_registry_that_is_down_opens_what_the_same_credential_proved_within_the_time_of_grace(bench: Bench) -> None:
    bench.read(ALICE)
    bench.registry.stop()
    bench.node()  # a restart forgets nothing
    assert bench.read(ALICE) == "grace"
    bench.grow_old(23 * HOUR)
    assert bench.read(ALICE) == "grace"
    bench.grow_old(2 * HOUR)
    with pytest.raises(Unavailable):
        bench.read(ALICE)


def test_a_registry_that_is_down_is_not_asked_by_each_for_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmount.pull.proofs.DOWN_SECONDS", 10_000.0)
    bench.read(ALICE)
    bench.read(BOB)
    bench.registry.stop()
    assert bench.read(ALICE) == "grace"
    bench.registry.start()
    bench.registry.forget()
    assert [bench.read(ALICE), bench.read(BOB)] == ["grace", "grace"]
    assert bench.requests() == []
    with pytest.raises(REFUSED):
        bench.read(WRONG)  # who has no record asks
    monkeypatch.setattr("modelmount.pull.proofs.DOWN_SECONDS", 0.0)
    assert bench.read(ALICE) == "registry"


def test_one_repository_that_is_down_says_nothing_of_another(tmp_path: Path) -> None:
    proofs = Proofs(Store(tmp_path / "store"), Auth())
    one, other = Repository("harbor.example.com", "team/one"), Repository("harbor.example.com", "team/other")
    digest = Digest.of(b"x")
    asked: list[str] = []

    for repository in (one, other):
        assert proofs.prove(repository, digest, digest, ALICE, lambda: None) == "registry"
    assert proofs.prove(one, digest, digest, ALICE, down) == "grace"
    assert proofs.prove(one, digest, digest, ALICE, lambda: asked.append("one")) == "grace"
    assert proofs.prove(other, digest, digest, ALICE, lambda: asked.append("other")) == "registry"
    assert asked == ["other"]


def test_a_credential_that_a_registry_chokes_on_says_nothing_of_another(bench: Bench) -> None:
    """A revoked credential's record must not count because somebody else, or the same person, brings trouble about."""
    bench.read(ALICE)
    bench.tokens.users.pop("alice")
    with pytest.raises(Unavailable):
        bench.read(Credential(username="mallory", password="x" * (1 << 20)))  # more than a header may have
    with pytest.raises(REFUSED):
        bench.read(ALICE)


def test_who_was_answered_says_nothing_of_others_and_who_reached_nobody_does(tmp_path: Path) -> None:
    proofs = Proofs(Store(tmp_path / "store"), Auth())
    repository, digest = Repository("harbor.example.com", "team/one"), Digest.of(b"x")
    asked: list[str] = []

    def unreachable() -> None:
        raise Unavailable("refused the connection", unreachable=True)

    for credential in (ALICE, BOB):
        assert proofs.prove(repository, digest, digest, credential, lambda: None) == "registry"
    assert proofs.prove(repository, digest, digest, ALICE, down) == "grace"
    assert proofs.prove(repository, digest, digest, ALICE, lambda: asked.append("alice")) == "grace"
    assert proofs.prove(repository, digest, digest, BOB, lambda: asked.append("bob")) == "registry"
    assert asked == ["bob"]
    assert proofs.prove(repository, digest, digest, BOB, unreachable) == "grace"
    for credential in (ALICE, BOB):
        assert proofs.prove(repository, digest, digest, credential, lambda: asked.append("either")) == "grace"
    assert asked == ["bob"]


SPELLINGS = {
    "another": BOB,
    "a guessed one": WRONG,
    "none": NOBODY,
    "one that ends elsewhere": Credential(username="alicea", password="-secret"),
    "its halves in the wrong places": Credential(username="a-secret", password="alice"),
    "its password as an identity token": Credential(username="alice", identity_token="a-secret"),
    "its password as a registry token": Credential(registry_token="a-secret"),
    "its name alone": Credential(username="alice"),
}


@pytest.mark.parametrize("credential", SPELLINGS.values(), ids=list(SPELLINGS))
def test_a_registry_that_is_down_opens_nothing_that_was_never_proved(bench: Bench, credential: Credential) -> None:
    bench.read(ALICE)
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(credential)


def test_without_grace_a_registry_that_is_down_opens_nothing(bench: Bench) -> None:
    bench.node(grace_seconds=0)
    bench.read(ALICE)
    assert bench.records() == []
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


@pytest.mark.parametrize("verification", ["always", "record"])
def test_where_the_admin_denies_it_a_registry_that_is_down_opens_nothing(bench: Bench, verification: str) -> None:
    bench.node(verification=verification, record_seconds=HOUR, on_registry_down="deny")
    bench.read(ALICE)
    bench.grow_old(HOUR + 1)  # no record of `record`'s time is left either
    bench.registry.stop()
    for _ in range(2):
        with pytest.raises(Unavailable):
            bench.read(ALICE)


def test_where_only_the_registry_counts_no_record_is_kept(bench: Bench) -> None:
    bench.node(on_registry_down="deny")
    bench.read(ALICE)
    assert bench.records() == []


def test_where_the_admin_allows_it_a_registry_that_is_down_opens_what_is_here_and_a_refusal_nothing(
    bench: Bench,
) -> None:
    bench.node(on_registry_down="allow_any", grace_seconds=HOUR)
    bench.read(ALICE)
    for credential in (WRONG, NOBODY):
        with pytest.raises(REFUSED):
            bench.read(credential)
    bench.registry.stop()
    assert [bench.read(credential) for credential in (ALICE, BOB, WRONG, NOBODY)] == ["grace", *["down"] * 3]
    bench.grow_old(HOUR + 1)
    assert bench.read(ALICE) == "down"
    other = f"{bench.registry.host}/other/tiny@{bench.pushed.digest}"
    with pytest.raises(Unavailable):
        bench.read(ALICE, reference=other)  # it isn't here for that repository


def test_a_refusal_ends_grace(bench: Bench) -> None:
    bench.read(ALICE)
    kept = bench.tokens.users.pop("alice")
    with pytest.raises(REFUSED):
        bench.read(ALICE)
    assert bench.records() == []
    bench.tokens.users["alice"] = kept
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


def test_a_token_server_that_is_down_is_a_registry_that_is_down(bench: Bench) -> None:
    bench.read(ALICE)
    bench.tokens.broken = True
    assert bench.read(ALICE) == "grace"
    with pytest.raises(Unavailable):
        bench.read(BOB)


def test_records_from_the_future_do_not_count(bench: Bench) -> None:
    bench.read(ALICE)
    bench.grow_old(-HOUR)
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


def test_a_moved_tag_is_not_known_by_an_old_proof(bench: Bench) -> None:
    bench.read(ALICE)
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE, "Always")


# -- what is kept


def test_records_hold_no_secret_and_are_void_without_the_nodes_key(bench: Bench) -> None:
    bench.read(ALICE)
    key = bench.store.root / "node.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    (record,) = bench.records()
    assert record.stat().st_size == 0
    everything = b"".join(p.read_bytes() + os.fsencode(p) for p in bench.store.root.rglob("*") if p.is_file())
    assert b"a-secret" not in everything
    key.unlink()
    bench.node()
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


def test_another_file_in_a_records_place_is_none(bench: Bench) -> None:
    bench.read(ALICE)
    (record,) = bench.records()
    record.rename(record.with_name("0" * 64))
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


def test_a_record_that_is_young_is_not_written_again(bench: Bench) -> None:
    bench.read(ALICE)
    (record,) = bench.records()
    before = record.stat().st_mtime_ns
    bench.read(ALICE)
    assert record.stat().st_mtime_ns == before
    bench.grow_old(3 * HOUR)
    bench.read(ALICE)
    assert record.stat().st_mtime > time.time() - HOUR


class Clock:
    """A wall clock that tests move on."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def down() -> None:
    raise Unavailable("it has trouble")


def test_records_do_not_become_more_and_more(tmp_path: Path) -> None:
    """Each credential that the registry agrees to has its record; the one whose last agreement is longest ago goes."""
    clock = Clock()
    proofs = Proofs(Store(tmp_path), Auth(), clock)
    one, digest = Repository("one.example.com", "team/tiny"), Digest.of(b"{}")
    robots = [Credential(username="robot", password=f"password {number}") for number in range(MOST_RECORDS + 2)]
    directory = tmp_path / f"models/{digest.hex}/proofs"
    for robot in robots[:MOST_RECORDS]:
        clock.now += 1
        proofs.record(one, digest, digest, robot)
    clock.now += 3 * HOUR
    proofs.record(one, digest, digest, robots[0])  # still in use
    for robot in robots[MOST_RECORDS:]:
        clock.now += 1
        proofs.record(one, digest, digest, robot)
        assert len(list(directory.iterdir())) == MOST_RECORDS
    for gone in robots[1:3]:
        with pytest.raises(Unavailable):
            proofs.prove(one, digest, digest, gone, down)
    for kept in (robots[0], *robots[3:]):
        assert proofs.prove(one, digest, digest, kept, down) == "grace"
    clock.now += 25 * HOUR
    proofs.record(one, digest, digest, robots[1])
    assert len(list(directory.iterdir())) == 1  # those of the others count no longer


def test_new_tokens_of_a_service_account_cost_only_older_tokens_their_records(tmp_path: Path) -> None:
    """They change by the hour, and each is another credential: nothing but the registry vouches for what one says."""
    clock = Clock()
    proofs = Proofs(Store(tmp_path), Auth(), clock)
    one, digest = Repository("one.example.com", "team/tiny"), Digest.of(b"{}")
    proofs.record(one, digest, digest, ALICE)
    tokens = [Credential(account_token=f"header.the same claims.signature {number}") for number in range(300)]
    for token in tokens:
        clock.now += 1
        proofs.record(one, digest, digest, token)
    assert proofs.prove(one, digest, digest, ALICE, down) == "grace"
    for older in tokens[:-MOST_RECORDS]:
        with pytest.raises(Unavailable):
            proofs.prove(one, digest, digest, older, down)
    for newer in tokens[-MOST_RECORDS:]:
        assert proofs.prove(one, digest, digest, newer, down) == "grace"
    for forged in ("header.the same claims.", "header.the same claims.signature 300"):
        with pytest.raises(Unavailable):
            proofs.prove(one, digest, digest, Credential(account_token=forged), down)
    with pytest.raises(Unavailable):  # nor as another kind of credential
        proofs.prove(one, digest, digest, Credential(identity_token=tokens[-1].account_token), down)


def test_a_record_that_a_crash_kept_from_being_written_is_absent(bench: Bench) -> None:
    bench.read(ALICE)
    for record in bench.records():
        record.unlink()  # as if the driver had ended between the pull and the record
    bench.node(verification="record")
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)
    bench.registry.start()
    assert bench.read(ALICE) == "registry"
    assert bench.read(ALICE) == "record"


@pytest.mark.parametrize("mode", [0, 0o600])
def test_a_record_that_can_not_be_read_as_one_is_none(bench: Bench, mode: int) -> None:
    bench.read(ALICE)
    (record,) = bench.records()
    record.unlink()
    record.symlink_to("/nowhere" if mode else record.name)  # to nothing, or to itself
    os.utime(record, (0, 0), follow_symlinks=False)
    bench.registry.stop()
    with pytest.raises(Unavailable):
        bench.read(ALICE)


# -- what an admin put here


def preload(bench: Bench) -> None:
    """As `modelmount pull` does."""
    reference = Reference.parse(bench.pushed.reference)
    bench.resolver.preload(reference, bench.resolver.resolve(reference, "Always", ALICE))


def test_what_an_admin_put_here_is_proved_like_everything_else(bench: Bench) -> None:
    preload(bench)
    with pytest.raises(REFUSED):
        bench.read(NOBODY)


@pytest.mark.parametrize("pattern", ["{host}/team/tiny", "{host}/team/*", "{host}/*", "*"])
def test_unless_the_admin_says_that_it_is_for_everybody(bench: Bench, pattern: str) -> None:
    bench.read(BOB)
    preload(bench)
    bench.node(preloaded=[pattern.format(host=bench.registry.host)])
    bench.requests()
    assert bench.read(NOBODY) == bench.read(WRONG) == "preloaded"
    bench.registry.stop()
    assert bench.read(NOBODY) == "preloaded"


@pytest.mark.parametrize(
    "pattern", ["{host}/team/tin", "{host}/team/tiny/*", "{host}/tea/*", "elsewhere.example.com/*"]
)
def test_which_is_for_the_repositories_that_are_named(bench: Bench, pattern: str) -> None:
    preload(bench)
    bench.node(preloaded=[pattern.format(host=bench.registry.host)])
    with pytest.raises(REFUSED):
        bench.read(NOBODY)


def test_what_pods_pulled_is_not_preloaded(bench: Bench) -> None:
    bench.read(ALICE)
    bench.node(preloaded=["*"])
    with pytest.raises(REFUSED):
        bench.read(NOBODY)


def test_what_is_preloaded_stays_so_among_many_records(bench: Bench) -> None:
    preload(bench)
    bench.node(preloaded=["*"], grace_seconds=HOUR)
    directory = bench.records()[0].parent
    for number in range(MOST_RECORDS):
        (directory / f"{number:064x}").touch()
    bench.grow_old(2 * HOUR)
    bench.node(grace_seconds=HOUR)
    assert bench.read(BOB) == "registry"
    assert len(bench.records()) == 2
    bench.node(preloaded=["*"])
    assert bench.read(NOBODY) == "preloaded"


# -- what who is refused learns


@pytest.mark.parametrize("policy", ["IfNotPresent", "Always", "Never"])
@pytest.mark.parametrize("credential", [WRONG, NOBODY], ids=["wrong", "none"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_who_may_not_read_it_hears_the_same_whether_it_is_here_or_not(
    bench: Bench, policy: PullPolicy, credential: Credential, by: str
) -> None:
    reference = bench.pushed.reference if by == "tag" else bench.pushed.pinned

    def refusal() -> tuple[type[ModelMountError], str]:
        with pytest.raises(ModelMountError) as told:
            bench.read(credential, policy, reference)
        return type(told.value), told.value.message

    before = refusal()
    bench.read(ALICE, reference=reference)
    assert refusal() == before
    assert by == "digest" or bench.pushed.digest not in before[1]
    assert not issubclass(before[0], Precondition)
