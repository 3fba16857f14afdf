"""What docs/migrate.md says comes after, word by word but for the registry; who mounts claims does it as KServe and
llm-d's chart do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api import Object, wait
from tests.cluster.test_access import secret
from tests.cluster.test_volumes import claim, sees, storage_class
from tests.cluster.world import READER, ROOT, WAIT_SECONDS, Model, World
from tests.e2e.conftest import write_model
from tests.fakes import push

pytestmark = pytest.mark.timeout(600)

TEXT = (ROOT / "docs/migrate.md").read_text()
REFERENCE = "registry.example.com/llm/qwen3-8b:v1"


def section(heading: str) -> str:
    """The page's text under the heading."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def after(heading: str, model: Model) -> Any:
    """The section's last manifest, with this model."""
    text = re.findall(r"^```yaml$(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)[-1]
    assert REFERENCE in text
    return yaml.safe_load(text.replace(REFERENCE, model.reference))


def uri(scheme: str, heading: str) -> tuple[str, str]:
    """The claim and the path that the section's URI of that scheme names."""
    found = re.search(rf"\b{re.escape(scheme)}://([^/\s]+)/([^\s`]*)", section(heading))
    assert found is not None
    return found[1], found[2]


def image(directory: Path) -> push.Artifact:
    """As `docker build` makes it of a Dockerfile that copies the directory to /models, and says no more."""
    archive = push.tar_of((f"models/{name}", directory / name) for name in push.files_below(directory))
    rootfs = {"type": "layers", "diff_ids": [push.measure(archive)[0]]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    layer = push.Layer("application/vnd.docker.image.rootfs.diff.tar", archive)
    return push.Artifact(push.Layer(push.DOCKER_CONFIG, config), (layer,), media_type=push.DOCKER_MANIFEST)


def with_volumes(world: World, volumes: list[Object], **more: Any) -> Object:
    """A pod with the manifest's only volume."""
    (volume,) = volumes
    return world.pod("after", {volume["name"]: {key: volume[key] for key in volume if key != "name"}}, **more)


def claimed(world: World, name: str, model: Model, **parameters: str) -> Object:
    """A claim of that name with a class for the model; the source of its volume."""
    world.api.create(storage_class(name, model, "Immediate", **parameters), claim(name, name))
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def unclaimed(world: World, name: str) -> None:
    """The claim and its class are no more."""
    world.gone("after")
    world.api.delete("PersistentVolumeClaim", name)
    wait("the volume is gone", lambda: not world.api.all("PersistentVolume"), WAIT_SECONDS)
    world.api.delete("StorageClass", name)


def test_after_an_init_container(world: World) -> None:
    model = world.model(private=True)
    world.api.create(secret(world, "model-registry", "right"))
    manifest = after("An init container that copies into an emptyDir", model)
    world.api.create(with_volumes(world, manifest["volumes"]))
    sees(world, "after", model)
    world.api.delete("Secret", "model-registry")


def test_after_an_image_volume(world: World) -> None:
    source = write_model(world.directory / "image", seed=7001)
    model = world.push(source, build=image)
    manifest = after("An image volume of Kubernetes", model)
    world.api.create(with_volumes(world, manifest["volumes"], command=READER.replace("/model ", "/model/models ")))
    world.running("after")
    assert world.printed("after", len(model.sums)) == model.listing("/model/models")


def test_after_kserve(world: World) -> None:
    model = world.model()
    name, path = uri("pvc", "KServe")
    assert path == "", "KServe mounts the claim's root"
    world.api.create(world.pod("after", {"model": claimed(world, name, model)}))
    sees(world, "after", model)
    unclaimed(world, name)


def test_after_model_csi_driver(world: World) -> None:
    source = write_model(world.directory / "other", seed=7002)
    (source / "pytorch_model.bin").write_bytes(b"the same in another format")
    model = world.push(source)
    world.api.create(secret(world, "model-registry", "right"))
    manifest = after("model-csi-driver", model)
    world.api.create(with_volumes(world, manifest["volumes"]))
    world.running("after")
    shown = {name: digest for name, digest in model.sums.items() if not name.endswith(".bin")}
    listing = "".join(f"{digest}  /model/{name}\n" for name, digest in sorted(shown.items()))
    assert world.printed("after", len(shown)) == listing
    world.api.delete("Secret", "model-registry")


def test_after_llm_d_with_an_inline_volume(world: World) -> None:
    model = world.model()
    decode = after("llm-d's modelservice chart", model)["decode"]
    world.api.create(with_volumes(world, decode["volumes"]))
    sees(world, "after", model)


def test_after_llm_d_with_a_claim(world: World) -> None:
    model = world.model()
    name, path = uri("pvc", "llm-d's modelservice chart")
    assert path == "", "the engine gets the path below the claim's root"
    world.api.create(world.pod("after", {"model": claimed(world, name, model)}))
    sees(world, "after", model)
    unclaimed(world, name)


def test_after_llm_d_with_a_claim_in_the_hubs_layout(world: World) -> None:
    """HF_HUB_CACHE is what lies between the claim and the repository; the library looks up `main` there."""
    model = world.model()
    name, path = uri("pvc+hf", "llm-d's modelservice chart")
    cache, repository = "/".join(path.split("/")[:-2]), "/".join(path.split("/")[-2:])
    volume = claimed(world, name, model, layout="hf-cache", hfRepo=repository)
    home = f"/model/{cache}models--{repository.replace('/', '--')}"
    command = f"cd {home} && cd snapshots/$(cat refs/main) && {READER.replace('/model ', '. ')}"
    world.api.create(world.pod("after", {"model": volume}, command=command))
    world.running("after")
    assert world.printed("after", len(model.sums)) == model.listing(".")
    unclaimed(world, name)
