"""The controller's half of a volume: pure, the same for the same name."""

from __future__ import annotations

import pytest

from modelmount.config import Settings
from modelmount.errors import Forbidden, InvalidRequest
from modelmount.volumes import promise

MODEL = "harbor.example.com/llm/llama3-70b:v1"


def test_the_same_name_is_the_same_volume() -> None:
    one = promise.create("pvc-1", {"model": MODEL}, Settings())
    two = promise.create("pvc-1", {"model": MODEL}, Settings())
    other = promise.create("pvc-2", {"model": MODEL}, Settings())
    assert one == two
    assert one.volume_id != other.volume_id
    assert one.context == {"model": MODEL}


def test_an_id_is_short_plain_text_whatever_the_name() -> None:
    for name in ("x", "ü" * 64, "../../etc", "a b\tc"):
        made = promise.create(name, {"model": MODEL}, Settings())
        assert promise.is_ours(made.volume_id)
        assert len(made.volume_id) == 44
        assert made.volume_id.isascii()


@pytest.mark.parametrize("volume_id", ["", "mm1-", "mm1-" + "g" * 40, "mm1-" + "A" * 40, "mm1-" + "a" * 41, "a" * 44])
def test_other_ids_are_not_ours(volume_id: str) -> None:
    assert not promise.is_ours(volume_id)


def test_what_kubernetes_adds_is_not_passed_on() -> None:
    made = promise.create("x", {"model": MODEL, "csi.storage.k8s.io/pvc/name": "claim"}, Settings())
    assert made.context == {"model": MODEL}


def test_parameters_are_judged_as_attributes_are() -> None:
    with pytest.raises(InvalidRequest):
        promise.create("x", {"model": MODEL, "modell": "x"}, Settings())
    with pytest.raises(Forbidden):
        promise.create("x", {"model": MODEL}, Settings(allowed_registries=["ghcr.io"]))
