"""`modelmount doctor`: is this machine ready?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import modelmount
from modelmount import config
from modelmount.cli.examinations import Finding, Level, examine
from modelmount.cli.exits import Exit
from modelmount.cli.options import json_option, output_of
from modelmount.cli.output import counted
from modelmount.errors import InvalidRequest


@click.command(
    short_help="Examine this machine: is it ready?",
    epilog="""\b
Examples:
  modelmount doctor
  kubectl exec -n modelmount-system ds/modelmount-node -- modelmount doctor
  modelmount doctor --json | jq '.findings[] | select(.level != "OK")'

It changes nothing, and needs neither root nor a store; as root it sees more. Exit code 1: something must be fixed.
""",
)
@click.option("--config", "file", metavar="FILE", help=f"Configuration file.  [default: {config.DEFAULT_CONFIG_PATH}]")
@click.option("--root", metavar="DIR", help="The store, instead of the configured one.")
@json_option
@click.pass_context
def doctor(context: click.Context, file: str | None, root: str | None) -> None:
    """Examine this machine: rights, kernel, store, kubelet, registries; say what is wrong and what to do."""
    say = output_of(context)
    absolute = None if root is None else str(Path(root).absolute())
    settings, findings = _settings(file, absolute)
    findings += examine(settings)
    failed = [finding for finding in findings if finding.level is Level.FAIL]
    if say.json:
        found = [
            {"level": f.level.value, "name": f.name, "message": f.message, "remedy": f.remedy or None} for f in findings
        ]
        say.object({"ok": not failed, "version": modelmount.__version__, "findings": found})
    else:
        say.text(*_lines(findings))
    context.exit(Exit.FAILURE if failed else Exit.OK)


def _settings(file: str | None, root: str | None) -> tuple[config.Settings, list[Finding]]:
    """The settings, or the defaults and what is wrong with the settings: the rest is looked at anyway."""
    try:
        effective = config.read(file, overrides={"root": root})
    except InvalidRequest as e:
        first, *mistakes = e.message.splitlines()
        remedy = "correct it; the rest is examined with the defaults"
        texts = [m.removeprefix("  - ") for m in mistakes] or [first]
        settings = config.Settings() if root is None else config.Settings(root=root)
        return settings, [Finding(Level.FAIL, "config", text, remedy) for text in texts]
    source = effective.file or "defaults and environment, no file"
    return effective.settings, [Finding(Level.OK, "config", f"modelmount {modelmount.__version__}, {source}")]


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        yield f"{finding.level:<4}  {finding.name:<{width}}  {finding.message}"
        if finding.remedy:
            yield f"{'':<{width + 8}}-> {finding.remedy}"
    counts = [
        counted(n, word)
        for level, word in ((Level.FAIL, "failure"), (Level.WARN, "warning"))
        if (n := sum(finding.level is level for finding in findings))
    ]
    yield ""
    yield f"{' and '.join(counts)}" if counts else "all is well"
