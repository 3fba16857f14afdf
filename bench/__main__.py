"""The command line: `python -m bench`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from bench import machine, memory, report
from bench.cases import archives, capped, files, footprint, latency, limits, read, resume, scale, warm, whole
from bench.processes import FailedError
from bench.report import Figure, Outcome
from bench.setting import Setting
from tests.fakes import mounts

CASES: dict[str, Callable[[Setting], Outcome]] = {
    "a": whole.one,
    "a-registry": whole.one_from_registry,
    "b": whole.several,
    "c": files.run,
    "d-gzip": archives.gzip,
    "d-zstd": archives.zstd,
    "e-a": whole.one_over_tls,
    "e-b": whole.several_over_tls,
    "f": capped.run,
    "g": latency.run,
    "h": resume.run,
    "memory": footprint.run,
    "limits": limits.run,
    "warm": warm.run,
    "read": read.run,
    "scale": scale.run,
}
RESULTS = Path(__file__).parent / "results"
PLACE = Path("/var/tmp")
"""A disk on most machines, where /tmp may be memory. The name is short: there are sockets below it."""
ROUNDS, QUICK_ROUNDS = 5, 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BUSY_LOAD = 0.25
"""Load per processor, before anything began, above which figures say more about others than about us."""
FREE_BYTES = {False: 40 << 30, True: 4 << 30}
"""What the largest case needs: 8 GiB at the server and in a store, and room for what is written late."""


def main() -> int:
    """Run the cases, print what they found, write it down. 2 when this machine or user can't."""
    options = _options()
    if os.geteuid() != 0:
        print("bench: mounts file systems, so run it as root: sudo make bench", file=sys.stderr)
        return 2
    needed = FREE_BYTES[options.quick]
    if shutil.disk_usage(options.directory).free < needed:
        where = f"{options.directory} needs {needed >> 30} GiB free"
        print(f"bench: {where}; name another with --directory, or --quick", file=sys.stderr)
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
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--only", choices=CASES, action="append", help="only this case; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, all but scale: to see that it works and to compare changes"
    )
    parser.add_argument("--directory", type=Path, default=PLACE, help=f"on the disk to measure (default: {PLACE})")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _measure(options: argparse.Namespace, console: Console) -> None:
    """Every case is written down as soon as it is measured; --only leaves the others in the file as they are."""
    described = machine.describe(options.directory.resolve())
    _show_machine(console, described)
    results = RESULTS / ("quick.json" if options.quick else "latest.json")
    if not options.only:
        results.unlink(missing_ok=True)
    figures: list[Figure] = []
    # A node that is hardly filled says nothing, and filling it takes a third of the time.
    for name in options.only or [each for each in CASES if not (options.quick and each == "scale")]:
        with memory.kept(), _short_directory(options.directory) as directory:
            outcome = CASES[name](Setting(directory, options.rounds, options.quick, _sayer(console, name)))
        report.write(results, described, [outcome])
        report.show(console, outcome)
        figures += outcome.figures
    report.show_figures(console, figures)
    console.print(f"\nwritten to {results}")


def _show_machine(console: Console, described: dict[str, Any]) -> None:
    virtual = "virtual machine" if described["virtual_machine"] else "no virtual machine seen"
    sha = "SHA instructions" if described["sha_instructions"] else "no SHA instructions"
    console.print(
        f"{described['cpus']} CPUs {described['processor']} ({sha}, {virtual}), {described['memory_bytes'] >> 30} GiB, "
        f"Linux {described['kernel']}, {described['file_system']}, load {described['load']:.2f}"
    )
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
