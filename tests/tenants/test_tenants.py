"""Bob tries to read, detect, evict or delay what is Alice's. Every attempt is a row; what he gets is looked at after
each, and for her model that is here he must hear what he hears for one that isn't.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable

import grpc
import pytest

from tests.e2e.conftest import contents
from tests.fakes import push
from tests.fakes.wire import Answer, Asked, blob, challenge, document, redirect
from tests.tenants.world import NAMESPACE, SECONDS, TOKENS, Attack, Outcome, World, digest_of

pytestmark = [pytest.mark.mount, pytest.mark.registry, pytest.mark.timeout(300)]

REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)
Record = Callable[[str, object], None]


def rows(*attacks: Attack) -> list[object]:
    return [pytest.param(each, id=each.__name__.replace("_", " ")) for each in attacks]


# -- reading by name, with every credential that Bob can think of


def dockerconfig(host: str, username: str, password: str, **more: object) -> dict[str, str]:
    auths = {host: {"username": username, "password": password}}
    return {".dockerconfigjson": json.dumps({"auths": auths, **more})}


CREDENTIALS: dict[str, Callable[[World], dict[str, str]]] = {
    "nothing": lambda w: {},
    "a guessed password": lambda w: w.login("alice", "guess"),
    "an empty password": lambda w: dockerconfig(w.registry.host, "alice", ""),
    "his own login": lambda w: w.login("bob"),
    "his own pull secret": lambda w: dockerconfig(w.registry.host, "bob", w.secrets["bob"]),
    "his login for any host": lambda w: dockerconfig(f"*.*.*.*:{w.registry.port}", "bob", w.secrets["bob"]),
    "his own token": lambda w: {"token": w.token("bob", "team-b/own")},
    "his token for her repository": lambda w: {"token": w.token("bob", "team-a/secret")},
    "a made-up token": lambda w: {"token": "eyJhbGciOiJub25lIn0.e30."},
    "forged account tokens": lambda w: {TOKENS: json.dumps({"models": {"token": w.secrets["account"]}})},
    "a helper program": lambda w: {".dockerconfigjson": json.dumps({"credsStore": "cat", "auths": {}})},
}
FORMS: dict[str, tuple[str, str]] = {
    "by tag": (":v1", "IfNotPresent"),
    "by digest": ("@", "IfNotPresent"),
    "by tag and digest": (":v1@", "IfNotPresent"),
    "by tag anew": (":v1", "Always"),
    "from the node alone": (":v1", "Never"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("credential", CREDENTIALS)
def test_reading(world: World, credential: str, form: str, record_property: Record) -> None:
    suffix, policy = FORMS[form]

    def asked(pushed: push.Pushed) -> Outcome:
        reference = f"{world.registry.host}/{pushed.repository}{suffix}"
        reference += pushed.digest if suffix.endswith("@") else ""
        outcome = world.attempt(reference, CREDENTIALS[credential](world), {"pullPolicy": policy})
        words = outcome.message.replace(pushed.repository, "REPOSITORY")
        return Outcome(outcome.code, words.replace(pushed.digest, "DIGEST") if suffix.endswith("@") else words)

    here, elsewhere = asked(world.secret), asked(world.absent)
    record_property("code", here.code.name)
    record_property("message", here.message)
    assert here.code in REFUSED
    assert here == elsewhere
    assert not re.search("sha256:", here.message)


# -- reading by digest, through a registry of Bob's own


def naming_her_weights_without_having_them(w: World) -> None:
    refused(w, w.serve(w.manifest((*w.layer("model.safetensors"), "x"))))


def naming_her_weights_with_other_bytes(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: blob(bytes(size))}))


def naming_her_small_file_without_having_it(w: World) -> None:
    refused(w, w.serve(w.manifest((*w.layer("config.json"), "x"))))


def naming_her_small_file_with_other_bytes(w: World) -> None:
    digest, size = w.layer("config.json")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: blob(bytes(size))}))


def naming_her_small_file_as_the_config(w: World) -> None:
    other = (digest_of(b"own"), 3, "own.txt")
    reference = w.serve(w.manifest(other, config=w.layer("config.json")), {other[0]: blob(b"own")})
    w.attempt(reference, {})  # the config is shown to nobody, so this may well be mounted


def naming_her_weights_as_the_config(w: World) -> None:
    other = (digest_of(b"own"), 3, "own.txt")
    reference = w.serve(w.manifest(other, config=w.layer("model.safetensors")), {other[0]: blob(b"own")})
    w.attempt(reference, {})


def naming_her_weights_with_another_size(w: World) -> None:
    refused(w, w.serve(w.manifest((w.layer("model.safetensors")[0], 100, "x"))))


def naming_her_weights_as_an_archive(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    described = {"mediaType": "application/vnd.cncf.model.weight.v1.tar", "digest": digest, "size": size}
    refused(w, w.serve(w.manifest(layers=[{**described, "annotations": {"org.cncf.model.filepath": "x"}}])))


def naming_her_weights_with_data_of_his_own(w: World) -> None:
    digest, size = w.layer("config.json")
    described = {"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest, "size": size}
    refused(w, w.serve(w.manifest(layers=[{**described, "data": "AAAA"}])))


def naming_her_manifest_in_his_repository(w: World) -> None:
    refused(w, f"{w.evil.host}/bob/none@{w.secret.digest}")


def serving_other_bytes_as_her_manifest(w: World) -> None:
    path = f"/v2/bob/other/manifests/{w.secret.digest}"
    w.evil.on(path, Answer(200, w.manifest((*w.layer("config.json"), "x")), [("Content-Type", push.MANIFEST)]))
    refused(w, f"{w.evil.host}/bob/other@{w.secret.digest}")


def saying_that_he_has_her_manifest(w: World) -> None:
    def head_only(asked: Asked) -> Answer:
        return Answer(200 if asked.method == "HEAD" else 404, b"", [("Docker-Content-Digest", w.secret.digest)])

    w.evil.on(f"/v2/bob/head/manifests/{w.secret.digest}", head_only)
    w.evil.on("/v2/bob/head/manifests/v1", head_only)
    refused(w, f"{w.evil.host}/bob/head@{w.secret.digest}")
    refused(w, f"{w.evil.host}/bob/head:v1")


def serving_her_manifest_without_her_blobs(w: World) -> None:
    refused(w, w.serve(w.secret.document))  # he knows it, say from a log


def serving_an_index_of_her_manifest(w: World) -> None:
    entry = {"mediaType": push.MANIFEST, "digest": w.secret.digest, "size": len(w.secret.document)}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    refused(w, w.serve(json.dumps(index).encode()))


def redirecting_to_her_blob(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    there = f"{w.registry.url}/v2/team-a/secret/blobs/{digest}"
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: redirect(there)}), w.login("bob"))


def redirecting_to_her_manifest(w: World) -> None:
    there = f"{w.registry.url}/v2/team-a/secret/manifests/{w.secret.digest}"
    w.evil.on("/v2/bob/redirect/manifests/v1", redirect(there))
    refused(w, f"{w.evil.host}/bob/redirect:v1", w.login("bob"))


def challenging_for_her_repository(w: World) -> None:
    realm = f'Bearer realm="http://{w.tokens.host}/token",service="test-registry",scope="repository:team-a/secret:pull"'
    w.evil.on("/v2/bob/challenge/manifests/v1", challenge(realm))
    refused(w, f"{w.evil.host}/bob/challenge:v1", w.login("bob"))


def challenging_for_the_nodes_credential(w: World) -> None:
    w.evil.on("/v2/team-n/shared/manifests/v1", challenge('Basic realm="x"'))
    refused(w, f"{w.evil.host}/team-n/shared:v1")
    asked = w.evil.asked("/v2/team-n/shared/manifests/v1")
    assert asked
    assert all("authorization" not in each.headers for each in asked)


def challenging_for_the_nodes_credential_at_its_token_server(w: World) -> None:
    realm = f'Bearer realm="http://{w.tokens.host}/token",service="test-registry",scope="repository:team-n/shared:pull"'
    w.evil.on("/v2/team-n/lure/manifests/v1", challenge(realm))
    before = len(w.tokens.requests)
    refused(w, f"{w.evil.host}/team-n/lure:v1")
    assert "node" not in {each.user for each in w.tokens.requests[before:]}


def redirecting_to_what_the_node_may_read(w: World) -> None:
    w.evil.on("/v2/team-n/away/manifests/v1", redirect(f"{w.registry.url}/v2/team-n/shared/manifests/v1"))
    before = len(w.tokens.requests)
    refused(w, f"{w.evil.host}/team-n/away:v1")
    assert w.tokens.requests[before:] == []  # whoever is redirected answers no challenge there


def challenging_for_ever(w: World) -> None:
    w.evil.on("/v2/bob/ever/manifests/v1", challenge('Basic realm="x"'))
    refused(w, f"{w.evil.host}/bob/ever:v1", w.login("bob"))
    assert 1 <= len(w.evil.asked("/v2/bob/ever/manifests/v1")) <= 4


def calling_himself_her_registry(w: World) -> None:
    refused(w, f"{w.evil.host}/team-a/secret:v1")
    refused(w, f"{w.evil.host}/team-a/secret@{w.secret.digest}")


# -- proofs of possession, where the admin lets a registry give them


def proving_possession_with_zeros(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: blob(bytes(size))}, server=w.sharing))


def proving_possession_with_half_of_it(w: World) -> None:
    content = w.files["model.safetensors"]
    half = content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    digest = digest_of(content)
    refused(w, w.serve(w.manifest((digest, len(content), "x")), {digest: blob(half)}, server=w.sharing))


def proving_possession_with_the_head_alone(w: World) -> None:
    content = w.files["model.safetensors"]
    head = content[: 1 << 20] + bytes(len(content) - (1 << 20))
    digest = digest_of(content)
    refused(w, w.serve(w.manifest((digest, len(content), "x")), {digest: blob(head)}, server=w.sharing))


def proving_possession_without_ranges(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: Answer(200, bytes(size))}, server=w.sharing))


def proving_possession_by_saying_so(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: Answer(206, b"")}, server=w.sharing))


def proving_possession_of_a_small_file(w: World) -> None:
    digest, size = w.layer("config.json")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: blob(bytes(size))}, server=w.sharing))


def proving_possession_by_a_redirect_to_her_blob(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    there = redirect(f"{w.registry.url}/v2/team-a/secret/blobs/{digest}")
    refused(w, w.serve(w.manifest((digest, size, "x")), {digest: there}, server=w.sharing), w.login("bob"))


# -- names that are hers, words that are the admin's


def publishing_her_volume_id(w: World) -> None:
    assert w.attempt(w.secret.reference, {}, volume="volume-alice").code in REFUSED


def publishing_his_volume_at_her_target(w: World) -> None:
    with pytest.raises(grpc.RpcError) as told:
        w.driver.publish("volume-bob", w.alice_at, {"model": w.own.reference}, w.login("bob"))
    w.messages.append(str(told.value.details()))
    assert told.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def unpublishing_her_volume_id_at_his_target(w: World) -> None:
    w.driver.unpublish("volume-alice", w.driver.target("bob-nowhere"))


def unpublishing_her_target_with_his_volume_id(w: World) -> None:
    try:
        w.driver.unpublish("volume-bob", w.alice_at)
    except grpc.RpcError as e:
        w.messages.append(str(e.details()))


def claiming_no_namespace(w: World) -> None:
    outcome = w.attempt(w.ruled.reference, w.login("bob"), {NAMESPACE: ""})
    assert (outcome.code, "rule 'ruled'" in outcome.message) == (grpc.StatusCode.PERMISSION_DENIED, True)


def mounting_what_a_rule_keeps_for_her_namespace(w: World) -> None:
    outcome = w.attempt(w.ruled.reference, w.login("bob"))
    assert (outcome.code, "rule 'others'" in outcome.message) == (grpc.StatusCode.PERMISSION_DENIED, True)


def spelling_a_namespace_like_hers(w: World) -> None:
    for namespace in ("team-a ", "Team-a", "team-a/x", "*", "team-a\n"):
        outcome = w.attempt(w.ruled.reference, w.login("bob"), {NAMESPACE: namespace})
        assert outcome.code is grpc.StatusCode.PERMISSION_DENIED


def setting_what_only_an_admin_may(w: World) -> None:
    keys = ("verification", "on_registry_down", "anonymous", "plain_http", "sharing", "policy_file", "docker_config")
    for key in keys:
        assert w.attempt(w.secret.reference, {}, {key: "never"}).code is grpc.StatusCode.INVALID_ARGUMENT


def leaving_his_tree_by_path(w: World) -> None:
    for key in ("path", "subDir"):
        for value in ("../../..", "a/../../b", "/../etc"):
            outcome = w.attempt(w.own.reference, w.login("bob"), {key: value})
            assert outcome.code is not grpc.StatusCode.OK


def putting_tokens_among_the_attributes(w: World) -> None:
    refused(w, w.secret.reference, {}, {TOKENS: json.dumps({"models": {"token": w.secrets["account"]}})})


def naming_her_repository_in_other_spellings(w: World) -> None:
    for spelling in ("team-a//secret", "team-b/../team-a/secret", "team-a/secret/", "TEAM-A/secret", "team-a%2Fsecret"):
        assert w.attempt(f"{w.registry.host}/{spelling}:v1", w.login("bob")).code is not grpc.StatusCode.OK


def naming_her_registry_in_other_spellings(w: World) -> None:
    """What a rule keeps for her namespace is so under every name of its registry, and no name leads to this node."""
    port = w.registry.port
    hosts = ("localhost", "127.1", "0x7f.1", "2130706433", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1.")
    for host in (*(f"{each}:{port}" for each in hosts), f"127.0.0.1:0{port}", f"bob@127.0.0.1:{port}"):
        for repository in ("team-p/ruled", "team-a/secret"):
            refused(w, f"{host}/{repository}:v1", w.login("bob"))


def naming_her_model_by_another_drivers_attribute(w: World) -> None:
    alias = "model.csi.modelpack.org/reference"
    for reference in (w.secret.reference, w.ruled.reference):
        with pytest.raises(grpc.RpcError) as told:
            w.driver.publish(
                "volume-alias", w.driver.target("bob-alias"), {alias: reference, NAMESPACE: "team-b"}, w.login("bob")
            )
        w.messages.append(str(told.value.details()))
        assert told.value.code() in REFUSED
        refused(w, w.own.reference, w.login("bob"), {alias: reference})  # and one beside his own


# -- evicting and delaying


def needing_more_room_than_there_is(w: World) -> None:
    outcome = w.attempt(w.serve(w.manifest((digest_of(b"huge"), 1 << 40, "x"))), {})
    assert outcome.code is not grpc.StatusCode.OK
    she_needs_no_download(w)


def filling_the_cache(w: World) -> None:
    w.attempt(w.own.reference, w.login("bob"))
    w.attempt(w.more.reference, w.login("bob"))
    she_needs_no_download(w)


def declaring_many_files(w: World) -> None:
    layers = [(digest_of(str(n).encode()), 1, f"f{n}") for n in range(2000)]
    assert w.attempt(w.serve(w.manifest(*layers)), {}).code is not grpc.StatusCode.OK
    she_needs_no_download(w)


def making_her_wait_for_his_silent_registry(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    delayed(w, w.serve(w.manifest((digest, size, "x")), {digest: Answer(200, bytes(size), stall_after=1000)}))


def making_her_wait_for_his_dripping_registry(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    delayed(w, w.serve(w.manifest((digest, size, "x")), {digest: Answer(200, bytes(size), drip=(1, 0.2))}))


def making_her_wait_for_his_token_server(w: World) -> None:
    w.evil.on("/v2/bob/slow/manifests/v1", challenge(f'Bearer realm="{w.evil.url}/slow-token"'))
    w.evil.on("/slow-token", Answer(200, b"x" * 100, stall_after=1))
    delayed(w, f"{w.evil.host}/bob/slow:v1")


def putting_her_blob_under_suspicion(w: World) -> None:
    digest, size = w.layer("model.safetensors")
    for _ in range(3):
        w.attempt(w.serve(w.manifest((digest, size, "x")), {digest: blob(bytes(size))}), {})
    she_needs_no_download(w)


# -- while the registry is down


def reading_while_the_registry_is_down(w: World) -> None:
    down(w, {})


def reading_with_his_login_while_the_registry_is_down(w: World) -> None:
    down(w, w.login("bob"))


def reading_with_her_name_while_the_registry_is_down(w: World) -> None:
    down(w, w.login("alice", "guess"))


def having_a_token_server_that_lies(w: World) -> None:
    w.evil.on("/v2/bob/lies/manifests/v1", challenge(f'Bearer realm="{w.evil.url}/token"'))
    w.evil.on("/token", document({"token": w.token("bob", "team-b/own"), "expires_in": 1 << 60}))
    refused(w, f"{w.evil.host}/bob/lies:v1", w.login("bob"))
    refused(w, w.secret.reference, w.login("bob"))


def refused(
    w: World, reference: str, secrets: dict[str, str] | None = None, attributes: dict[str, str] | None = None
) -> None:
    assert w.attempt(reference, secrets or {}, attributes, timeout=6.0).code is not grpc.StatusCode.OK


def she_needs_no_download(w: World) -> None:
    """Another pod of hers starts with what is here."""
    w.registry.forget()
    w.publish("alice-2", w.secret.reference, w.login("alice"))
    try:
        assert contents(w.driver.target("alice-2")) == w.files
        # His own tries may go on in the background, and get nothing.
        assert [each.digest for each in w.registry.requests() if each.digest and each.status < 400] == []
    finally:
        w.driver.unpublish("volume-alice-2", w.driver.target("alice-2"))


def delayed(w: World, reference: str) -> None:
    """She gets hers while his call is under way, however long that takes."""
    his = threading.Thread(target=lambda: w.attempt(reference, w.login("bob"), timeout=4.0))
    before = len(w.evil.asked())
    his.start()
    try:
        while len(w.evil.asked()) == before and his.is_alive():
            his.join(0.01)
        she_needs_no_download(w)
    finally:
        his.join(SECONDS)
    assert not his.is_alive()


def down(w: World, secrets: dict[str, str]) -> None:
    """He is told that it is down, of what is here as of what isn't; she starts by her earlier proof."""
    w.registry.stop()
    try:
        outcomes = [w.attempt(pushed.reference, secrets) for pushed in (w.secret, w.absent)]
        assert [outcome.code for outcome in outcomes] == [grpc.StatusCode.UNAVAILABLE] * 2
        assert all("sha256:" not in outcome.message for outcome in outcomes)
        w.publish("alice-3", w.secret.reference, w.login("alice"))
        assert contents(w.driver.target("alice-3")) == w.files
        w.driver.unpublish("volume-alice-3", w.driver.target("alice-3"))
    finally:
        w.registry.start()


@pytest.mark.parametrize(
    "attack",
    rows(
        naming_her_weights_without_having_them,
        naming_her_weights_with_other_bytes,
        naming_her_small_file_without_having_it,
        naming_her_small_file_with_other_bytes,
        naming_her_small_file_as_the_config,
        naming_her_weights_as_the_config,
        naming_her_weights_with_another_size,
        naming_her_weights_as_an_archive,
        naming_her_weights_with_data_of_his_own,
        naming_her_manifest_in_his_repository,
        serving_other_bytes_as_her_manifest,
        saying_that_he_has_her_manifest,
        serving_her_manifest_without_her_blobs,
        serving_an_index_of_her_manifest,
        redirecting_to_her_blob,
        redirecting_to_her_manifest,
        challenging_for_her_repository,
        challenging_for_the_nodes_credential,
        challenging_for_the_nodes_credential_at_its_token_server,
        redirecting_to_what_the_node_may_read,
        challenging_for_ever,
        calling_himself_her_registry,
        proving_possession_with_zeros,
        proving_possession_with_half_of_it,
        proving_possession_with_the_head_alone,
        proving_possession_without_ranges,
        proving_possession_by_saying_so,
        proving_possession_of_a_small_file,
        proving_possession_by_a_redirect_to_her_blob,
        publishing_her_volume_id,
        publishing_his_volume_at_her_target,
        unpublishing_her_volume_id_at_his_target,
        unpublishing_her_target_with_his_volume_id,
        claiming_no_namespace,
        mounting_what_a_rule_keeps_for_her_namespace,
        spelling_a_namespace_like_hers,
        setting_what_only_an_admin_may,
        leaving_his_tree_by_path,
        putting_tokens_among_the_attributes,
        naming_her_repository_in_other_spellings,
        naming_her_registry_in_other_spellings,
        naming_her_model_by_another_drivers_attribute,
        needing_more_room_than_there_is,
        filling_the_cache,
        declaring_many_files,
        making_her_wait_for_his_silent_registry,
        making_her_wait_for_his_dripping_registry,
        making_her_wait_for_his_token_server,
        putting_her_blob_under_suspicion,
        reading_while_the_registry_is_down,
        reading_with_his_login_while_the_registry_is_down,
        reading_with_her_name_while_the_registry_is_down,
        having_a_token_server_that_lies,
    ),
)
def test_attack(world: World, attack: Attack, record_property: Record) -> None:
    before = len(world.messages)
    attack(world)
    told = world.messages[before:]
    record_property("code", "refused" if told else "of no effect")
    record_property("message", told[-1] if told else "")


def test_the_hunt_finds_secrets_where_there_are_some(world: World) -> None:
    planted = world.driver.store / "planted"
    for text in (world.secrets["node"], push.basic("bob", world.secrets["bob"])):
        planted.write_text(f"x{text}y")
        assert world.places_with_secrets() == [str(planted)]
    planted.unlink()
    assert world.places_with_secrets() == []
