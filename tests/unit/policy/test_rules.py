"""Which rule decides, what it refuses, and that a file with a mistake in it counts for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelmount import policy
from modelmount.errors import Forbidden, InvalidRequest
from modelmount.oci.reference import Reference
from modelmount.policy import Policy

MODEL = Reference.parse("harbor.example.com/models/prod/llama:v1")
PINNED = Reference.parse(f"harbor.example.com/models/prod/llama@sha256:{'a' * 64}")

RULES = """
[default]
allow = false

[[rule]]
name = "all"
models = ["harbor.example.com/*"]
mode = "warn"

[[rule]]
name = "models"
models = ["other.example.com/*", "harbor.example.com/models/*"]

[[rule]]
name = "ours"
namespaces = ["prod-*", "live"]
models = ["harbor.example.com/models/*"]
digest = true

[[rule]]
name = "twin"
namespaces = ["prod-*"]
models = ["harbor.example.com/models/*"]
"""


def read(directory: Path, text: str) -> Policy:
    path = directory / "policy.toml"
    path.write_text(text)
    return policy.read(path)


@pytest.mark.parametrize(
    ("namespace", "model", "rule"),
    [
        ("dev", "harbor.example.com/models/x", "models"),
        ("prod-1", "harbor.example.com/models/x", "ours"),
        ("live", "harbor.example.com/models/x/y", "ours"),
        ("prod-1", "harbor.example.com/x", "all"),
        ("prod-1", "harbor.example.com.evil.com/models/x", "default"),
        ("prod-1", "example.com/harbor.example.com/models/x", "default"),
        ("dev", "other.example.com/x", "models"),
    ],
)
def test_the_longest_pattern_decides_then_who_names_namespaces_then_the_first(
    tmp_path: Path, namespace: str, model: str, rule: str
) -> None:
    assert read(tmp_path, RULES).rule(namespace, Reference.parse(model)).name == rule


@pytest.mark.parametrize(
    ("pattern", "model", "is_meant"),
    [
        ("harbor.example.com/secret/*", "harbor.example.com:443/secret/x", True),
        ("harbor.example.com:443/secret/*", "harbor.example.com/secret/x", True),
        ("harbor.example.com/secret/*", "HARBOR.example.com/secret/x", True),
        ("docker.io/secret/*", "registry-1.docker.io/secret/x", True),
        ("docker.io/secret/*", "registry-1.docker.io:443/secret/x", True),
        ("docker.io/secret/*", "registry.hub.docker.com/secret/x", True),
        ("docker.io/secret/*", "index.docker.io/secret/x", True),
        ("*fd00::1]/secret/*", "[fd00::1]:443/secret/x", True),
        ("[fd00::1]/secret/*", "[fd00::1]:443/secret/x", True),
        ("[fd00::1]:5000/secret/*", "[fd00:0:0::0001]:5000/secret/x", True),
        ("[fd00:0::1]:5000/secret/x", "[FD00::1]:5000/secret/x", True),
        ("[fd00::1]*/secret/x", "[fd00::1]:5000/secret/x", True),
        ("[fd00::1]:5000/secret/*", "[fd00::2]:5000/secret/x", False),
        ("[fd00::1]:5000/secret/[w-z]", "[fd00::1]:5000/secret/x", True),
        ("harbor.example.com/secret/*", "harbor.example.com:8443/secret/x", False),
        ("harbor.example.com:8443/secret/*", "harbor.example.com/secret/x", False),
        ("harbor.example.com:8443/secret/*", "harbor.example.com:8443/secret/x", True),
        ("*.example.com/secret/*", "a.b.example.com/secret/x", True),
        ("*.example.com/secret/*", "a.example.com:443/secret/x", True),
        ("*.example.com/secret/*", "evil.com/x.example.com/secret/y", False),
        ("*.example.com/secret/*", "a.example.com/x/b.example.com/secret/y", False),
        ("*:5000/secret/*", "harbor.example.com:5000/secret/y", True),
        ("*/secret/*", "harbor.example.com/team/secret/y", True),
        ("harbor*/secret/*", "harbor.example.com/team/secret/y", True),
        ("*secret*", "harbor.example.com/team/secret/y", True),
    ],
)
def test_a_rule_is_about_a_registry_however_its_host_is_written(
    tmp_path: Path, pattern: str, model: str, is_meant: bool
) -> None:
    text = f'[default]\n[[rule]]\nname = "secret"\nmodels = ["{pattern}"]\nallow = false\n'
    assert read(tmp_path, text).rule("dev", Reference.parse(model)).name == ("secret" if is_meant else "default")


def test_without_a_namespace_rules_about_namespaces_refuse(tmp_path: Path) -> None:
    for namespace in ("", None):
        with pytest.raises(Forbidden, match=r"rule 'ours'.*podInfoOnMount"):
            read(tmp_path, RULES).rule(namespace, MODEL)
        assert read(tmp_path, RULES).rule(namespace, Reference.parse("harbor.example.com/x")).name == "all"


def test_a_rule_that_only_warns_refuses_nobody_without_a_namespace(tmp_path: Path) -> None:
    text = '[default]\n[[rule]]\nname = "x"\nmodels = ["*"]\nnamespaces = ["a"]\nmode = "warn"\n'
    assert read(tmp_path, text).rule("", MODEL).name == "default"


def test_refusals_name_the_rule(tmp_path: Path) -> None:
    found = read(tmp_path, RULES)
    with pytest.raises(Forbidden, match=r"rule 'ours' of this node's policy forbids it: .* named by its digest"):
        found.rule("live", MODEL).check_reference(MODEL)
    found.rule("live", PINNED).check_reference(PINNED)
    foreign = Reference.parse("evil.example.com/x")
    with pytest.raises(Forbidden, match=r"rule 'default' .* evil.example.com/x may not be mounted"):
        found.rule("live", foreign).check_reference(foreign)


def test_sizes_formats_and_files_are_refused_beyond_what_is_said(tmp_path: Path) -> None:
    lines = ["[default]", "max_bytes = 100", 'formats = ["ModelPack"]', 'files = ["safetensors", "text"]']
    rule = read(tmp_path, "\n".join([*lines, 'deny_files = ["text"]'])).rule("x", MODEL)
    rule.check_artifact("m", "ModelPack", 100)
    rule.check_file("m", "a", "safetensors")
    refusals: tuple[Callable[[], None], ...] = (
        lambda: rule.check_artifact("m", "ModelPack", 101),
        lambda: rule.check_artifact("m", "Ollama", 1),
        lambda: rule.check_file("m", "a", "text"),
        lambda: rule.check_file("m", "a", "other"),
    )
    for refused in refusals:
        with pytest.raises(Forbidden, match="rule 'default'"):
            refused()


@pytest.mark.parametrize(
    "text",
    [
        "",  # default is missing
        "[default]\nsignature = true",
        "[default]\nallow = 1",
        "[default]\nallow = true\nallow = true",
        '[default]\nmode = "perhaps"',
        '[default]\nfiles = ["pickels"]',
        "[default]\nmax_bytes = -1",
        "[defaults]\n[default]",
        "[default]\n[[rule]]\nmodels = ['x.example/*']",
        "[default]\n[[rule]]\nname = 'x'",
        "[default]\n[[rule]]\nname = 'x'\nmodels = []",
        "[default]\n[[rule]]\nname = 'x'\nmodels = ['a.example/*']\n[[rule]]\nname = 'x'\nmodels = ['b.example/*']",
        "[default]\n[[rule]]\nname = 'default'\nmodels = ['a.example/*']",
        "default = [",
    ],
)
def test_a_file_with_a_mistake_counts_for_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="policy_file"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "Harbor.example.com/secret/*",
        "harbor.example.com/Secret/*",
        "harbor.example.com/secret/x:v1",
        "harbor.example.com/secret/*:v1",
        "harbor.example.com/secret/x@sha256:abc",
        "oci://harbor.example.com/secret/*",
        "https://harbor.example.com/secret",
        "harbor.example.com",
        "harbor.example.com/",
        "harbor.example.com/*/",
        "harbor.example.com./secret/*",
        "harbor.example.com//secret*",
        "secret/*",
        "docker.io/llama3",
        "harbor?example",
        "[fd00::1]",
        "[fd00::1]/Secret",
        " harbor.example.com/*",
        "",
    ],
)
def test_a_rule_that_can_be_about_nothing_is_a_mistake(tmp_path: Path, pattern: str) -> None:
    """It would leave open what its author thinks is closed."""
    with pytest.raises(InvalidRequest, match="rule 'a' is about nothing with"):
        read(tmp_path, f'[default]\n[[rule]]\nname = "a"\nallow = false\nmodels = ["{pattern}"]\n')


@pytest.mark.parametrize("namespace", ["Team-A", "team_a", "a/b", "a ", ""])
def test_so_is_one_for_what_can_be_no_namespace(tmp_path: Path, namespace: str) -> None:
    text = f'[default]\n[[rule]]\nname = "a"\nmodels = ["*"]\nnamespaces = ["{namespace}"]\n'
    with pytest.raises(InvalidRequest, match="is no name of a namespace"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*/secret/*",
        "harbor.example.com*",
        "*.example.com:8443/a_b/c-d",
        "harbor.example.com:443/secret",
        "harbor.example.com/*",
        "localhost/x*",
        "localhost:5000/x",
        "registry-1.docker.io/library/x",
        "index.docker.io/library/x",
        "docker.io/library/llama?",
        "harbor.example.com/[a-c]*",
        "[!e]*.example.com/x",
    ],
)
def test_one_that_is_about_something_is_none(tmp_path: Path, pattern: str) -> None:
    read(tmp_path, f'[default]\n[[rule]]\nname = "a"\nmodels = ["{pattern}"]\nnamespaces = ["team-*"]\n')


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="can't be read"):
        policy.read(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="has a mistake"):
        policy.read(tmp_path / "binary")


def test_the_id_follows_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, RULES).id == read(tmp_path, RULES).id != read(tmp_path, RULES + "\n").id
