"""The file of rules, in TOML. Everything in it is read strictly: a key nobody knows, one that is there twice, or a
value of another type makes the file count for nothing.

    [default]
    mode = "enforce"

    [[rule]]
    name = "production"
    namespaces = ["prod-*"]
    models = ["harbor.example.com/models/prod/*"]
    digest = true
    max_bytes = 200_000_000_000
    files = ["safetensors", "text"]
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from modelmount.config import spelling
from modelmount.errors import Forbidden, InvalidRequest
from modelmount.oci.reference import Reference, Repository, split_port
from modelmount.policy import signing
from modelmount.policy.kinds import Kind
from modelmount.policy.signing import Attestation, Demand, Signature

MAX_BYTES = 1 << 20
_DEFAULT = "default"
_HUB = ("docker.io", "registry-1.docker.io", "registry.hub.docker.com", "index.docker.io")
_MODELS = re.compile(r"[a-z0-9.:*?!\[\]-]+(?:/[a-z0-9._*?!\[\]-]+)*", re.ASCII)
_NAMESPACES = re.compile(r"[a-z0-9*?!\[\]-]+", re.ASCII)
_WILD = re.compile(r"[*?\[]")


class Demands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rule wants of a model. Everything that isn't said is allowed."""

    mode: Literal["enforce", "warn"] = "enforce"
    """Refuse, or only log what would be refused."""
    allow: bool = True
    """Whether such models may be mounted at all."""
    digest: bool = False
    """Whether volumes must name the model by its digest."""
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] | None = None
    """Most that the artifact may declare, all its layers together."""
    formats: list[str] = []
    """Formats of artifacts that may be mounted, as `modelmount inspect` calls them; empty means all."""
    files: list[Kind] = []
    """Kinds of files that may be in it; empty means all that `deny_files` doesn't name."""
    deny_files: list[Kind] = []
    """Kinds of files that must not be in it."""
    signatures: list[Signature] = []
    """Signatures that it must have: all of them."""
    attestations: list[Attestation] = []
    """What must be attested of it: all of that."""


class Rule(Demands, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Demands on some models in some namespaces."""

    name: str
    models: list[str]
    """Globs of `registry/repository`, in which `*` stands for slashes too."""
    namespaces: list[str] = []
    """Globs of namespaces; empty means all."""

    def refuse(self, why: str) -> Forbidden:
        """The error for what the rule forbids."""
        return Forbidden(f"rule {self.name!r} of this node's policy forbids it: {why}; ask the cluster's admin")

    def check_reference(self, reference: Reference) -> None:
        """Raise Forbidden by what was asked for."""
        if not self.allow:
            raise self.refuse(f"{reference.repository} may not be mounted in this namespace")
        if self.digest and reference.digest is None:
            raise self.refuse(f"{reference} must be named by its digest, as {reference.repository}@sha256:…")

    def check_artifact(self, what: str, format_name: str, total_bytes: int) -> None:
        """Raise Forbidden by what the manifest says."""
        if self.max_bytes is not None and total_bytes > self.max_bytes:
            raise self.refuse(f"{what} declares {total_bytes} bytes, more than {self.max_bytes}")
        if self.formats and format_name not in self.formats:
            raise self.refuse(f"{what} is of the format {format_name}, and only {', '.join(self.formats)} may be")

    def check_file(self, what: str, name: str, kind: Kind) -> None:
        """Raise Forbidden by what kind of file there is."""
        if kind in self.deny_files or (self.files and kind not in self.files):
            raise self.refuse(f"{what} has a file that may not be there: {name[:128]!a} ({kind})")

    @property
    def looks_into_files(self) -> bool:
        """Whether `check_file` can refuse anything."""
        return bool(self.files or self.deny_files)

    @property
    def demands(self) -> tuple[Demand, ...]:
        """What must be signed and attested."""
        return (*self.signatures, *self.attestations)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    default: Demands
    rule: list[Rule] = []


class Policy:
    """The rules of one file. Immutable; `id` changes with its text."""

    def __init__(self, rules: Iterable[Rule], default: Demands, text: bytes = b"") -> None:
        """Rules in the order of the file."""
        self._rules = tuple(rules)
        fields = {name: getattr(default, name) for name in default.__struct_fields__}
        self._default = Rule(name=_DEFAULT, models=["*"], **fields)
        self.id = hashlib.sha256(text).hexdigest()[:16]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All of them, the default last."""
        return (*self._rules, self._default)

    def rule(self, namespace: str | None, reference: Reference) -> Rule:
        """The rule that decides. Where nobody knows the namespace, rules about namespaces can't be told to match or
        not: raises Forbidden for models that one of them is about, unless it only warns.
        """
        names = _names(reference.repository)
        best, rank = self._default, (-1, False)
        for rule in self._rules:
            longest = max(
                (len(each) for each in rule.models for name in names if spelling.covers(each, name)),
                default=-1,
            )
            if longest < 0:
                continue
            if rule.namespaces and not namespace and rule.mode == "enforce":
                raise rule.refuse(
                    "the driver isn't told the pod's namespace; set podInfoOnMount in the CSIDriver object"
                )
            if rule.namespaces and not any(fnmatch.fnmatchcase(namespace or "", each) for each in rule.namespaces):
                continue
            if (longest, bool(rule.namespaces)) > rank:
                best, rank = rule, (longest, bool(rule.namespaces))
        return best


def _names(repository: Repository) -> set[str]:
    """A repository in all ways to write its registry: rules are about the registry that is asked, not about the
    spelling that somebody chose. https is port 443, and Docker Hub's API has a name of its own.
    """
    host = spelling.usual(repository.registry).removesuffix(":443")
    hosts = {host, *(_HUB if host in _HUB else ())}
    if split_port(host)[1] is None:
        hosts |= {f"{each}:443" for each in hosts}
    return {f"{each}/{repository.repository}" for each in hosts}


def _is_about_something(pattern: str) -> bool:
    """Whether there can be a repository that it matches: a rule that is about nothing would leave open what somebody
    thinks is closed.
    """
    if not _MODELS.fullmatch(pattern):
        return False
    plain = spelling.glob(pattern).removeprefix("[[]")
    if not _WILD.search(plain):
        try:
            found = Reference.parse(pattern)
        except InvalidRequest:
            return False
        return spelling.usual(pattern) in _names(found.repository)
    host = plain.partition("/")[0]
    if _WILD.search(host):
        return "/" in pattern or "*" in host
    return (host == "localhost" or "." in host or ":" in host) and not host.endswith(".")


def read(path: Path) -> Policy:
    """The policy in `path`. Raises InvalidRequest with the first mistake."""
    try:
        text = path.read_bytes()
    except OSError as e:
        raise InvalidRequest(f"policy_file {path} can't be read: {e.strerror}") from e
    if len(text) > MAX_BYTES:
        raise InvalidRequest(f"policy_file {path} is larger than {MAX_BYTES} bytes")
    try:
        decoded = msgspec.toml.decode(text, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(f"policy_file {path} has a mistake, and counts for nothing: {e}") from e
    names = [rule.name for rule in decoded.rule]
    twice = sorted({name for name in names if names.count(name) > 1 or name == _DEFAULT or not name})
    if twice:
        raise InvalidRequest(f"policy_file {path} has more than one rule {twice[0]!r}; each needs a name of its own")
    for rule in decoded.rule:
        if not rule.models:
            raise InvalidRequest(f"policy_file {path}: rule {rule.name!r} is for no models")
        for pattern in rule.models:
            if not _is_about_something(pattern):
                raise InvalidRequest(
                    f"policy_file {path}: rule {rule.name!r} is about nothing with {pattern[:128]!a}: write globs of "
                    "registry/repository as they stand in references, in lower case, without tag, digest and scheme, "
                    "such as harbor.example.com/llm/* or docker.io/library/llama3"
                )
        for pattern in rule.namespaces:
            if not _NAMESPACES.fullmatch(pattern):
                raise InvalidRequest(
                    f"policy_file {path}: rule {rule.name!r} is about nothing with {pattern[:128]!a}: that is no name "
                    "of a namespace, nor a glob of such"
                )
        signing.check(rule.demands, f"policy_file {path}: rule {rule.name!r}")
    default = decoded.default
    signing.check((*default.signatures, *default.attestations), f"policy_file {path}: default")
    return Policy(decoded.rule, decoded.default, text)
