"""Two nodes: kubelet, driver and csi-provisioner on each, the second with a newer runtime and a cache on a small disk.

The scheduler knows how much room each has.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.api import Object, wait
from tests.cluster.conftest import Figures
from tests.cluster.node import KUBELET_ROOT, Machine, Node
from tests.cluster.test_volumes import claim, sees, storage_class
from tests.cluster.world import DRIVER, NAMESPACE, READER, STORE, WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(900)

SMALL_DISK_BYTES = 40 << 20
LARGE_MODEL_BYTES = 60_000_000


@pytest.fixture(scope="module")
def machine(started: World) -> Iterator[Machine]:
    """The second node; it goes with the last scenario here."""
    node = Node(started.directory, 2)
    machine = Machine(node, started.cluster.archives)
    image, cache = started.directory / "small.img", node.place(str(STORE))
    with image.open("wb") as out:
        out.truncate(SMALL_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    cache.mkdir(parents=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(cache)], check=True)
    try:
        with started.cluster.with_another(machine):
            started.helm("upgrade", capacity={"enabled": True})
            wait("the other kubelet knows the driver", lambda: started.registered(node.name), WAIT_SECONDS)
            yield machine
    finally:
        subprocess.run(["umount", str(cache)], check=True)
        started.helm("upgrade")


@pytest.fixture
def small(machine: Machine) -> str:
    """The second node's name."""
    return machine.node.name


def told(world: World, of_class: str) -> dict[str, int]:
    """Bytes of room that each node's provisioner has told for the class."""
    found = [each for each in world.api.all("CSIStorageCapacity", NAMESPACE) if each["storageClassName"] == of_class]
    return {each["nodeTopology"]["matchLabels"][f"{DRIVER}/node"]: _bytes(each["capacity"]) for each in found}


def _bytes(quantity: str) -> int:
    units = {
        "Ki": 1 << 10,
        "Mi": 1 << 20,
        "Gi": 1 << 30,
        "Ti": 1 << 40,
        "k": 10**3,
        "M": 10**6,
        "G": 10**9,
        "T": 10**12,
    }
    digits = quantity.rstrip("KMGTik")
    return int(digits) * units.get(quantity.removeprefix(digits), 1)


def wanting(world: World, name: str, of_class: str, size: int, preferred: str) -> Object:
    """A pod with an ephemeral volume of that size that would rather be on the preferred node."""
    spec = claim("", of_class, resources={"requests": {"storage": str(size)}})["spec"]
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [preferred]}]}
    rather = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": here}]}
    volume = {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
    return world.pod(name, {"model": volume}, affinity={"nodeAffinity": rather})


def test_a_pod_goes_where_its_model_has_room(world: World, small: str, figures: Figures) -> None:
    little, large = world.model(), world.model(weights=LARGE_MODEL_BYTES)
    for name, model in (("little", little), ("large", large)):
        world.api.create(storage_class(name, model, "WaitForFirstConsumer"))
    wait("two nodes tell their room for little models", lambda: len(told(world, "little")) == 2, WAIT_SECONDS)
    wait("two nodes tell their room for large models", lambda: len(told(world, "large")) == 2, WAIT_SECONDS)
    room = told(world, "large")
    assert 0 < room[small] < large.shown < room["node1"]
    figures["room"], figures["model"] = room, large.shown

    world.api.create(wanting(world, "little", "little", little.shown, small))
    world.api.create(wanting(world, "large", "large", large.shown, small))
    for name, model, lands in (("little", little, small), ("large", large, "node1")):
        sees(world, name, model)
        assert world.running(name)["spec"]["nodeName"] == lands
    world.api.create(wanting(world, "nowhere", "large", 2 * room["node1"], small))

    def waits() -> str:
        found = world.api.get("Pod", "nowhere")
        conditions = (found or {}).get("status", {}).get("conditions", ())
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled" and "message" in c), "")

    text = "2 node(s) did not have enough free storage"
    wait("the scheduler finds no node", lambda: text in waits(), WAIT_SECONDS)
    world.gone("little", "large", "nowhere")
    wait("the volumes are gone", lambda: not world.api.all("PersistentVolume"), WAIT_SECONDS)
    for name in ("little", "large"):
        world.api.delete("StorageClass", name)


def test_a_pod_with_users_of_its_own(world: World, small: str) -> None:
    """`hostUsers: false`, which needs containerd 2: root in the pod is nobody outside, and reads the model."""
    model = world.model()
    command = f"cat /proc/self/uid_map; {READER}"
    world.api.create(world.pod("own-users", model, command=command, hostUsers=False, nodeName=small))
    world.running("own-users")
    mapped, *listing = world.printed("own-users", 1 + len(model.sums)).splitlines(keepends=True)
    inside, outside, count = map(int, mapped.split())
    assert inside == 0 < outside
    assert count == 65536
    assert "".join(listing) == model.listing()
    world.gone("own-users")


def container(world: World, name: str) -> str:
    """The pod's container that is ready; nothing while there is none."""
    pod = world.api.get("Pod", name)
    states = (pod or {}).get("status", {}).get("containerStatuses", ())
    return next((state["containerID"] for state in states if state["ready"]), "")


def test_a_hundred_volumes_and_a_node_that_starts_anew_with_the_registry_down(
    world: World, machine: Machine, small: str, figures: Figures
) -> None:
    """The node's processes are killed and its mounts are gone, all at once; then containerd and the kubelet start."""
    models = [world.model(weights=20_000) for _ in range(5)]
    listing = "".join(model.listing(f"/model/m{number}") for number, model in enumerate(models))
    names = [f"many-{number}" for number in range(20)]
    for name in names:
        sources = {f"m{number}": world.inline(model) for number, model in enumerate(models)}
        world.api.create(world.pod(name, sources, nodeName=small))
    for name in names:
        world.running(name)
    for model in models:
        assert world.fetched(model) == dict.fromkeys(model.blobs, 1)
    before = {name: container(world, name) for name in names}

    def again(name: str) -> bool:
        return container(world, name) not in {"", before[name]}

    machine.power_off()
    world.registry.stop()
    try:
        machine.power_on()
        for name in names:
            wait(f"{name} runs again", functools.partial(again, name), WAIT_SECONDS)
            assert world.printed(name, listing.count("\n")) == listing
    finally:
        world.registry.start()
    figures["volumes"] = len(models) * len(names)
    world.gone(*names)
    kept = machine.node.place(str(STORE)) / "volumes"
    wait("no record is left", lambda: not list(kept.glob("*.json")), WAIT_SECONDS)
    directories = machine.node.place(str(KUBELET_ROOT)) / "pods"
    wait("no directory is left", lambda: not [*directories.glob("*/volumes/kubernetes.io~csi/*")], WAIT_SECONDS)
