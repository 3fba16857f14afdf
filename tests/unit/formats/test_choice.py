"""Which manifest of an index is the model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmount import formats
from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import Choice
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Platform
from modelmount.oci.manifest import Index
from tests.unit.oci.documents import descriptor

MODELPACK = {"artifactType": "application/vnd.cncf.model.manifest.v1+json"}
MODELKIT = {"artifactType": "application/vnd.kitops.modelkit.manifest.v1+json"}
ATTESTATION = {
    "platform": {"os": "unknown", "architecture": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
}
UNKNOWN = {"platform": {"os": "unknown", "architecture": "unknown"}}


def on(platform: str) -> dict[str, Any]:
    keys = ("os", "architecture", "variant")
    return {"platform": dict(zip(keys, platform.split("/"), strict=False))}


def index(*entries: dict[str, Any], artifact_type: str = "") -> Index:
    """Entries whose content is their number, so that each has a digest of its own."""
    listed = [descriptor(str(number).encode(), manifests.OCI_MANIFEST) | entry for number, entry in enumerate(entries)]
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_INDEX,
        "manifests": listed,
        "artifactType": artifact_type,
    }
    found = manifests.parse(json.dumps(document).encode())
    assert isinstance(found, Index)
    return found


def chosen(*entries: dict[str, Any], architecture: str | None = "amd64") -> int:
    found = index(*entries)
    return found.manifests.index(formats.choose(found, architecture))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([{}], 0, id="only-one"),
        pytest.param([on("linux/arm64")], 0, id="only-one-for-another-machine"),
        pytest.param([on("linux/s390x"), ATTESTATION], 0, id="only-one-beside-an-attestation"),
        pytest.param([on("linux/arm64"), on("linux/amd64")], 1, id="this-machine"),
        pytest.param([on("windows/amd64"), on("linux/amd64")], 1, id="linux"),
        pytest.param([{}, on("linux/amd64")], 1, id="this-machine-before-no-platform"),
        pytest.param([on("linux/arm64"), {}], 1, id="no-platform-before-other-machines"),
        pytest.param([on("linux/arm64"), UNKNOWN, ATTESTATION], 1, id="unknown-platform-is-none"),
        pytest.param([on("linux/amd64/v3"), on("linux/amd64")], 1, id="no-variant-before-others"),
        pytest.param([on("linux/amd64/v3"), on("linux/amd64/v2")], 1, id="lower-variant"),
        pytest.param([on("linux/amd64"), on("linux/arm64"), UNKNOWN | MODELPACK], 2, id="modelpack-between-images"),
        pytest.param([on("linux/amd64"), MODELKIT], 1, id="modelkit-beside-an-image"),
        pytest.param(
            [
                on("linux/amd64"),
                {"annotations": {"io.opendatahub.modelcar.manifest.type": "modelpack"}} | UNKNOWN,
            ],
            1,
            id="modelpack-by-annotation",
        ),
        pytest.param([MODELPACK | on("linux/arm64"), MODELPACK | on("linux/amd64")], 1, id="modelpack-by-machine"),
        pytest.param([{"mediaType": "application/x.new"}, {}, {"mediaType": "text/x"}], 1, id="unknown-types-ignored"),
        pytest.param([{"mediaType": manifests.OCI_INDEX}], 0, id="an-index"),
    ],
)
def test_one_entry_is_the_model(entries: list[dict[str, Any]], expected: int) -> None:
    assert chosen(*entries) == expected


def annotated(**annotations: str) -> dict[str, Any]:
    return {"annotations": annotations}


@pytest.mark.parametrize(
    ("entries", "choice", "expected"),
    [
        pytest.param([on("linux/amd64"), on("linux/arm64")], Choice(Platform("linux", "arm64")), 1, id="platform"),
        pytest.param([MODELPACK, on("linux/amd64")], Choice(Platform("linux", "amd64")), 1, id="platform-before-model"),
        pytest.param(
            [on("linux/arm64/v9"), on("linux/arm64/v8")], Choice(Platform("linux", "arm64")), 1, id="lower-variant"
        ),
        pytest.param(
            [on("linux/arm64/v9"), on("linux/arm64/v8")], Choice(Platform("linux", "arm64", "v9")), 0, id="variant"
        ),
        pytest.param([annotated(q="8"), annotated(q="4")], Choice(select=(("q", "4"),)), 1, id="annotation"),
        pytest.param(
            [annotated(q="4", f="a"), annotated(q="4", f="b")], Choice(select=(("f", "b"), ("q", "4"))), 1, id="several"
        ),
        pytest.param(
            [on("linux/arm64") | annotated(q="4"), on("linux/amd64") | annotated(q="4"), on("linux/amd64")],
            Choice(select=(("q", "4"),)),
            1,
            id="annotation-then-machine",
        ),
        pytest.param([{"mediaType": manifests.OCI_INDEX}], Choice(select=(("q", "4"),)), 0, id="within-the-only-index"),
    ],
)
def test_a_choice_decides(entries: list[dict[str, Any]], choice: Choice, expected: int) -> None:
    found = index(*entries)
    assert found.manifests.index(formats.choose(found, "amd64", choice)) == expected


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(Platform("linux", "s390x")), "platform"),
        (Choice(select=(("q", "5"),)), "select"),
        (Choice(Platform("linux", "amd64"), (("q", "4"),)), "platform and select"),
    ],
)
def test_a_choice_that_nothing_meets_lists_what_there_is(choice: Choice, told: str) -> None:
    entries = on("linux/amd64") | annotated(q="8"), on("linux/arm64") | annotated(q="4")
    with pytest.raises(InvalidRequest, match=f"chosen by {told}; it has .* for 'linux/amd64' with 'q=8', .* 'q=4'"):
        formats.choose(index(*entries), "amd64", choice)


def test_two_entries_that_meet_a_choice_are_not_decided_for() -> None:
    with pytest.raises(BadArtifact, match="`platform` or `select`"):
        formats.choose(index(annotated(q="4"), annotated(q="4")), "amd64", Choice(select=(("q", "4"),)))


def test_choices_have_keys_of_their_own() -> None:
    choices = [
        formats.ANY,
        Choice(Platform("linux", "amd64")),
        Choice(Platform("linux", "amd64", "v3")),
        Choice(select=(("platform", "linux/amd64"),)),
        Choice(select=(("a", "b"), ("c", "d"))),
    ]
    assert formats.ANY.key == ""
    assert len({choice.key for choice in choices}) == len(choices)


def test_an_entry_listed_twice_is_one_choice() -> None:
    same = descriptor(b"same", manifests.OCI_MANIFEST)
    assert chosen(same, same) == 0


@pytest.mark.parametrize(
    ("architecture", "expected"), [("amd64", 2), ("x86_64", 2), ("arm64", 1), ("aarch64", 1), (None, 1)]
)
def test_a_machine_is_known_by_either_name_and_without_one_the_first_linux_counts(
    architecture: str | None, expected: int
) -> None:
    entries = on("windows/amd64"), on("linux/arm64/v8"), on("linux/amd64")
    assert chosen(*entries, architecture=architecture) == expected


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([{}, {}], id="two-without-a-platform"),
        pytest.param([on("linux/arm64"), on("linux/ppc64le")], id="two-other-machines"),
        pytest.param([on("linux/amd64"), on("linux/amd64")], id="two-for-this-machine"),
        pytest.param([MODELPACK, MODELPACK, on("linux/amd64")], id="two-modelpack"),
    ],
)
def test_where_nothing_decides_the_choices_are_listed(entries: list[dict[str, Any]]) -> None:
    found = index(*entries)
    with pytest.raises(BadArtifact, match="name it by its digest") as caught:
        formats.choose(found, "amd64")
    assert str(found.manifests[0].digest) in caught.value.message
    assert str(found.manifests[1].digest) in caught.value.message


def test_the_list_shows_platforms_and_types_and_ends() -> None:
    found = index(*[on("linux/\x1b[31m" + "x" * 500) | {"artifactType": "y" * 500}] * 100)
    with pytest.raises(BadArtifact, match="and 90 more") as caught:
        formats.choose(found, "amd64")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 10_000


def test_an_index_of_attestations_only_is_refused() -> None:
    with pytest.raises(BadArtifact, match="no manifest that could be a model"):
        formats.choose(index(ATTESTATION, ATTESTATION), "amd64")
