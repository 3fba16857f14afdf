"""The controller's half: a volume is a promise about a model. Nothing stored and no registry asked: the id follows from
the name, the promise travels in the context. Which model it is, the class says; or the claim by an annotation, within
what the class allows, and then the claim is read once, when its volume is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from modelmount.config import Settings, spelling
from modelmount.errors import Forbidden, InvalidRequest, Precondition
from modelmount.oci.reference import Reference
from modelmount.volumes import aliases, choices
from modelmount.volumes.choices import quoted
from modelmount.volumes.volume import ALLOWED_KEY, ANNOTATION, KUBERNETES_PREFIX, VolumeSpec, significant

PREFIX = "mm1-"
_ANY = "registry.invalid/any"


@dataclass(frozen=True, slots=True)
class Promise:
    """What CreateVolume answers with."""

    volume_id: str
    context: dict[str, str]


class Claims(Protocol):
    """Reads claims: `kube.api.Api`."""

    def claim_annotations(self, namespace: str, name: str) -> Mapping[str, str]:
        """What is annotated at a claim now."""


class Promises:
    """Stateless, so that any number of controllers may promise. Thread-safe."""

    def __init__(self, claims: Callable[[], Claims] | None = None) -> None:
        """`claims` is called for the first class that lets claims name their model; it raises Precondition where nobody
        can be asked.
        """
        self._claims = claims

    def create(self, name: str, parameters: Mapping[str, str], settings: Settings) -> Promise:
        """Validate the class's parameters as a volume's attributes and echo them, with the claim's model where the
        class allows claims to name one. Raises InvalidRequest, Forbidden, and what reading the claim does.
        """
        context = aliases.own(significant(parameters))
        if ALLOWED_KEY in context:
            context = self._annotated(context, parameters)
        check(context, settings)
        return Promise(PREFIX + hashlib.sha256(name.encode()).hexdigest()[:40], context)

    def is_ours(self, volume_id: str) -> bool:
        """Whether `create` could have made this id. Static volumes have ids of their own, which only publish
        accepts.
        """
        digits = volume_id.removeprefix(PREFIX)
        return volume_id.startswith(PREFIX) and len(digits) == 40 and all(c in "0123456789abcdef" for c in digits)

    def check_attributes(self, attributes: Mapping[str, str], settings: Settings) -> None:
        """Raise what `create` or a publish would raise for these before it asks anybody."""
        context = aliases.own(significant(attributes))
        if ALLOWED_KEY in context:
            _patterns(context)
            VolumeSpec.parse({**_without(context), "model": _ANY})
        else:
            check(context, settings)

    def _annotated(self, context: dict[str, str], parameters: Mapping[str, str]) -> dict[str, str]:
        """The volume's attributes: the class's, and the model that the claim names."""
        patterns = _patterns(context)
        namespace, name = (parameters.get(f"{KUBERNETES_PREFIX}pvc/{key}", "") for key in ("namespace", "name"))
        if not namespace or not name or self._claims is None:
            raise InvalidRequest(
                f"this StorageClass lets claims name their model ({ALLOWED_KEY}), but nobody says which claim this is: "
                "run csi-provisioner with --extra-create-metadata"
            )
        text = self._claims().claim_annotations(namespace, name).get(ANNOTATION, "")
        if not text:
            # After INVALID_ARGUMENT csi-provisioner waits long before its next try.
            raise Precondition(
                f"claim {namespace}/{name} names no model: annotate it, for example `{ANNOTATION}: "
                "harbor.example.com/llm/llama3-70b:v1`"
            )
        reference = Reference.parse(text)
        if not any(_allows(pattern, reference) for pattern in patterns):
            raise Forbidden(
                f"claim {namespace}/{name} names {quoted(text)}, which its StorageClass doesn't allow ({ALLOWED_KEY}); "
                "ask the cluster's admin"
            )
        return {**_without(context), "model": text}


def check(attributes: Mapping[str, str], settings: Settings) -> None:
    """Raise what publish would raise for these attributes before it looks at anything else."""
    VolumeSpec.parse(attributes).check_allowed(settings)


def _allows(pattern: str, reference: Reference) -> bool:
    """By repository, so that a class need not name tags; or by the whole name, so that it can. Beside a digest a tag is
    only for show: it counts where the pattern names a digest as well.
    """
    pinned = replace(reference, tag=None) if reference.digest is not None else reference
    called = {str(reference.repository), str(pinned), *([str(reference)] if "@" in pattern else ())}
    return any(spelling.covers(pattern, spelling.usual(each)) for each in called)


def _without(context: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in context.items() if key != ALLOWED_KEY}


def _patterns(context: Mapping[str, str]) -> list[str]:
    if "model" in context:
        raise InvalidRequest(f"a StorageClass has either a model or {ALLOWED_KEY}, not both")
    patterns = [line.strip() for line in choices.lines(context, ALLOWED_KEY)]
    if not patterns:
        raise InvalidRequest(
            f"{ALLOWED_KEY} names nothing; write globs of models, for example harbor.example.com/llm/*"
        )
    return patterns
