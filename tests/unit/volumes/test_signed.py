"""What a policy wants signed: each form, what is refused of it and by which rule, and that it is known before a weight
is pulled. Real keys, a real registry, the real process that judges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from modelmount.cache.collector import Collector
from modelmount.config import Cache
from modelmount.errors import Forbidden, ModelMountError, Unauthenticated, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.policy.signing import Statement
from modelmount.registry.client import DOCUMENT_TRIES, MOST_PAGES
from modelmount.registry.credentials import Credential
from modelmount.signatures import process, records
from modelmount.signatures.finder import Finder, Judge
from modelmount.signatures.messages import Task
from modelmount.signatures.process import ProcessError
from modelmount.volumes.audit import Audit
from modelmount.volumes.policing import Policing
from modelmount.volumes.publisher import Publisher
from tests.fakes import push, signing
from tests.fakes.gateway import Fault, Gateway, instead
from tests.fakes.registry import Registry
from tests.fakes.signing import Key
from tests.fakes.sigstore import ISSUER, Sigstore
from tests.fakes.wire import Answer, Asked, WireServer
from tests.unit.volumes.conftest import EVENT_SECONDS, POD_UID, Call, MakeNode, Node, Request, contents

pytestmark = [pytest.mark.mount, pytest.mark.registry]

ROOT = Path(__file__).resolve().parents[3]
PATIENT_SECONDS = 3 * EVENT_SECONDS
"""What imports take of a busy machine is none of these tests."""
FILES = {"config.json": b"{}\n", "sub/weights.safetensors": bytes(2000)}


class Signed:
    """A node whose policy wants signatures by `key`, and a model."""

    def __init__(self, make_node: MakeNode, directory: Path, gateway: Gateway | None = None, **options: Any) -> None:
        self.directory = directory
        self.key, self.stranger = Key(), Key()
        self.key_file = self.key.write(directory / "prod.pub")
        self.policy = directory / "policy.toml"
        self.demand("[[rule.signatures]]", f'keys = ["{self.key_file}"]')
        settings: dict[str, Any] = {"policy_file": str(self.policy), **options}
        if gateway is not None:
            settings["registries"] = {gateway.host: {"plain_http": True}}
        self.node: Node = make_node(**settings)
        self.pushed = self.node.push(FILES)
        self.attacher = self.attacher_of(self.node)
        self.place = f"{self.pushed.host}/{self.pushed.repository}"
        self.through = f"{gateway.host if gateway else self.pushed.host}/{self.pushed.repository}:v1"

    def attacher_of(self, node: Node) -> signing.Attacher:
        return signing.Attacher(push.Pusher(node.registry.host, node.registry.connection))

    def demand(self, *lines: str, mode: str = "enforce") -> None:
        """The policy: one rule, with these lines."""
        rule = ["[default]", "allow = false", "[[rule]]", 'name = "prod"', 'models = ["*"]', f'mode = "{mode}"']
        new = self.policy.with_suffix(".new")
        new.write_text("\n".join([*rule, *lines, ""]))
        new.rename(self.policy)

    def sign(self, form: str, key: Key | None = None, pushed: push.Pushed | None = None) -> None:
        """Sign the model, or another one."""
        key, pushed = key or self.key, pushed or self.pushed
        match form:
            case "simple":
                self.attacher.simple(pushed, key.simple(pushed.digest, f"{pushed.host}/{pushed.repository}"))
            case "bundle":
                self.attacher.bundle(pushed, key.bundle(signing.statement(pushed.digest)))
            case "message":
                self.attacher.bundle(pushed, key.message_bundle(pushed.document), "")
            case "model":
                statement = signing.model_statement(FILES)
                self.attacher.bundle(pushed, key.bundle(statement), signing.MODEL_SIGNING)
        self.node.registry.forget()

    def publish(self, model: str = "", pod: str = "pod") -> Path:
        target = self.node.target(pod)
        own = {"model": model or self.pushed.reference, POD_UID: "a-pod"}
        self.node.publisher.publish(Request(pod, str(target), own), Call(time.monotonic() + PATIENT_SECONDS))
        return target

    def publisher_anew(self, judge: Judge = process.judge) -> None:
        """As after a restart, with this one to judge."""
        node = self.node
        rooms = (node.store, node.resolver, node.puller, node.credentials, node.settings)
        node.publisher = Publisher(*rooms, signatures=Finder(node.store, node.client, judge))

    def mounts(self, pod: str = "pod") -> None:
        assert contents(self.publish(pod=pod)) == FILES

    def refused(self, match: str, model: str = "", pod: str = "pod") -> None:
        """By the rule, with these words, and without a byte of weights."""
        self.node.registry.forget()
        with pytest.raises(Forbidden, match=match) as caught:
            self.publish(model, pod)
        assert "rule 'prod' of this node's policy" in str(caught.value)
        assert self.weights() == 0
        self.node.assert_nothing_left()

    def weights(self) -> int:
        """Bytes that the registry sent of the model's layers."""
        return sum(r.size for r in self.node.registry.requests() if r.digest in self.pushed.layers)


@pytest.fixture
def it(make_node: MakeNode, tmp_path: Path) -> Signed:
    return Signed(make_node, tmp_path)


@pytest.mark.parametrize("form", ["simple", "bundle", "message", "model"])
def test_a_good_signature(it: Signed, form: str) -> None:
    it.refused("has no signature;")
    it.sign(form)
    it.mounts()


@pytest.mark.parametrize(
    "private",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "ed25519", "rsa"],
)
def test_keys_of_other_kinds(it: Signed, private: Callable[[], signing.Private]) -> None:
    key = Key(private())
    key.write(it.key_file)
    it.sign("simple", key)
    it.mounts()


@pytest.mark.parametrize("form", ["simple", "bundle", "message", "model"])
def test_anothers_key(it: Signed, form: str) -> None:
    it.sign(form, it.stranger)
    it.refused("one is by none of the keys and identities of the rule")


@pytest.mark.parametrize("form", ["simple", "bundle", "message", "model"])
def test_a_tampered_manifest(it: Signed, form: str) -> None:
    """What is signed is put beside another manifest, which the tag leads to."""
    original = it.pushed
    changed = it.node.push({**FILES, "config.json": b'{"other": 1}\n'})
    match form:
        case "simple":
            it.attacher.simple(changed, it.key.simple(original.digest, it.place))
            match = "one is about another artifact"
        case "bundle":
            it.attacher.bundle(changed, it.key.bundle(signing.statement(original.digest)))
            match = "one is about another artifact"
        case "message":
            it.attacher.bundle(changed, it.key.message_bundle(original.document), "")
            match = "one is by none of the keys"
        case _:
            it.attacher.bundle(changed, it.key.bundle(signing.model_statement(FILES)), signing.MODEL_SIGNING)
            match = "one lists other bytes of the file 'config.json'"
    it.refused(match)


def test_a_payload_that_was_changed(it: Signed) -> None:
    payload, signature = it.key.simple("sha256:" + "0" * 64, it.place)
    it.attacher.simple(it.pushed, (payload.replace(b"0" * 64, it.pushed.digest[7:].encode()), signature))
    it.refused("one is by none of the keys")


def test_another_repositorys_signature(it: Signed) -> None:
    it.attacher.simple(it.pushed, it.key.simple(it.pushed.digest, f"{it.pushed.host}/other/model"))
    it.refused("one is for another repository")
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', 'repository = "any"')
    it.mounts()


def test_an_older_tag_that_is_played_again(it: Signed) -> None:
    """The old version was signed as v1. Now v2 leads to it: its signature is good, and for another tag."""
    it.attacher.simple(it.pushed, it.key.simple(it.pushed.digest, f"{it.place}:v1"))
    pusher = push.Pusher(it.node.registry.host, it.node.registry.connection)
    pusher.manifest(it.pushed.repository, "v2", it.pushed.document)
    it.refused("one is for another tag", f"{it.place}:v2")
    it.mounts()  # by its own


def test_an_attestation_makes_no_signature(it: Signed) -> None:
    statement = signing.statement(it.pushed.digest, signing.VULNERABILITIES, signing.scan())
    it.attacher.bundle(it.pushed, it.key.bundle(statement), signing.VULNERABILITIES)
    it.refused("has no signature")


def test_what_was_signed_with_model_signing_and_has_more_files_now(it: Signed) -> None:
    more = it.node.push({**FILES, "sub/evil.py": b"import os\n"})
    it.attacher.bundle(more, it.key.bundle(signing.model_statement(FILES)), signing.MODEL_SIGNING)
    it.refused("one doesn't list the file 'sub/evil.py'")


def test_a_signature_of_model_signing_among_the_files(it: Signed) -> None:
    files = {**FILES, "model.sig": it.key.bundle(signing.model_statement(FILES))}
    it.pushed = it.node.push(files)
    assert contents(it.publish()) == files
    it.pushed = it.node.push({**files, "config.json": b'{"other": 1}\n'}, tag="v2")
    it.node.registry.forget()
    with pytest.raises(Forbidden, match=r"one lists other bytes of the file 'config\.json'"):
        it.publish(it.pushed.reference, "other-pod")
    assert sum(r.size for r in it.node.registry.requests() if r.digest == it.pushed.layers[-1]) == 0


def test_an_attestation_by_signer_and_age(it: Signed) -> None:
    it.demand("[[rule.attestations]]", 'type = "vulnerabilities"', f'keys = ["{it.key_file}"]', "max_age_hours = 24")
    it.refused("has no attestation of type 'vulnerabilities'")

    def attest(key: Key, digest: str, hours: float) -> None:
        statement = signing.statement(digest, signing.VULNERABILITIES, signing.scan(hours))
        it.attacher.bundle(it.pushed, key.bundle(statement), signing.VULNERABILITIES)

    attest(it.stranger, it.pushed.digest, 1)
    it.refused("one is by none of the keys")
    attest(it.key, "sha256:" + "1" * 64, 1)
    it.refused("one is about another artifact")
    attest(it.key, it.pushed.digest, 30)
    it.refused("one is 30 hours old, and may be 24")
    attest(it.key, it.pushed.digest, -2)
    it.refused("one is from the future")
    attest(it.key, it.pushed.digest, 2)
    it.mounts()


def test_an_attestation_as_cosign_2_attached_it(it: Signed) -> None:
    it.demand("[[rule.attestations]]", 'type = "sbom"', f'keys = ["{it.key_file}"]')
    statement = signing.statement(it.pushed.digest, signing.CYCLONEDX, {"bomFormat": "CycloneDX"})
    it.attacher.attestation(it.pushed, it.key.envelope(statement))
    it.mounts()


def test_trivys_own_report(it: Signed) -> None:
    it.demand("[[rule.attestations]]", 'type = "vulnerabilities"', "max_age_hours = 24")
    old = json.dumps({"SchemaVersion": 2, "CreatedAt": "2020-01-01T10:00:00.123456789+01:00"}).encode()
    it.attacher.referrer(it.pushed, signing.TRIVY, signing.TRIVY, old, {})
    it.refused(r"one is \d+ hours old")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = json.dumps({"SchemaVersion": 2, "CreatedAt": now}).encode()
    it.attacher.referrer(it.pushed, signing.TRIVY, signing.TRIVY, report, {})
    it.mounts()


def test_a_report_that_nobody_signed_is_not_by_a_key(it: Signed) -> None:
    it.demand("[[rule.attestations]]", 'type = "vulnerabilities"', f'keys = ["{it.key_file}"]')
    it.attacher.referrer(it.pushed, signing.TRIVY, signing.TRIVY, b"{}", {})
    it.refused("has no attestation of type 'vulnerabilities'")


def test_all_demands_count(it: Signed) -> None:
    it.sign("simple")
    second = it.stranger.write(it.directory / "second.pub")
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', "[[rule.signatures]]", f'keys = ["{second}"]')
    it.refused("one is by none of the keys")
    it.sign("bundle", it.stranger)
    it.mounts()


def test_a_rule_that_only_warns(it: Signed, caplog: pytest.LogCaptureFixture) -> None:
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', mode="warn")
    with caplog.at_level(logging.WARNING):
        it.mounts()
    assert "rule 'prod' of this node's policy forbids it" in caplog.text
    assert "has no signature" in caplog.text


def test_what_was_found_out_is_kept_and_shown_by_whose_key(it: Signed) -> None:
    it.sign("simple")
    it.mounts("one")
    it.node.registry.forget()
    it.mounts("two")
    assert [r.method for r in it.node.registry.requests()] == ["HEAD"]  # may this credential read it?
    repository, manifest = Reference.parse(it.pushed.pinned).repository, Digest.parse(it.pushed.digest)
    (record,) = records.of(it.node.store, repository, manifest)
    fingerprint = hashlib.sha256(_der(it.key.pem)).hexdigest()
    assert [each.name for s in record.statements for each in s.signers] == [f"key prod.pub (sha256:{fingerprint[:12]})"]
    assert record.rule == "prod"


def test_with_the_registry_down_the_record_suffices_until_the_keys_change(make_node: MakeNode, tmp_path: Path) -> None:
    with Registry(tmp_path / "own") as own:
        it = Signed(make_node, tmp_path, registry=own)
        it.sign("simple")
        target = it.publish()
        own.stop()
        it.node.reboot()  # the kubelet publishes all volumes again
        assert contents(it.publish()) == FILES
        it.mounts("another-pod")
        it.stranger.write(it.key_file)
        it.node.reboot()
        with pytest.raises(Unavailable):
            it.publish()
        assert not any(target.iterdir())
        own.start()
        with pytest.raises(Forbidden, match="one is by none of the keys"):
            it.publish()


def test_while_two_keys_are_named_each_will_do_and_one_that_is_taken_away_opens_nothing(it: Signed) -> None:
    newer = Key()
    both = [it.key_file, newer.write(it.directory / "next.pub")]

    def name(*files: Path) -> None:
        it.demand("[[rule.signatures]]", f"keys = {json.dumps([str(file) for file in files])}")

    name(*both)
    it.sign("simple")  # with the old one
    it.mounts("running")
    name(both[1])
    with pytest.raises(Forbidden, match="one is by none of the keys"):
        it.publish(pod="late")
    assert contents(it.publish(pod="running")) == FILES  # the kubelet asks again for what is mounted
    it.sign("bundle", newer)
    it.mounts("late")
    name(*both)
    it.mounts("later")


def test_a_key_file_that_is_gone_opens_nothing(it: Signed) -> None:
    it.sign("simple")
    it.mounts("one")
    it.key_file.unlink()
    with pytest.raises(Forbidden, match=r"prod\.pub can't be read"):
        it.publish(pod="two")


def test_a_signature_that_comes_later_counts_at_the_next_try(it: Signed) -> None:
    it.refused("has no signature")
    it.sign("bundle", it.stranger)
    it.refused("by none of the keys")
    it.sign("simple")
    it.mounts()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}', os.urandom(3000)],
    ids=["empty", "cut", "list", "bare", "noise"],
)
def test_rubbish_beside_a_model_is_in_nobodys_way(it: Signed, data: bytes) -> None:
    it.attacher.bundle(it.pushed, data)
    it.attacher.simple(it.pushed, (data, "not base64"))
    it.refused("one can't be read|one has")
    it.sign("bundle")
    it.mounts()


def _der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


def test_a_process_that_does_not_answer_refuses(it: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again by the next call, since nothing was found out."""
    it.sign("simple")
    with monkeypatch.context() as patched:
        patched.setattr(process, "_KEYS", "modelmount.signatures.absent")
        it.refused("the process that checks signatures can't be started")
    it.mounts()


@pytest.mark.parametrize(("form", "most"), [("simple", 4), ("bundle", 5), ("model", 5)])
def test_a_large_model_costs_a_few_small_requests(it: Signed, form: str, most: int) -> None:
    """Of 5 GiB, by a manifest that claims them, no byte is asked for."""
    it.pushed = claimed(it.node, 5 << 30)
    it.sign(form)
    reference, credential = Reference.parse(it.pushed.reference), Credential.anonymous()
    model = it.node.resolver.resolve(reference, "IfNotPresent", credential)
    check = Policing(it.node.store, str(it.policy), Finder(it.node.store, it.node.client)).begin(reference, {})
    it.node.registry.forget()
    if form == "model":  # over other files
        with pytest.raises(Forbidden, match=r"one (lists other bytes of|lists|doesn't list) the file"):
            check.signed(reference, model, credential)
    else:
        check.signed(reference, model, credential)
    requests = it.node.registry.requests()
    assert len(requests) <= most
    assert it.weights() == 0
    assert sum(request.size for request in requests) < 64 << 10


def claimed(node: Node, size: int) -> push.Pushed:
    """A model of one file of so many bytes, which are none on the registry's disk."""
    pusher = push.Pusher(node.registry.host, node.registry.connection)
    config, config_size = pusher.blob(node.repository, b"{}")
    digest = hashlib.sha256(os.urandom(16)).hexdigest()
    storage = node.registry.storage / "docker/registry/v2"
    data = storage / f"blobs/sha256/{digest[:2]}/{digest}/data"
    link = storage / f"repositories/{node.repository}/_layers/sha256/{digest}/link"
    for path in (data, link):
        path.parent.mkdir(parents=True)
    with data.open("wb") as file:
        file.truncate(size)
    link.write_text(f"sha256:{digest}")
    layer = {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "digest": f"sha256:{digest}",
        "size": size,
        "annotations": {push.FILEPATH: "sub/weights.safetensors"},
    }
    document = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": push.MANIFEST,
            "artifactType": push.MODELPACK_ARTIFACT,
            "config": {"mediaType": push.MODELPACK_CONFIG, "digest": config, "size": config_size},
            "layers": [layer],
        }
    ).encode()
    manifest = pusher.manifest(node.repository, "large", document)
    return push.Pushed(node.registry.host, node.repository, "large", manifest, document, (f"sha256:{digest}",), size)


@pytest.fixture
def gateway(registry: Registry) -> Iterator[Gateway]:
    """A registry that lists referrers: before the real one, which knows the tag in the place of a list only."""
    with Gateway(registry) as started:
        yield started


def test_a_registry_that_lists_referrers(make_node: MakeNode, tmp_path: Path, gateway: Gateway) -> None:
    it = Signed(make_node, tmp_path, gateway)
    listed = json.dumps({"schemaVersion": 2, "mediaType": push.INDEX, "manifests": []})
    answers = [listed.encode()]

    def answer(asked: Asked, gateway: Gateway) -> Answer:
        return Answer(200, answers[-1], [("Content-Type", push.INDEX)])

    gateway.play(Fault(lambda asked: "/referrers/" in asked.path, answer, times=None))
    it.refused("has no signature", it.through)
    it.sign("bundle")
    answers.append(json.dumps({**json.loads(listed), "manifests": it.attacher.listed(it.pushed)}).encode())
    assert contents(it.publish(it.through)) == FILES
    tags = [asked.path for asked in gateway.asked() if asked.path.endswith(signing.tag(it.pushed.digest))]
    assert tags == []  # who keeps a list needs no tag in its place


@pytest.mark.parametrize("path", ["/referrers/", "/manifests/sha256:"], ids=["the list", "what it lists"])
def test_what_registries_answer_wrongly_is_in_nobodys_way(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway, path: str
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', 'repository = "any"')
    it.sign("bundle")
    own = it.pushed.digest
    wrong = instead(Answer(200, b"{", [("Content-Type", push.INDEX)]))
    gateway.play(
        Fault(lambda asked: path in asked.path and not asked.path.endswith(f"manifests/{own}"), wrong, times=None)
    )
    it.sign("simple")
    assert contents(it.publish(it.through)) == FILES


def test_identities_of_an_own_sigstore(it: Signed) -> None:
    sigstore, root = Sigstore(), it.directory / "trusted_root.json"
    root.write_bytes(sigstore.trusted_root())
    it.demand(
        "[[rule.signatures]]",
        f'identities = [{{identity = "release@*", issuer = "{ISSUER}"}}]',
        f'trusted_root = "{root}"',
    )
    statement = signing.statement(it.pushed.digest)
    it.attacher.bundle(it.pushed, sigstore.bundle(statement, logged_after=timedelta(minutes=11)))
    it.attacher.bundle(it.pushed, sigstore.bundle(statement, identity="somebody@example.com"))
    it.refused("one has a certificate that doesn't count")
    it.attacher.bundle(it.pushed, sigstore.bundle(statement))
    it.mounts()


def test_what_judges_is_started_once_the_policy_demands_it(it: Signed) -> None:
    """Before a pod waits for it: for the kind of signatures that rules name."""
    process._helper.cache_clear()
    by_key, by_identity = (process._helper(process._module(identities), None) for identities in (False, True))
    it.publisher_anew()
    assert by_key.pid is not None
    assert by_identity.pid is None
    root = it.directory / "trusted_root.json"
    root.write_bytes(b"{}")
    it.demand("[[rule.signatures]]", 'identities = [{identity = "a", issuer = "b"}]', f'trusted_root = "{root}"')
    with pytest.raises(Forbidden):
        it.publish()
    assert by_identity.pid is not None


def test_of_many_pods_at_once_one_looks(it: Signed) -> None:
    it.sign("simple")
    with ThreadPoolExecutor(8) as pool:
        for target in pool.map(lambda number: it.publish(pod=f"pod-{number}"), range(8)):
            assert contents(target) == FILES
    looks = [r.path for r in it.node.registry.requests() if r.path.endswith(".sig")]
    assert len(looks) == 1


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_knows_nothing_of_referrers(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway, status: int
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    gateway.play(Fault(lambda asked: "/referrers/" in asked.path, instead(Answer(status)), times=None))
    it.sign("bundle")
    assert contents(it.publish(it.through)) == FILES


@pytest.mark.parametrize(
    ("trick", "why"),
    [
        ("killed", "gave no answer: it was ended by SIGKILL"),
        ("silent", "didn't answer within 3 s, and was killed|can't be started"),
        ("garbage", "said what it never should"),
    ],
)
def test_a_process_that_fails_refuses(it: Signed, trick: str, why: str) -> None:
    def judge(task: Task) -> list[Statement]:
        task = msgspec.structs.replace(task, manifest=trick.encode())
        seconds = 3 if trick == "silent" else process.SECONDS
        return process.judge(task, seconds=seconds, module="tests.unit.signatures.rogue", directory=ROOT)

    it.sign("simple")
    it.publisher_anew(judge)
    it.refused(f"the process that checks signatures ({why})")
    it.publisher_anew()
    it.mounts()  # nothing was kept of it


# -- how much is looked at, how often, and what is written down of it


class CountingLock:
    """Says how many wanted it."""

    wanted: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.release = self._lock.release

    def acquire(self, timeout: float) -> bool:
        self.wanted.append(1)
        return self._lock.acquire(timeout=timeout)


@pytest.mark.parametrize("fails", ["the process", "the registry"])
def test_a_look_that_fails_is_everybodys_who_waits_for_it(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', 'repository = "any"')
    it.sign("simple")
    monkeypatch.setattr(CountingLock, "wanted", [])
    monkeypatch.setattr("modelmount.signatures.finder.threading", SimpleNamespace(Lock=CountingLock))
    looks: list[str] = []

    def all_wait(at: str) -> None:
        looks.append(at)
        end = time.monotonic() + EVENT_SECONDS
        while len(CountingLock.wanted) < 8 and time.monotonic() < end:
            time.sleep(0.01)

    def judge(task: Task) -> list[Statement]:
        all_wait("the process")
        raise ProcessError("gave no answer")

    def down(asked: Asked, gateway: Gateway) -> Answer:
        all_wait("the registry")
        return Answer(503)

    if fails == "the registry":
        gateway.play(Fault(lambda asked: "/referrers/" in asked.path, down, times=None))
    reference, credential = Reference.parse(it.through), Credential.anonymous()
    model = it.node.resolver.resolve(reference, "IfNotPresent", credential)
    finder = Finder(it.node.store, it.node.client, judge if fails == "the process" else process.judge)
    policing = Policing(it.node.store, str(it.policy), finder)

    def look(_: int) -> ModelMountError:
        with pytest.raises((Forbidden, Unavailable)) as told:
            policing.begin(reference, {}).signed(reference, model, credential)
        return told.value

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, range(8)))
    assert len({(type(each), each.message) for each in found}) == 1
    assert set(looks) == {fails}
    assert len(looks) <= (1 if fails == "the process" else DOCUMENT_TRIES)
    before = len(looks)
    look(0)  # who comes later looks anew
    assert len(looks) > before


@pytest.mark.parametrize("status", [403, 451])
def test_what_one_credential_is_refused_is_nobody_elses_matter(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway, status: int
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    it.demand("[[rule.signatures]]", f'keys = ["{it.key_file}"]', 'repository = "any"')
    it.sign("simple")
    gateway.play(Fault(lambda asked: "/referrers/" in asked.path, instead(Answer(status)), times=None))
    with pytest.raises((Unauthenticated, Unavailable), match=r"no access|answered 451") as caught:
        it.publish(it.through)
    assert getattr(caught.value, "answered", True)  # to its caller it is what it was
    gateway.calm()
    assert contents(it.publish(it.through)) == FILES


def paged(gateway: Gateway, it: Signed, following: Callable[[int], str]) -> None:
    """Its list has one entry a page, and `following` says where it goes on."""
    entries = it.attacher.listed(it.pushed)

    def answer(asked: Asked, gateway: Gateway) -> Answer:
        number = int(asked.query.partition("page=")[2] or 0)
        page = {"schemaVersion": 2, "mediaType": push.INDEX, "manifests": entries[number : number + 1]}
        link = following(number)
        headers = [("Content-Type", push.INDEX), *([("Link", link)] if link else [])]
        return Answer(200, json.dumps(page).encode(), headers)

    gateway.play(Fault(lambda asked: "/referrers/" in asked.path, answer, times=None))


def test_every_page_of_a_list_of_referrers_is_read(make_node: MakeNode, tmp_path: Path, gateway: Gateway) -> None:
    it = Signed(make_node, tmp_path, gateway)
    for _ in range(2):
        it.sign("bundle", it.stranger)
    it.sign("bundle")
    count = len(it.attacher.listed(it.pushed))

    def following(number: int) -> str:
        there = f"</v2/{it.pushed.repository}/referrers/{it.pushed.digest}?page={number + 1}>"
        return f'{there}; rel="next"' if number + 1 < count else '</elsewhere>; rel="first"'

    paged(gateway, it, following)
    assert contents(it.publish(it.through)) == FILES
    asked = [each.query for each in gateway.asked() if "/referrers/" in each.path]
    assert asked == ["", *(f"page={number}" for number in range(1, count))]


def test_a_list_of_referrers_ends_after_so_many_pages_and_a_refusal_says_so(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    paged(gateway, it, lambda number: f"<?page={number + 1}>; rel=next")
    it.refused(f"has no signature; its registry's list goes on after {MOST_PAGES} pages", it.through)
    assert sum("/referrers/" in each.path for each in gateway.asked()) == MOST_PAGES


def test_a_list_of_referrers_that_goes_on_elsewhere_is_not_followed_there(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway
) -> None:
    it = Signed(make_node, tmp_path, gateway)
    with WireServer() as elsewhere:
        paged(gateway, it, lambda _: f'<{elsewhere.url}/v2/x/referrers/y>; rel="next"')
        it.refused("has no signature; its registry's list goes on after 1 page", it.through)
        assert elsewhere.asked() == []


def test_so_many_pieces_are_read_and_a_refusal_says_so(it: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.signatures.evidence.MOST_PIECES", 2)
    for _ in range(2):
        it.sign("bundle", it.stranger)
    it.sign("bundle")
    it.refused("one is by none of the keys .*there may be more than the 2 pieces that are read")
    monkeypatch.setattr("modelmount.signatures.evidence.MOST_PIECES", 3)
    it.mounts()


def test_what_is_listed_and_is_nothing_is_asked_for_so_often(
    make_node: MakeNode, tmp_path: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may push can list thousands, each a request for nothing. That takes no longer, and a refusal says so."""
    monkeypatch.setattr("modelmount.signatures.evidence.MOST_PIECES", 5)
    it = Signed(make_node, tmp_path, gateway)
    it.sign("bundle")
    (good,) = it.attacher.listed(it.pushed)
    nothing = [{**good, "digest": f"sha256:{number:064x}"} for number in range(50)]
    listed = [*nothing, good]

    def answer(asked: Asked, gateway: Gateway) -> Answer:
        index = {"schemaVersion": 2, "mediaType": push.INDEX, "manifests": listed}
        return Answer(200, json.dumps(index).encode(), [("Content-Type", push.INDEX)])

    gateway.play(Fault(lambda asked: "/referrers/" in asked.path, answer, times=None))
    it.refused("there may be more than the 5 pieces that are read", it.through)
    assert sum("/manifests/sha256:0000" in asked.path for asked in gateway.asked()) == 5
    listed = [*nothing[:4], good]
    assert contents(it.publish(it.through)) == FILES


def test_the_audit_log_says_who_signed_what_is_mounted(it: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmount.volumes.audit.CLOSE_SECONDS", EVENT_SECONDS)
    audit = Audit(str(it.directory / "audit.jsonl"), 1 << 20)
    node = it.node
    rooms = (node.store, node.resolver, node.puller, node.credentials, node.settings)
    node.publisher = Publisher(*rooms, signatures=Finder(node.store, node.client), audit=audit)
    it.sign("simple", it.stranger)
    it.sign("simple")
    it.mounts("one")
    it.mounts("two")  # by the record
    it.demand()
    it.mounts("three")  # and where nobody has to sign
    audit.close()
    lines = [json.loads(line) for line in (it.directory / "audit.jsonl").read_text().splitlines()]
    fingerprint = hashlib.sha256(_der(it.key.pem)).hexdigest()
    signer = f"key prod.pub (sha256:{fingerprint[:12]})"
    assert [line["digest"] for line in lines] == [it.pushed.digest] * 3
    assert [line.get("signers") for line in lines] == [[signer], [signer], None]


def test_a_model_that_is_evicted_leaves_nothing_that_says_it_was_here(it: Signed) -> None:
    """Neither proofs nor signatures nor what its tag meant: the next pod is as the first one."""
    it.sign("simple")
    target = it.publish("", "one")
    store, manifest = it.node.store, Digest.parse(it.pushed.digest)
    model = store.root / "models" / manifest.hex
    assert {"proofs", "signatures", "facts.json"} <= {each.name for each in model.iterdir()}
    it.node.publisher.unpublish("one", str(target))
    swept = Collector(store, lambda: Cache(grace_seconds=0)).collect(math.inf)
    assert len(swept.models) == 1
    known = ("models", "views", "refs", "trees", "blobs", "scopes", "unpacked", "volumes", "pulls", "trash")
    left = [path for name in known for path in (store.root / name).rglob("*") if path.is_file()]
    assert left == []
    assert not model.exists()
    it.node.registry.forget()
    it.mounts("two")
    asked = [(r.method, r.path.rpartition("/")[2]) for r in it.node.registry.manifest_requests()]
    assert asked[0] == ("GET", "v1")
    assert it.weights() > 0
