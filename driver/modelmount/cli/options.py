"""Options that several commands share, read the same way everywhere."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from modelmount import config, telemetry
from modelmount.cli.output import Output
from modelmount.volumes import choices

P = ParamSpec("P")
R = TypeVar("R")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[KMGTP]?)(?P<binary>i?)B?", re.ASCII | re.IGNORECASE)


class _Size(click.ParamType[int]):
    """Bytes as a person writes them: `50GB`, `1.5 TiB`, `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None or (match["binary"] and not match["unit"]):
            self.fail(f"{value!r} is no size; write 50GB, 1.5TiB or a number of bytes", param, ctx)
        unit = match["unit"].upper()
        factor = 1024 ** list(_UNITS).index(unit) if match["binary"] else _UNITS[unit]
        return int(float(match["number"]) * factor)


SIZE = _Size()

_LEVELS = ("error", "info", "debug")


def json_option(function: Callable[P, R]) -> Callable[P, R]:
    """`--json`; the command learns of it from its Output."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        output_of(context).json = value

    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        is_eager=True,  # a mistake in a later option is told in JSON too
        callback=remember,
        help="JSON on standard output, errors included.",
    )(function)


def quiet_option(function: Callable[P, R]) -> Callable[P, R]:
    """`--quiet`; the command's Output then says nothing but errors and what --json asks for."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        output_of(context).quiet = value

    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Say nothing unless it fails.",
    )(function)


def attributes_option(function: Callable[..., R]) -> Callable[..., R]:
    """`--attribute`, as often as there are attributes; the command gets `attributes: dict[str, str]` with a volume's
    keys.
    """

    def read(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for value in values:
            key, equals, text = value.partition("=")
            if not equals or key not in choices.KEYS:
                known = ", ".join(choices.KEYS)
                raise click.BadParameter(f"{value!r} is no KEY=VALUE with one of the keys {known}", context, param)
            # Again, it is one more line of a list.
            found[key] = f"{found[key]}\n{text}" if key in found else text
        return found

    return click.option(
        "--attribute",
        "attributes",
        metavar="KEY=VALUE",
        multiple=True,
        callback=read,
        help="What of the model, as a volume's attribute says it: include, exclude, path, files and others.",
    )(function)


def settings_options(function: Callable[..., R]) -> Callable[..., R]:
    """`--config`, `--root` and `--verbose`; the command gets `effective: config.Effective`."""

    @click.option(
        "--config", "file", metavar="FILE", help=f"Configuration file.  [default: {config.DEFAULT_CONFIG_PATH}]"
    )
    @click.option("--root", metavar="DIR", help="The store, instead of the configured one.")
    @click.option("-v", "--verbose", count=True, help="Say what happens on the way; -vv says everything.")
    @functools.wraps(function)
    def wrapped(*args: Any, file: str | None, root: str | None, verbose: int, **kwargs: Any) -> R:
        telemetry.configure(_LEVELS[min(verbose, len(_LEVELS) - 1)], json_lines=False)
        # What a command makes is the driver's too, and the driver shows it to nobody.
        os.umask(0o077)
        effective = config.read(file, overrides={"root": None if root is None else str(Path(root).absolute())})
        return function(*args, effective=effective, **kwargs)

    return wrapped


def output_of(context: click.Context) -> Output:
    """The Output of the running command."""
    return context.ensure_object(Output)
