"""What bad requests, artifacts and registries get from the real driver: a code, a sentence that says what to do,
and nothing left behind. Rows are named; R rows are references and attributes, N rows requests and node paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.e2e.conftest import Node, contents, random_bytes, write_model
from tests.fakes import mounts, push
from tests.fakes.kubelet import Pod, Volume
from tests.fakes.plugins import connect
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.unit.system.processes import mounted

pytestmark = [pytest.mark.mount, pytest.mark.registry]

GOOD = "registry.example.com/llm/tiny:v1"
HEX = "0123456789abcdef" * 4
MOUNT = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(),
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAILED = grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED


@dataclass(frozen=True)
class Refusal:
    code: grpc.StatusCode
    message: str


@dataclass(frozen=True)
class Row:
    """One bad request: what differs from a good one, the code it gets, and words its message has."""

    id: str
    code: grpc.StatusCode
    words: str
    attributes: dict[str, str] = field(default_factory=dict)
    volume_id: str = "volume-1"
    capability: csi_pb2.VolumeCapability = field(default_factory=lambda: MOUNT)
    target: str | None = None


def attribute_rows() -> list[Row]:
    """Rows R1 to R13: what a pod's author may write."""
    references = {
        "R1 empty": ("", "model"),
        "R1 upper-case path": ("registry.example.com/LLM/tiny", "repository path"),
        "R1 dot-dot": ("registry.example.com/llm/../tiny", "repository path"),
        "R1 leading dash": ("registry.example.com/-llm", "repository path"),
        "R1 trailing newline": (f"{GOOD}\n", "printable ASCII"),
        "R1 long tag": (f"registry.example.com/llm/tiny:{'t' * 129}", "tag"),
        "R1 long name": (f"registry.example.com/{'a' * 300}", "255"),
        "R1 no host": ("llm/tiny:v1", "registry host"),
        "R2 63 digits": (f"registry.example.com/a@sha256:{HEX[:-1]}", "64 lower-case hex"),
        "R2 65 digits": (f"registry.example.com/a@sha256:{HEX}0", "64 lower-case hex"),
        "R2 upper-case hex": (f"registry.example.com/a@sha256:{HEX.upper()}", "lower-case hex"),
        "R2 md5": ("registry.example.com/a@md5:d41d8cd98f00b204e9800998ecf8427e", "use sha256"),
        "R5 address": ("10.0.0.1/llm/tiny", "an admin must list it"),
        "R5 localhost": ("localhost/llm/tiny", "an admin must list it"),
        "R5 short address": ("127.1/llm/tiny", "an admin must list it"),
        "R5 number": ("2130706433:80/llm/tiny", "an admin must list it"),
        "R5 hex": ("0x7f.1/llm/tiny", "an admin must list it"),
        "R5 link-local": ("169.254.169.254/latest/meta", "an admin must list it"),
        "R5 IPv6": ("[::1]:5000/llm/tiny", "an admin must list it"),
        "R5 zone id": ("[fe80::1%25eth0]/llm/tiny", "host"),
        "R6 userinfo": ("user:hunter2@registry.example.com/a", "Secret"),
        "R6 http": ("http://registry.example.com/a", "oci://"),
        "R6 file": ("file:///etc/passwd", "oci://"),
        "R7 full-width digits": ("registry.example.com/llm:v１", "printable ASCII"),
        "R7 Kelvin sign": ("registry.example.com/\u212aey", "printable ASCII"),
    }
    rows = [Row(name, INVALID, words, {"model": text}) for name, (text, words) in references.items()]
    rows += [
        Row("R8 host off the allow-list", DENIED, "allow-list", {"model": "evil.example.org/llm/tiny:v1"}),
        Row("R9 unknown key", INVALID, "unknown volume attribute", {"model": GOOD, "modell": "x"}),
        Row("R9 key in another case", INVALID, "unknown volume attribute", {"Model": GOOD}),
        Row("R9 bad value", INVALID, "IfNotPresent", {"model": GOOD, "pullPolicy": "yes"}),
        Row("R10 a value of 1 MiB", INVALID, "4096", {"model": GOOD, "mode": "x" * (1 << 20)}),
        Row("R10 many keys", INVALID, "", {"model": GOOD} | {f"k{n}": "v" for n in range(10_000)}),
        Row("R11 admin's TLS setting", INVALID, "unknown volume attribute", {"model": GOOD, "plainHTTP": "true"}),
        Row("R11 admin's store", INVALID, "unknown volume attribute", {"model": GOOD, "root": "/etc"}),
        Row("R12 a pattern of many parts", INVALID, "include", {"model": GOOD, "include": "**/" * 200 + "*"}),
        Row("R12 many patterns", INVALID, "include", {"model": GOOD, "include": "\n".join(["*.bin"] * 600)}),
        Row("R13 line break in a value", INVALID, "pullPolicy", {"model": GOOD, "pullPolicy": "x\nkind: Pod"}),
        Row("mode lazy", INVALID, "does not exist yet", {"model": GOOD, "mode": "lazy"}),
    ]
    return rows


def request_rows() -> list[Row]:
    """Rows N1, N2 and N7: what a caller may ask."""
    block = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=MOUNT.access_mode)
    suid = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=["suid"]), access_mode=MOUNT.access_mode
    )
    good = {"model": GOOD}
    return [
        Row("N1 empty id", INVALID, "volume_id", good, volume_id=""),
        Row("N1 NUL in id", INVALID, "control characters", good, volume_id="a\0b"),
        Row("N1 long id", INVALID, "256", good, volume_id="v" * 4096),
        Row("N2 relative target", INVALID, "absolute", good, target="pods/x/mount"),
        Row("N2 dot-dot target", INVALID, "`..`", good, target="{pods}/x/../../../etc"),
        Row("N2 outside target", INVALID, "does not lie below", good, target="/etc/modelmount-test"),
        Row("N2 NUL in target", INVALID, "NUL", good, target="{pods}/x\0/mount"),
        Row("N7 block device", INVALID, "block device", good, capability=block),
        Row("N7 mount flag suid", INVALID, "suid", good, capability=suid),
        Row("N7 no capability", INVALID, "volume_capability", good, capability=csi_pb2.VolumeCapability()),
    ]


@pytest.fixture
def listed(make_node: Callable[..., Node]) -> Node:
    """A node whose admin allows some registries only."""
    return make_node(settings={"allowed_registries": ["registry.example.com", "127.0.0.1:*"]})


def refused(node: Node, row: Row) -> Refusal:
    """What the driver answers to this row's request."""
    pods = node.driver.kubelet_root / "pods"
    target = (row.target or "{pods}/bad/volumes/kubernetes.io~csi/model/mount").format(pods=pods)
    if row.target is None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id=row.volume_id, target_path=target, volume_context=row.attributes
    )
    if row.capability.ByteSize():
        request.volume_capability.CopyFrom(row.capability)
    with connect(str(node.driver.socket)) as channel, pytest.raises(grpc.RpcError) as caught:
        csi_pb2_grpc.NodeStub(channel).NodePublishVolume(request, timeout=30)
    error = caught.value
    return Refusal(error.code(), error.details() or "")


def test_every_bad_row_gets_its_code_and_a_sentence_and_leaves_nothing(listed: Node) -> None:
    wrong = []
    for row in attribute_rows() + request_rows():
        answer = refused(listed, row)
        if answer.code is not row.code or row.words not in answer.message or len(answer.message.encode()) > 1024:
            wrong.append((row.id, answer))
        if "hunter2" in answer.message:
            wrong.append((row.id, answer))
    assert wrong == []
    assert listed.registry.requests() == []
    assert mounts.below(listed.directory) == []
    assert listed.leases() == []
    assert list((listed.driver.kubelet_root / "pods").rglob("mount")) == []
    assert "hunter2" not in listed.driver.log.read_text()


def expect(node: Node, pod: Pod, code: grpc.StatusCode, *words: str) -> str:
    """The message of the pod's first answered publish, which has this code and these words."""
    node.kubelet.wait_until(lambda: bool(node.kubelet.calls_to("NodePublishVolume", pod)), "a publish to be answered")
    call = node.kubelet.calls_to("NodePublishVolume", pod)[0]
    assert call.code is code, call
    assert all(word in call.message for word in words), call.message
    return call.message


def leave_nothing(node: Node, pod: Pod) -> None:
    """After the pod is gone there is no trace of it."""
    node.kubelet.delete(pod)
    node.kubelet.wait_gone(pod)
    assert node.kubelet.leftovers() == []
    assert mounts.below(node.directory) == []
    assert node.leases() == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def test_a_missing_model_is_not_found(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("typo", pushed.reference.replace(":v1", ":v2"))
    expect(node, pod, grpc.StatusCode.NOT_FOUND, "llm/tiny")
    leave_nothing(node, pod)


def test_a_registry_that_is_down_is_unavailable_and_heals_by_itself(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    node.registry.stop()
    pod = node.pod("early", pushed.reference)
    expect(node, pod, grpc.StatusCode.UNAVAILABLE, node.registry.host)
    node.registry.start()
    node.kubelet.wait_running(pod)
    leave_nothing(node, pod)


@pytest.fixture
def private(make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Node]:
    with Registry(tmp_path / "private", users={"robot": "right-password"}) as registry:
        yield make_node(registry=registry)


def push_private(node: Node, files: Path) -> push.Pushed:
    authorization = push.basic("robot", "right-password")
    pusher = push.Pusher(node.registry.host, node.registry.connection, authorization=authorization)
    return pusher.artifact("llm/private", "v1", push.modelpack(files))


def dockerconfig(host: str, password: str) -> dict[str, str]:
    return {".dockerconfigjson": json.dumps({"auths": {host: {"username": "robot", "password": password}}})}


def test_no_credential_is_unauthenticated_and_the_remedy_is_named(private: Node, files: Path) -> None:
    pod = private.pod("anonymous", push_private(private, files).reference)
    expect(private, pod, grpc.StatusCode.UNAUTHENTICATED, "llm/private")
    leave_nothing(private, pod)


def test_a_wrong_credential_is_denied_and_never_shown(private: Node, files: Path) -> None:
    pushed = push_private(private, files)
    private.kubelet.secrets["default", "pull"] = dockerconfig(private.registry.host, "wr0ng-s3cret")
    volume = Volume("model", {"model": pushed.reference}, secret="pull")
    pod = private.kubelet.run(Pod("wrong", (volume,)))
    message = expect(private, pod, grpc.StatusCode.PERMISSION_DENIED, "llm/private")
    leave_nothing(private, pod)
    assert "wr0ng-s3cret" not in message + private.driver.log.read_text()
    assert not any(b"wr0ng-s3cret" in path.read_bytes() for path in private.driver.store.rglob("*") if path.is_file())


def test_the_right_credential_mounts_and_the_next_pod_needs_its_own(private: Node, files: Path) -> None:
    pushed = push_private(private, files)
    private.kubelet.secrets["default", "pull"] = dockerconfig(private.registry.host, "right-password")
    volume = Volume("model", {"model": pushed.reference}, secret="pull")
    pod = private.kubelet.run(Pod("right", (volume,)))
    private.kubelet.wait_running(pod)
    stranger = private.pod("stranger", pushed.reference)
    expect(private, stranger, grpc.StatusCode.UNAUTHENTICATED)
    assert contents(private.mount(pod)) == contents(files)
    leave_nothing_of_both(private, pod, stranger)
    assert "right-password" not in private.driver.log.read_text()


def leave_nothing_of_both(node: Node, *pods: Pod) -> None:
    for pod in pods:
        node.kubelet.delete(pod)
    for pod in pods:
        node.kubelet.wait_gone(pod)
    assert mounts.below(node.directory) == []


def test_wrong_bytes_are_refused_backed_off_and_never_shown(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    victim = node.registry.blob_file(max(json.loads(pushed.document)["layers"], key=lambda x: x["size"])["digest"])
    good = victim.read_bytes()
    victim.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    pod = node.pod("victim", pushed.reference)
    expect(node, pod, FAILED, "wrong bytes")
    assert not list((node.driver.store / "ingest").glob(f"{victim.parent.name}-*/data"))
    assert f"sha256:{victim.parent.name}" not in node.blobs()
    node.kubelet.wait_event("FailedMount", "not asked again for", pod=pod)
    leave_nothing(node, pod)


def test_a_truncated_body_is_unavailable_and_keeps_what_came(make_node: Callable[..., Node], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(random_bytes(4 << 20, 2))
    with Registry(tmp_path / "registry") as registry:
        pushed = push.Pusher(registry.host, registry.connection).artifact("llm/cut", "v1", push.modelpack(directory))
        blob = registry.blob_file(pushed.layers[0])
        os.truncate(blob, 3 << 20)
        node = make_node(registry=registry)
        pod = node.pod("reader", pushed.reference)
        call = first_answer(node, pod)
        assert call in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, FAILED}
        assert pushed.layers[0] not in node.blobs()
        leave_nothing(node, pod)


def first_answer(node: Node, pod: Pod) -> grpc.StatusCode:
    node.kubelet.wait_until(
        lambda: bool(node.kubelet.calls_to("NodePublishVolume", pod)), "a publish to be answered", 110
    )
    return node.kubelet.calls_to("NodePublishVolume", pod)[0].code


def test_a_body_cut_by_the_network_is_fetched_on_from_there(
    make_node: Callable[..., Node], tmp_path: Path, files: Path
) -> None:
    with Registry(tmp_path / "registry") as registry, Proxy(registry.port, cut_after=200_000) as proxy:
        node = make_node(registry=registry, through=proxy)
        node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
        pod = node.pod("reader", f"{proxy.host}/llm/tiny:v1")
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(files)


def test_no_space_says_what_is_needed_and_heals_when_there_is_some(
    make_node: Callable[..., Node], short: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(random_bytes(24 << 20, 3))
    with mounted(short / "store", "tmpfs", "size=16m"):
        node = make_node()
        pushed = node.pusher.artifact("llm/big", "v1", push.modelpack(directory))
        pod = node.pod("big", pushed.reference)
        expect(node, pod, grpc.StatusCode.RESOURCE_EXHAUSTED, "needed", "free")
        assert node.registry.blob_gets()[pushed.layers[0]] == 0
        node.kubelet.delete(pod)
        node.kubelet.wait_gone(pod)
        assert node.leases() == []
        node.driver.kill()
        node.kubelet.stop()


def test_an_unknown_artifact_is_refused_by_name(node: Node) -> None:
    helm = push.Artifact(
        push.Layer("application/vnd.cncf.helm.config.v1+json", b"{}"),
        (push.Layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"x"),),
    )
    pushed = node.pusher.artifact("charts/app", "v1", helm)
    pod = node.pod("chart", pushed.reference)
    expect(node, pod, FAILED, "Helm")
    assert node.registry.blob_gets()[pushed.layers[0]] == 0
    leave_nothing(node, pod)


def test_a_hostile_archive_is_refused_and_remembered_without_another_download(node: Node, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.write_bytes(b"root::0:0::/root:/bin/sh\n")
    archive = push.tar_of([("../../../../etc/modelmount-owned", evil)])
    layer = push.Layer("application/vnd.cncf.model.weight.v1.tar", archive, {push.FILEPATH: "."})
    artifact = push.Artifact(push.Layer(push.MODELPACK_CONFIG, b"{}"), (layer,), push.MODELPACK_ARTIFACT)
    pushed = node.pusher.artifact("llm/evil", "v1", artifact)
    first = node.pod("first", pushed.reference)
    expect(node, first, FAILED, "..")
    second = node.pod("second", pushed.reference)
    expect(node, second, FAILED, "..")
    assert node.registry.blob_gets()[pushed.layers[0]] == 1
    assert not Path("/etc/modelmount-owned").exists()
    for pod in (first, second):
        node.kubelet.delete(pod)
        node.kubelet.wait_gone(pod)
    assert mounts.below(node.directory) == []


def test_n3_a_symbolic_link_on_the_way_to_the_target_is_not_followed(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    pods = node.driver.kubelet_root / "pods"
    (pods / "linked").symlink_to(victim)
    (victim / "volumes").mkdir()
    with pytest.raises(grpc.RpcError) as caught:
        node.driver.publish("v", pods / "linked" / "volumes" / "mount", {"model": GOOD})
    assert caught.value.code() is FAILED
    assert list(victim.rglob("*")) == [victim / "volumes"]


def test_n4_a_file_or_a_full_directory_at_the_target_is_left_alone(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    for name in ("file", "full"):
        target = node.driver.target(name)
        target.parent.mkdir(parents=True)
        if name == "file":
            target.write_text("precious")
        else:
            target.mkdir()
            (target / "precious").write_text("precious")
        with pytest.raises(grpc.RpcError) as caught:
            node.driver.publish(name, target, {"model": pushed.reference})
        assert caught.value.code() is FAILED
    assert node.driver.target("file").read_text() == "precious"
    assert (node.driver.target("full") / "precious").read_text() == "precious"
    assert node.leases() == []


def test_n5_an_unpublish_of_a_foreign_path_does_nothing(node: Node, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    for target in (Path("/"), node.driver.store, precious, node.driver.kubelet_root / "pods"):
        try:
            node.driver.unpublish("forged", target)
        except grpc.RpcError as error:
            assert error.code() is INVALID
    assert precious.is_dir()
    assert node.driver.store.is_dir()


def test_n8_the_same_volume_with_other_attributes_already_exists(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    target = node.driver.target("pod")
    node.driver.publish("v", target, {"model": pushed.reference})
    node.driver.publish("v", target, {"model": pushed.reference, "csi.storage.k8s.io/pod.uid": "another"})
    with pytest.raises(grpc.RpcError) as caught:
        node.driver.publish("v", target, {"model": pushed.pinned})
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert contents(target) == contents(files)
    node.driver.unpublish("v", target)
    node.driver.unpublish("v", target)
    assert not target.exists()
