"""`modelmount config`: what the settings are, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from modelmount import config as settings
from modelmount import policy
from modelmount.cli.options import json_option, output_of, settings_options
from modelmount.signatures import material


@click.group(
    short_help="Show or check the settings.",
    epilog="""\b
Examples:
  modelmount config show                     every setting, and who set it
  modelmount config check --config new.toml  before it is rolled out
""",
)
def config() -> None:
    """Show or check the configuration: defaults, then file, then environment, then flags."""


@config.command()
@settings_options
@json_option
@click.pass_context
def show(context: click.Context, effective: settings.Effective) -> None:
    """Show every setting with its value and where it comes from.

    The output is a configuration file; with --json: {"settings": ..., "sources": ..., "file": ...}.
    """
    output = output_of(context)
    plain = settings.as_dict(effective.settings)
    if output.json:
        file = None if effective.file is None else str(effective.file)
        output.object({"settings": plain, "sources": dict(effective.sources), "file": file})
    else:
        output.text(*_toml(plain, effective.sources))


@config.command()
@settings_options
@json_option
@click.pass_context
def check(context: click.Context, effective: settings.Effective) -> None:
    """Say whether the configuration is right: every mistake in it, and exit code 2 if there is one."""
    output = output_of(context)
    if effective.settings.policy_file:
        for rule in policy.read(Path(effective.settings.policy_file)).rules:
            material.read(rule.demands)
    if output.json:
        output.object({"ok": True, "file": None if effective.file is None else str(effective.file)})
    else:
        output.text(f"the configuration is right: {effective.file or 'no file, defaults and environment'}")


def _toml(plain: dict[str, Any], sources: Any) -> Iterator[str]:
    """The settings as a file; values that are tables come last, as TOML wants it."""
    yield from _table(plain, "", sources)
    for name, section in plain.items():
        if name == "registries":
            for host, values in section.items():
                key = f"registries.{_quoted(host)}"
                yield from ("", f"[{key}]")
                yield from _table(values, f"{key}.", sources)
        elif isinstance(section, dict):
            yield from ("", f"[{name}]")
            yield from _table(section, f"{name}.", sources)


def _table(values: dict[str, Any], prefix: str, sources: Any) -> Iterator[str]:
    lines = [
        (f"# {name} is not set" if value is None else f"{name} = {_quoted(value)}", sources.get(prefix + name, ""))
        for name, value in values.items()
        if not isinstance(value, dict)
    ]
    width = max((len(text) for text, source in lines if source), default=0)
    for text, source in lines:
        yield f"{text.ljust(width)}  # {source}" if source else text


def _quoted(value: Any) -> str:
    """A text, number, truth value or list of them: written alike in JSON and TOML, but for escapes beyond ASCII."""
    return json.dumps(value, ensure_ascii=False)
