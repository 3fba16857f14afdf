"""The controller's half of a volume: pure, the same for the same name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from modelmount import wiring
from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden, InvalidRequest, Precondition
from modelmount.volumes.promise import Promises
from modelmount.volumes.volume import VolumeSpec

PROMISES = Promises()
MODEL = "harbor.example.com/llm/llama3-70b:v1"


def test_the_same_name_is_the_same_volume() -> None:
    one = PROMISES.create("pvc-1", {"model": MODEL}, Settings())
    two = PROMISES.create("pvc-1", {"model": MODEL}, Settings())
    other = PROMISES.create("pvc-2", {"model": MODEL}, Settings())
    assert one == two
    assert one.volume_id != other.volume_id
    assert one.context == {"model": MODEL}


def test_an_id_is_short_plain_text_whatever_the_name() -> None:
    for name in ("x", "ü" * 64, "../../etc", "a b\tc"):
        made = PROMISES.create(name, {"model": MODEL}, Settings())
        assert PROMISES.is_ours(made.volume_id)
        assert len(made.volume_id) == 44
        assert made.volume_id.isascii()


@pytest.mark.parametrize("volume_id", ["", "mm1-", "mm1-" + "g" * 40, "mm1-" + "A" * 40, "mm1-" + "a" * 41, "a" * 44])
def test_other_ids_are_not_ours(volume_id: str) -> None:
    assert not PROMISES.is_ours(volume_id)


def test_what_kubernetes_adds_is_not_passed_on() -> None:
    made = PROMISES.create("x", {"model": MODEL, "csi.storage.k8s.io/pvc/name": "claim"}, Settings())
    assert made.context == {"model": MODEL}


def test_parameters_are_judged_as_attributes_are() -> None:
    with pytest.raises(InvalidRequest):
        PROMISES.create("x", {"model": MODEL, "modell": "x"}, Settings())
    with pytest.raises(Forbidden):
        PROMISES.create("x", {"model": MODEL}, Settings(allowed_registries=["ghcr.io"]))


class Claims:
    """Claims of a cluster, and which were asked for."""

    def __init__(self, annotation: str | None) -> None:
        self.asked: list[tuple[str, str]] = []
        self._annotations = {"other": "x"} if annotation is None else {"modelmount.io/model": annotation}

    def claim_annotations(self, namespace: str, name: str) -> Mapping[str, str]:
        self.asked.append((namespace, name))
        return self._annotations


OF_CLAIM = {"csi.storage.k8s.io/pvc/namespace": "team-a", "csi.storage.k8s.io/pvc/name": "mine"}
ALLOWED = "harbor.example.com/llm/*\nghcr.io/open/one:v1"


def annotated(annotation: str | None, allowed: str = ALLOWED, **more: str) -> dict[str, str]:
    claims = Claims(annotation)
    made = Promises(lambda: claims).create("x", {"allowedReferences": allowed, **OF_CLAIM, **more}, Settings())
    assert claims.asked == [("team-a", "mine")]
    return made.context


@pytest.mark.parametrize("allowed", [ALLOWED, '["harbor.example.com/llm/*", "ghcr.io/open/one:v1"]'])
@pytest.mark.parametrize("model", [MODEL, "ghcr.io/open/one:v1", "harbor.example.com/llm/deep/er@sha256:" + "a" * 64])
def test_a_claim_names_its_model_within_what_its_class_allows(model: str, allowed: str) -> None:
    assert annotated(model, allowed, pullPolicy="Always") == {"model": model, "pullPolicy": "Always"}


@pytest.mark.parametrize(
    "model",
    [
        "harbor.example.com/other/x:v1",
        "harbor.example.com.evil.com/llm/x:v1",
        "ghcr.io/open/one:v2",
        "ghcr.io/open/one",
        "evil.com/harbor.example.com/llm/x:v1",
    ],
)
def test_a_claim_cannot_name_what_its_class_does_not_allow(model: str) -> None:
    with pytest.raises(Forbidden, match=r"claim team-a/mine names .* doesn't allow"):
        annotated(model)


@pytest.mark.parametrize(
    ("allowed", "model", "is_allowed"),
    [
        ("ghcr.io/open/one:v*", "ghcr.io/open/one:v1", True),
        ("ghcr.io/open/one:v*", "ghcr.io/open/one:v1@sha256:" + "a" * 64, False),
        ("ghcr.io/open/one:v1", "ghcr.io/open/one@sha256:" + "a" * 64, False),
        ("ghcr.io/open/one@sha256:*", "ghcr.io/open/one:v1@sha256:" + "a" * 64, True),
        ("ghcr.io/open/one:v1@sha256:*", "ghcr.io/open/one:v1@sha256:" + "a" * 64, True),
        ("ghcr.io/open/one", "ghcr.io/open/one:v1@sha256:" + "a" * 64, True),
    ],
)
def test_beside_a_digest_a_tag_opens_nothing(allowed: str, model: str, is_allowed: bool) -> None:
    """Any digest may stand behind any tag, and it is the digest that counts."""
    if is_allowed:
        assert annotated(model, allowed) == {"model": model}
    else:
        with pytest.raises(Forbidden, match="doesn't allow"):
            annotated(model, allowed)


@pytest.mark.parametrize(
    ("allowed", "model", "is_allowed"),
    [
        ("*.example.com/llm/*", "a.b.example.com/llm/x/y:v1", True),
        ("*.example.com/llm/*", "evil.com/x.example.com/llm/y:v1", False),
        ("*.example.com/llm/*", "a.example.com/other/x.example.com/llm/y:v1", False),
        ("reg?.example.com:5000/*", "reg1.example.com:5000/x:v1", True),
        ("reg.evil?x.com/*", "reg.evil/x.com/y:v1", False),
        ("*.example.com/llm/*:v1", "a.example.com/llm/x:v1", True),
        ("harbor*/llm/*", "harbor.example.com:8443/team/llm/x:v1", True),
        ("*.example.*/llm/*", "evil.com/x.example.com/llm/y:v1", False),
        ("*/llm/*", "ghcr.io/team/llm/x:v1", True),
        ("[fd00:0::1]:5000/llm/*", "[fd00::1]:5000/llm/x:v1", True),
        ("[fd00::1]:5000/llm/*", "f:5000/llm/x:v1", False),
    ],
)
def test_what_a_glob_says_of_the_host_is_about_the_host(allowed: str, model: str, is_allowed: bool) -> None:
    """A class may have a Secret, which is shown to whatever registry the claim names."""
    promises = Promises(lambda: Claims(model))
    settings = Settings(registries={"[fd00::1]:5000": Registry()})
    if is_allowed:
        made = promises.create("x", {"allowedReferences": allowed, **OF_CLAIM}, settings)
        assert made.context == {"model": model}
    else:
        with pytest.raises(Forbidden, match="doesn't allow"):
            promises.create("x", {"allowedReferences": allowed, **OF_CLAIM}, settings)


def test_a_claim_is_bound_by_the_admins_hosts_too() -> None:
    promises = Promises(lambda: Claims("ghcr.io/open/one:v1"))
    with pytest.raises(Forbidden, match="allow-list"):
        promises.create(
            "x", {"allowedReferences": "*", **OF_CLAIM}, Settings(allowed_registries=["harbor.example.com"])
        )


def test_a_claim_without_the_annotation_is_told_what_to_write() -> None:
    with pytest.raises(Precondition, match=r"annotate it, for example `modelmount\.io/model: "):
        annotated(None)


@pytest.mark.parametrize("text", ["", "no host", "harbor.example.com/llm/UPPER", "harbor.example.com/llm/x:v1\n"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises((InvalidRequest, Precondition)):
        annotated(text)


def test_a_class_has_a_model_or_lets_claims_name_one() -> None:
    for parameters in ({"model": MODEL, "allowedReferences": "*"}, {"allowedReferences": ""}):
        with pytest.raises(InvalidRequest):
            Promises(lambda: Claims(MODEL)).create("x", {**parameters, **OF_CLAIM}, Settings())
        with pytest.raises(InvalidRequest):
            PROMISES.check_attributes(parameters, Settings())
    PROMISES.check_attributes({"allowedReferences": "*", "pullPolicy": "Never"}, Settings())
    with pytest.raises(InvalidRequest, match="pullPolicy"):
        PROMISES.check_attributes({"allowedReferences": "*", "pullPolicy": "Sometimes"}, Settings())


def test_without_the_claims_name_or_an_api_server_it_says_what_is_missing() -> None:
    with pytest.raises(InvalidRequest, match="--extra-create-metadata"):
        Promises(lambda: Claims(MODEL)).create("x", {"allowedReferences": "*"}, Settings())
    with pytest.raises(Precondition, match="KUBERNETES_SERVICE_HOST"):
        wiring.promises(Settings()).create("x", {"allowedReferences": "*", **OF_CLAIM}, Settings())


def test_what_belongs_into_a_class_is_refused_in_a_volume() -> None:
    with pytest.raises(InvalidRequest, match="belongs into a StorageClass"):
        VolumeSpec.parse({"model": MODEL, "allowedReferences": "*"})


def test_a_volume_of_a_class_with_another_drivers_keys_has_ours() -> None:
    there = "model.csi.modelpack.org/"
    made = PROMISES.create("x", {f"{there}type": "image", f"{there}reference": MODEL}, Settings())
    assert made.context == {"model": MODEL}
    with pytest.raises(InvalidRequest, match="not both"):
        PROMISES.create("x", {f"{there}reference": MODEL, "allowedReferences": "*", **OF_CLAIM}, Settings())
    with pytest.raises(InvalidRequest, match="not both"):
        PROMISES.check_attributes({f"{there}reference": MODEL, "allowedReferences": "*"}, Settings())
    with pytest.raises(Forbidden):
        PROMISES.create("x", {f"{there}reference": MODEL}, Settings(allowed_registries=["ghcr.io"]))
