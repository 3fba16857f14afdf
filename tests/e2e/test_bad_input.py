"""What bad requests, artifacts and registries get from the real driver: a code, a sentence that says what to do,
and nothing left behind. Each row of the threat model has tests with its name; R rows are references and attributes, N
rows requests and node paths.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.v1 import csi_pb2, csi_pb2_grpc
from tests.e2e.conftest import Node, contents, random_bytes, write_model
from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.kubelet import Claim, Kubelet, Pod, Volume
from tests.fakes.plugins import connect
from tests.fakes.proxy import Proxy
from tests.fakes.registry import Registry
from tests.faults.processes import connections_at
from tests.faults.scene import wait_for
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
        "R1 leading slash": ("/registry.example.com/llm/tiny", "host"),
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
        "R2 upper-case algorithm": (f"registry.example.com/a@SHA256:{HEX}", "sha256"),
        "R2 sha1": (f"registry.example.com/a@sha1:{HEX[:40]}", "use sha256"),
        "R2 unknown algorithm": (f"registry.example.com/a@blake3:{HEX}", "use sha256"),
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
        Row("R9 boolean yes", INVALID, "unpack", {"model": GOOD, "unpack": "yes"}),
        Row("R10 a value of 1 MiB", INVALID, "4096", {"model": GOOD, "mode": "x" * (1 << 20)}),
        Row("R10 many keys", INVALID, "4096", {"model": GOOD} | {f"k{n}": "v" for n in range(10_000)}),
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
    good = {"model": GOOD}

    def flagged(flag: str) -> csi_pb2.VolumeCapability:
        mount = csi_pb2.VolumeCapability.MountVolume(mount_flags=[flag])
        return csi_pb2.VolumeCapability(mount=mount, access_mode=MOUNT.access_mode)

    return [
        Row("N1 empty id", INVALID, "volume_id", good, volume_id=""),
        Row("N1 NUL in id", INVALID, "control characters", good, volume_id="a\0b"),
        Row("N1 long id", INVALID, "256", good, volume_id="v" * 4096),
        Row("N2 relative target", INVALID, "absolute", good, target="pods/x/mount"),
        Row("N2 dot-dot target", INVALID, "`..`", good, target="{pods}/x/../../../etc"),
        Row("N2 outside target", INVALID, "does not lie below", good, target="/etc/modelmount-test"),
        Row("N2 NUL in target", INVALID, "NUL", good, target="{pods}/x\0/mount"),
        Row("N7 block device", INVALID, "block device", good, capability=block),
        *(
            Row(f"N7 mount flag {flag}", INVALID, f"'{flag}'", good, capability=flagged(flag))
            for flag in ("suid", "dev", "exec", "bind", "rw")
        ),
        Row("N7 no capability", INVALID, "volume_capability", good, capability=csi_pb2.VolumeCapability()),
    ]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node for all rows, whose admin allows some registries only. Nothing of a row may be left for the next one, and
    none may have asked the registry.
    """
    settings = {"allowed_registries": ["registry.example.com", "127.0.0.1:*"]}
    with (
        tempfile.TemporaryDirectory(prefix="mm-bad-") as short,
        Registry(tmp_path_factory.mktemp("listed") / "registry") as registry,
        Driver(world_readable(Path(short)), [registry], settings=settings) as driver,
        Kubelet(driver.kubelet_root) as kubelet,
    ):
        yield Node(Path(short), registry, driver, kubelet)
        assert registry.requests() == []


def world_readable(directory: Path) -> Path:
    """So that what keeps others out is the driver's doing."""
    directory.chmod(0o755)
    return directory


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
        csi_pb2_grpc.NodeStub(channel).NodePublishVolume(request, timeout=100)
    error = caught.value
    return Refusal(error.code(), error.details() or "")


@pytest.mark.parametrize("row", attribute_rows() + request_rows(), ids=lambda row: row.id)
def test_a_bad_row_gets_its_code_and_a_sentence_and_leaves_nothing(listed: Node, row: Row) -> None:
    answer = refused(listed, row)
    assert answer.code is row.code, answer
    assert row.words in answer.message
    assert len(answer.message.encode()) <= 1024
    assert "hunter2" not in answer.message + listed.driver.log.read_text()
    assert mounts.below(listed.directory) == []
    assert listed.leases() == []
    assert list((listed.driver.kubelet_root / "pods").rglob("mount")) == []


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
    victim = node.registry.blob_file(weights(pushed)["digest"])
    good = victim.read_bytes()
    victim.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    pod = node.pod("victim", pushed.reference)
    expect(node, pod, FAILED, "wrong bytes")
    assert not list((node.driver.store / "ingest").glob(f"{victim.parent.name}-*/data"))
    assert f"sha256:{victim.parent.name}" not in node.blobs()
    node.kubelet.wait_event("FailedMount", "not asked again for", pod=pod)
    leave_nothing(node, pod)


def test_a_blob_that_is_shorter_than_its_manifest_says_is_refused_before_any_of_it_is_kept(
    node: Node, files: Path
) -> None:
    pushed = node.pusher.artifact("llm/cut", "v1", push.modelpack(files))
    victim = node.registry.blob_file(weights(pushed)["digest"])
    os.truncate(victim, weights(pushed)["size"] - 1000)
    pod = node.pod("reader", pushed.reference)
    expect(node, pod, FAILED, "where the manifest says", "push the model again")
    assert weights(pushed)["digest"] not in node.blobs()
    # The other blobs were on their way when the pull ended; what they had is kept for the next one.
    assert not list((node.driver.store / "ingest").glob(f"{victim.parent.name}-*/data"))
    leave_nothing(node, pod)


def test_a_truncated_body_is_unavailable_and_what_came_is_kept(make_node: Callable[..., Node], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(random_bytes(4 << 20, 2))
    with Registry(tmp_path / "registry") as registry, Proxy(registry.port, hold_at=3 << 20) as proxy:
        node = make_node(registry=registry, through=proxy)
        pushed = node.pusher.artifact("llm/cut", "v1", push.modelpack(directory))
        pod = node.pod("reader", f"{proxy.host}/llm/cut:v1")
        node.kubelet.wait_until(lambda: journalled(node) >= 2 << 20, "half of the body to arrive")
        proxy.cut_after, proxy.hold_at = 0, None
        expect(node, pod, grpc.StatusCode.UNAVAILABLE, proxy.host)
        assert weights(pushed)["digest"] not in node.blobs()
        node.kubelet.stop()
        node.driver.kill()  # nobody may be asking again while requests are counted
        had = journalled(node)
        assert had >= 2 << 20
        wait_for(lambda: not connections_at(registry.port), "the registry to see that its clients are gone")
        registry.forget()
        proxy.cut_after = None
        node.driver.start()
        node.kubelet.start()
        node.kubelet.wait_running(pod)
        assert contents(node.mount(pod)) == contents(directory)
        served = [r.size for r in registry.requests() if r.digest == weights(pushed)["digest"]]
        assert sum(served) == (4 << 20) - had
        leave_nothing(node, pod)


def weights(pushed: push.Pushed) -> dict[str, Any]:
    """The descriptor of the largest layer."""
    largest: dict[str, Any] = max(json.loads(pushed.document)["layers"], key=lambda layer: layer["size"])
    return largest


def journalled(node: Node) -> int:
    """Bytes that the journals of downloads under way speak of."""
    lines = [
        line.split(" ")
        for path in (node.driver.store / "ingest").glob("*/journal")
        for line in path.read_text().split("\n")
    ]
    return sum(int(fields[1]) for fields in lines if len(fields) == 4)


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


def test_n7_who_asks_for_a_volume_to_write_to_gets_one_to_read(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    claim = Claim("writable", "writable", access_mode="ReadWriteMany")
    volume = Volume("model", {"model": pushed.reference}, read_only=False, fs_type="ext4", claim=claim)
    pod = node.kubelet.run(Pod("writer", (volume,)))
    node.kubelet.wait_running(pod)
    assert {"ro", "nosuid", "nodev", "noexec"} <= mounts.options(node.mount(pod))
    with pytest.raises(OSError, match="Read-only file system"):
        (node.mount(pod) / "new").touch()
    leave_nothing(node, pod)


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


def test_r3_of_tag_and_digest_the_digest_decides(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    pod = node.pod("reader", f"{node.registry.host}/llm/tiny:never-pushed@{pushed.digest}")
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)
    assert not [request for request in node.registry.requests() if "never-pushed" in request.path]
    assert "the digest counts" in node.driver.log.read_text()


def test_r4_without_tag_and_digest_latest_is_meant_and_the_log_warns(node: Node, files: Path) -> None:
    node.pusher.artifact("llm/tiny", "latest", push.modelpack(files))
    pod = node.pod("reader", f"{node.registry.host}/llm/tiny")
    node.kubelet.wait_running(pod)
    assert contents(node.mount(pod)) == contents(files)
    (line,) = (line for line in node.driver.lines() if line["level"] == "warning" and "latest" in line["message"])
    assert "names neither tag nor digest" in line["message"]


def test_r14_a_forged_pod_is_believed_by_nobody_who_decides(node: Node, files: Path) -> None:
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    target = node.driver.target("pod")
    forged = {"csi.storage.k8s.io/pod.uid": "../../etc", "csi.storage.k8s.io/pod.namespace": "kube-system"}
    node.driver.publish("v", target, {"model": pushed.reference} | forged)
    node.driver.publish("v", target, {"model": pushed.reference, "csi.storage.k8s.io/ephemeral": "maybe"})
    assert contents(target) == contents(files)
    node.driver.unpublish("v", target)
    assert node.leases() == []


def test_n12_a_pod_that_gets_at_the_node_s_directories_does_not_get_into_the_store(listed: Node) -> None:
    looked = as_nobody("ls", str(listed.driver.store))
    assert looked.returncode != 0
    assert "Permission denied" in looked.stderr


def test_n13_a_call_nobody_knows_and_one_of_five_mebibytes_are_refused_and_the_next_is_served(listed: Node) -> None:
    with connect(str(listed.driver.socket)) as channel:
        stub = csi_pb2_grpc.NodeStub(channel)
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/csi.v1.Node/NodeFormatVolume", request_serializer=bytes)(b"", timeout=60)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
        large = csi_pb2.NodePublishVolumeRequest(volume_id="v", volume_context={"model": "x" * (5 << 20)})
        with pytest.raises(grpc.RpcError) as refusal:
            stub.NodePublishVolume(large, timeout=60)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=60).node_id == "node-1"


def test_n14_nobody_but_root_reaches_the_sockets(listed: Node) -> None:
    registration = next((listed.driver.kubelet_root / "plugins_registry").iterdir())
    assert [path.stat().st_mode & 0o077 for path in (listed.driver.socket, registration)] == [0, 0]
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    tried = as_nobody("/usr/bin/python3", "-c", program, str(listed.driver.socket))
    assert tried.returncode != 0
    assert "PermissionError" in tried.stderr


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run it without any right."""
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
