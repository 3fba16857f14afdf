"""The command line: `python -m bench`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from bench import machine, report
from bench.cases import capped, pull, read, warm
from bench.processes import FailedError
from bench.report import Figure, Result
from bench.setting import Setting
from tests.fakes import mounts

CASES: dict[str, Callable[[Setting], Result]] = {
    "warm": warm.run,
    "read": read.run,
    "pull": pull.run,
    "capped": capped.run,
}
RESULTS = Path(__file__).parent / "results" / "latest.json"
PLACE = Path("/var/tmp")
"""A disk on most machines, where /tmp may be memory. The name is short: there are sockets below it."""
QUICK = {"rounds": 2, "size": 256 << 20, "publishes": 100}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BUSY_LOAD = 0.25
"""Load per processor, before anything began, above which figures say more about others than about us."""
SPACE_FACTOR = 4
"""The artifact is there as a source, in the registry, and at most twice with a client."""


def main() -> int:
    """Run the cases, print what they found, write it down. 2 when this machine or user can't."""
    options = _options()
    if os.geteuid() != 0:
        print("bench: mounts file systems, so run it as root: sudo make bench", file=sys.stderr)
        return 2
    needed = SPACE_FACTOR * options.size
    if shutil.disk_usage(options.directory).free < needed:
        print(
            f"bench: {options.directory} needs {needed >> 20} MiB free; name another with --directory, or a smaller "
            "--size",
            file=sys.stderr,
        )
        return 2
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        _measure(options, console)
    except FailedError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure modelmount on this machine.")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 5)")
    parser.add_argument("--size", type=int, help="bytes of a cold pull (default: 2 GiB)")
    parser.add_argument("--publishes", type=int, help="warm publishes of each kind (default: 500)")
    parser.add_argument("--only", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument("--quick", action="store_true", help="smaller defaults: to see that it works, not for figures")
    parser.add_argument("--directory", type=Path, default=PLACE, help=f"on the disk to measure (default: {PLACE})")
    options = parser.parse_args()
    defaults = QUICK if options.quick else {"rounds": 5, "size": 2 << 30, "publishes": 500}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def _measure(options: argparse.Namespace, console: Console) -> None:
    described = machine.describe(options.directory.resolve())
    versions = machine.programs()
    _show_machine(console, described, versions)
    document: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": {name: getattr(options, name) for name in ("rounds", "size", "publishes", "quick")},
        "machine": described,
        "programs": versions,
        "cases": {},
    }
    figures: list[Figure] = []
    with _short_directory(options.directory) as directory:
        for name in options.only or CASES:
            say = _sayer(console, name)
            result = CASES[name](Setting(directory, options.rounds, options.size, options.publishes, say))
            document["cases"][name] = result.document
            figures += result.figures
            for table in result.tables:
                report.show(console, table)
    described["load_after"] = os.getloadavg()[0]
    report.show_figures(console, figures)
    report.write(RESULTS, document, figures)
    console.print(f"\nwritten to {RESULTS}")


def _show_machine(console: Console, described: dict[str, Any], versions: dict[str, str]) -> None:
    virtual = "virtual machine" if described["virtual_machine"] else "no virtual machine seen"
    sha = "SHA instructions" if described["sha_instructions"] else "no SHA instructions"
    console.print(
        f"{described['cpus']} CPUs {described['processor']} ({sha}, {virtual}), {described['memory_bytes'] >> 30} GiB, "
        f"Linux {described['kernel']}, {described['file_system']}, load {described['load']:.2f}"
    )
    for name, version in versions.items():
        console.print(f"  {name}: {version}", style="dim")
    if described["load"] > BUSY_LOAD * described["cpus"]:
        console.print("others are using this machine: the figures will be theirs too", style="bold red")


def _sayer(console: Console, case: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(f"{case}: {text}", style="dim")

    return say


@contextmanager
def _short_directory(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mm-bench-", dir=place) as name:
        directory = Path(name).resolve()
        try:
            yield directory
        finally:
            mounts.detach_below(directory)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal ends the run; cleaning up is then left alone."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
