"""The documents say what the code does: tables are compared with it, links lead somewhere, packages state a rule."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest
from prometheus_client.metrics import MetricWrapperBase

from modelmount import cli, policy, telemetry
from modelmount.cli import exits
from modelmount.config import Settings
from modelmount.config.schema import Registry
from modelmount.content import store
from modelmount.oci.reference import Reference
from modelmount.policy import signing
from modelmount.service import status
from modelmount.volumes import aliases, volume
from tests.fakes.kubelet import NOT_FINAL

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
HOST = 'registries."host:port"'
ARCHITECTURE_LINES = 200
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "tests/**/*.md", "bench/**/*.md")
    for path in ROOT.glob(pattern)
)
PACKAGES = sorted(path for top in ("driver/modelmount", "csi", "bench") for path in (ROOT / top).rglob("__init__.py"))


def rows(document: Path) -> Iterator[tuple[str, list[str]]]:
    """As written, but without backticks."""
    for heading, cells in rows_as_written(document):
        yield heading, [cell.replace("`", "").strip() for cell in cells]


def rows_as_written(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Each table row with the heading above it. Header rows and rules are left out."""
    heading, before = "", ""
    for line in document.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
        elif line.startswith("| ") and before.startswith("|"):
            yield heading, [cell.strip() for cell in line.strip("|").split("|")]
        before = line


def section(document: Path, heading: str) -> str:
    """The text below a heading, up to the next of any level."""
    text = document.read_text().replace("`", "")
    match = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{document.name} has no section {heading!r}"
    return match[1]


def knobs(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, str]:
    """Dotted key and default, as the document writes it, of each knob."""
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= knobs(field.type, f"{field.name}.")
        elif field.name != "registries":
            value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            found[prefix + field.name] = "not set" if value is None else json.dumps(value)
    return found


def test_the_configuration_reference_has_every_knob_with_its_default() -> None:
    documented = {}
    for heading, cells in rows(REFERENCE / "configuration.md"):
        prefix = "" if heading == "Top level" else heading.strip("[]") + "."
        documented[prefix + cells[0]] = cells[1]
    assert documented == knobs(Settings) | knobs(Registry, f"{HOST}.")


DEMANDS, KINDS = "Signatures and attestations", "Kinds of files"


def test_the_policy_reference_has_every_key_and_its_example_is_right(tmp_path: Path) -> None:
    documented = {(heading, cells[0]) for heading, cells in rows(REFERENCE / "policy.md")}
    kinds = {key for heading, key in documented if heading == KINDS}
    assert kinds == set(get_args(policy.Kind))
    demands = {*signing.Signature.__struct_fields__, *signing.Attestation.__struct_fields__}
    assert {key for heading, key in documented if heading not in {DEMANDS, KINDS}} == set(policy.Rule.__struct_fields__)
    assert {key for heading, key in documented if heading == DEMANDS} == demands
    text = (REFERENCE / "policy.md").read_text()
    (tmp_path / "policy.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    found = policy.read(tmp_path / "policy.toml")
    model = Reference.parse("harbor.example.com/models/prod/x")
    assert [found.rule(each, model).name for each in ("prod-1", "dev")] == ["production", "sandbox"]


def test_the_example_configuration_is_right() -> None:
    text = section(REFERENCE / "configuration.md", "Example")
    document = msgspec.toml.decode(text[text.index("toml\n") + 5 :])
    msgspec.convert(document, Settings)


def test_the_attribute_reference_has_every_key() -> None:
    documented = {
        cells[0] for heading, cells in rows(REFERENCE / "volume-attributes.md") if heading == "Volume attributes"
    }
    assert documented == set(volume.KNOWN_KEYS)


def test_the_attribute_reference_has_every_key_of_other_drivers() -> None:
    heading = "Keys of model-csi-driver"
    documented = [cells[0] for under, cells in rows(REFERENCE / "volume-attributes.md") if under == heading]
    assert documented == [key.removeprefix(aliases.PREFIX) for key in aliases.KEYS]


def test_the_attribute_reference_names_every_key_of_later_versions() -> None:
    text = (REFERENCE / "volume-attributes.md").read_text()
    assert [key for key in volume.LATER_KEYS if f"`{key}`" not in text] == []


def test_the_error_reference_has_every_error_with_its_code_and_what_the_kubelet_does() -> None:
    documented = {cells[0]: (cells[1], cells[2]) for _, cells in rows(REFERENCE / "errors.md")}
    expected = {
        error.reason: (code.name, "not final" if code in NOT_FINAL else "final") for error, code in status.CODES.items()
    }
    assert documented == expected


def test_the_metric_reference_has_every_metric_with_its_labels() -> None:
    documented = {cells[0]: (cells[1], cells[2]) for heading, cells in rows(REFERENCE / "metrics.md")}
    metrics = [value for value in vars(telemetry).values() if isinstance(value, MetricWrapperBase)]
    assert documented == {_full_name(metric): _described(metric) for metric in metrics}


def _full_name(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def _described(metric: MetricWrapperBase) -> tuple[str, str]:
    (family,) = metric.describe()
    return family.type, ", ".join(metric._labelnames)


def commands(group: click.Group, name: str = "modelmount") -> Iterator[tuple[str, click.Command]]:
    """Every command and sub-command with its full name."""
    context = click.Context(group)
    for each in group.list_commands(context):
        command = group.get_command(context, each)
        assert command is not None
        yield f"{name} {each}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {each}")


def option_names(cells: list[str]) -> list[str]:
    return re.findall(r"--[a-z][a-z-]*", cells[0])


def test_the_command_line_reference_has_every_command_with_its_options() -> None:
    shared = "Options that several commands share"
    documented: dict[str, set[str]] = {}
    for heading, cells in rows(REFERENCE / "cli.md"):
        documented.setdefault(heading, set()).update(option_names(cells))
    headings = re.findall(r"^#+ (.*)$", (REFERENCE / "cli.md").read_text().replace("`", ""), re.MULTILINE)
    used: set[str] = set()
    for name, command in commands(cli.cli):
        about = next((h for h in headings if h == name or re.fullmatch(rf"{name}( [A-Z]+)+", h)), None)
        assert about is not None, f"cli.md has no section about {name!r}"
        options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
        own = documented.get(about, set())
        assert options - documented[shared] == own, f"{name}: cli.md lists {sorted(own)}"
        used |= options
    assert documented[shared] == (documented[shared] & used) | {"--help"}


def test_the_command_line_reference_has_every_exit_code() -> None:
    documented = {cells[0]: cells[1] for heading, cells in rows(REFERENCE / "cli.md") if heading == "Exit codes"}
    assert documented == {str(code.value): meaning for code, meaning in exits.MEANINGS.items()}


def test_the_architecture_is_short_and_names_every_directory_of_the_store() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= ARCHITECTURE_LINES
    assert [room for room in store.ROOMS if f"{room.partition('/')[0]}/" not in text] == []


def test_the_architecture_lists_the_rooms_in_the_order_that_is_checked() -> None:
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers is not None
    checked = [
        name for name in re.findall(r"[a-z(][a-z)]*", layers[1]) if not name.startswith("(")
    ]  # optional rooms don't exist yet
    listed = re.search(r"^    (cli > .*?)\n\n", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert re.findall(r"[a-z]+", listed[1]) == checked


OPERATIONS = sorted((ROOT / "docs/operations").glob("*.md"))
NAMED = re.compile(r"`?(tests/[\w./]+)`|(\w+\.py)::(test_\w+)")
"""A test that a document names: a file or directory, or one test of a file."""


@functools.cache
def known_tests() -> frozenset[tuple[str, str]]:
    """Every test, with its file's name."""
    return frozenset(
        (path.name, name)
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize(
    "document",
    [ROOT / "docs/security.md", ROOT / "docs/formats.md", *OPERATIONS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_tests_that_prove_what_is_promised_are_there(document: Path) -> None:
    named = [match.groups() for match in NAMED.finditer(document.read_text())]
    assert named
    missing = [place for place, _, _ in named if place and not (ROOT / place).exists()]
    assert missing + [(file, name) for _, file, name in named if file and (file, name) not in known_tests()] == []


@pytest.mark.parametrize("document", OPERATIONS, ids=lambda path: path.name)
def test_each_section_of_the_operations_names_its_tests(document: Path) -> None:
    """But where a page names them for all of it."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    if re.search(r"^(Tests: |All of it is tested in )", text.partition("\n## When it")[0], re.MULTILINE):
        return
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [each.partition("\n")[0] for each in sections if not NAMED.search(each)] == []


@pytest.mark.parametrize("name", ["cache.md", "crashes.md"])
def test_each_paragraph_about_the_cache_names_its_tests(name: str) -> None:
    """And each list item and row. But for what leads to something: a page, a list, a table, an example."""
    text = (ROOT / "docs/operations" / name).read_text()
    head, *blocks = re.split(r"\n\n|\n(?=- |\| )", text.partition("\n\n")[2])
    assert head
    promises = [
        block.strip()
        for block in blocks
        if not re.match(r"\s*(#|    |\|---|\| (bound|what happens) \|)", block)
        and not re.search(r":$|\.md\)\.$", block)
    ]
    assert len(promises) > 20
    assert [block for block in promises if not NAMED.search(block)] == []


QUOTING = ("air-gap.md", "private-registries.md", "signatures.md", "troubleshooting.md")
NOT_IN_ONE_PLACE = {
    "driver name csi.modelmount.io not found in the list of registered CSI drivers",
    "ABORTED … pulling …: 43 percent …",
    "has no signature",
}
"""The kubelet's own words, and what is put together of several texts; other tests have those."""


def said() -> Iterator[str]:
    """Each text of the driver's sources; what is put into it is `…`."""
    for path in sorted((ROOT / "driver/modelmount").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sdr]|%\.?\d*f", "…", node.value)


def quoted(document: Path) -> Iterator[str]:
    """What the driver says, where a document tells what to do about it: in tables first, elsewhere in front of a colon
    or in bold.
    """
    for heading, cells in rows_as_written(document):
        if heading == "The pod waits" or heading.startswith("When it do"):
            yield from re.findall(r"`([^`]* [^`]*)`", cells[0])
    yield from re.findall(r"^- (?:\*\*)?`([^`]* [^`]*)`", document.read_text(), re.MULTILINE)


def test_what_the_driver_is_quoted_with_is_what_it_says() -> None:
    texts = list(said())
    found = [
        [part for part in re.split(r"\s*…\s*|:$", re.sub(r"^[A-Z_]{6,} |^one ", "", quote)) if part]
        for name in QUOTING
        for quote in quoted(ROOT / "docs/operations" / name)
        if quote not in NOT_IN_ONE_PLACE
    ]
    assert len(found) > len(QUOTING)
    patterns = [".*".join(map(re.escape, parts)) for parts in found]
    assert [pattern for pattern in patterns if not any(re.search(pattern, text) for text in texts)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_every_package_states_its_rule(package: Path) -> None:
    assert ast.get_docstring(ast.parse(package.read_text()))


def test_the_decisions_have_a_number_each_and_are_listed() -> None:
    files = sorted((ROOT / "docs/design").glob("[0-9]*.md"))
    assert len({file.name[:4] for file in files}) == len(files)  # a gap is one that is still on its way
    index = (ROOT / "docs/design/README.md").read_text()
    titles = {file.name: file.read_text().partition("\n")[0].partition(": ")[2] for file in files}
    assert [name for name, title in titles.items() if f"[{name[:4]}]({name}) | {title} |" not in index] == []
