"""A pull as it is watched, drawn from snapshots."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from modelmount.cli import display
from modelmount.cli.output import Output
from modelmount.pull.progress import File, Phase, Snapshot, State

REFERENCE = "harbor.example.com/llm/llama3:v1"
GIB = 1 << 30


def shard(n: int, state: State = "fetching", done: int = GIB // 2, size: int = GIB) -> File:
    return File(f"model-{n:05}-of-03000.safetensors", f"sha256:{n}", state, done, size)


class Screen:
    """A terminal; `draw` returns the lines of one drawing without colours."""

    def __init__(self, width: int = 120) -> None:
        self._out = io.StringIO()
        console = Console(file=self._out, width=width, height=30, force_terminal=True, color_system=None)
        self._terminal = display.Terminal(REFERENCE, Live(console=console, auto_refresh=False))
        self._terminal._live.start()

    def draw(self, *files: File, phase: Phase = "pulling", rate: float = 1e9, trouble: str = "") -> list[str]:
        done, total = sum(file.bytes_done for file in files), sum(file.bytes_total for file in files)
        self._out.seek(0)
        self._out.truncate()
        self._terminal.show(Snapshot(phase, done, total, rate, files, trouble))
        drawn = self._out.getvalue().rpartition("\x1b[2K")[2]
        return [line.rstrip() for line in drawn.splitlines()]


def test_before_the_plan_is_known_the_reference_is_shown() -> None:
    assert Screen().draw(phase="resolving") == [f"resolving {REFERENCE}"]


def test_a_line_for_the_model_and_one_for_each_large_file_in_work() -> None:
    screen = Screen()
    files = (shard(1, "ready", GIB), shard(2), shard(3, "waiting", 0), File("config.json", "c", "fetching", 1, 9))
    screen.draw(*files)
    model, only = screen.draw(*files)
    assert model.startswith("pulling ")
    for text in ("49 %", "1.6 of 3.2 GB", "1.0 GB/s", "2 s left", "1 of 4 files"):
        assert text in model
    assert only.startswith("  model-00002-of-03000.safetensors ")
    assert "0.5 of 1.1 GB" in only


def test_why_nothing_comes_is_said_below() -> None:
    _, last = Screen().draw(shard(1), shard(2), rate=0.0, trouble="it answered\x1b[2J 503")
    assert last == "  it answered\\x1b[2J 503"


def test_thousands_of_files_take_a_few_lines() -> None:
    screen = Screen()
    files = [shard(n) for n in range(3000)]
    screen.draw(*files)
    lines = screen.draw(*files)
    assert len(lines) == 1 + display.SHOWN_FILES + 1
    assert lines[-1] == f"  and {3000 - display.SHOWN_FILES} more"


def test_a_file_that_is_over_by_the_next_look_gets_no_line() -> None:
    screen = Screen()
    assert len(screen.draw(shard(1), shard(2, "waiting", 0))) == 1
    assert len(screen.draw(shard(1, "ready", GIB), shard(2))) == 1
    assert len(screen.draw(shard(1, "ready", GIB), shard(2))) == 2


def test_what_is_done_with_a_file_whose_bytes_are_here_is_said() -> None:
    screen = Screen()
    files = (shard(1, "unpacking", GIB), shard(2, "fetching", GIB), shard(3, "waiting", 0))
    screen.draw(*files)
    _, unpacking, verifying = screen.draw(*files)
    assert "unpacking" in unpacking
    assert "verifying" in verifying


def test_nothing_is_wider_than_the_terminal() -> None:
    for width in (40, 80, 100, 200):
        screen = Screen(width)
        files = (replace(shard(1), name="deep/" * 40 + "model-00001.safetensors"), shard(2, "waiting", 0))
        screen.draw(*files)
        lines = screen.draw(*files)
        assert len(lines) == 2
        assert max(len(line) for line in lines) <= width
    assert "model-00001.safetensors" in lines[1]


def test_a_name_cannot_control_the_terminal() -> None:
    screen = Screen()
    files = (replace(shard(1), name="a\x1b[2J[red]b"), shard(2, "waiting", 0))
    screen.draw(*files)
    _, line = screen.draw(*files)
    assert "a\\x1b[2J[red]b" in line


def test_an_object_names_the_files_that_changed() -> None:
    changes = display.Changes()
    first = changes.since_last(Snapshot("pulling", 5, 30, 2.0, (shard(1, "waiting", 0), shard(2, "found", GIB))))
    assert first == {
        "phase": "pulling",
        "bytes_done": 5,
        "bytes_total": 30,
        "bytes_per_second": 2,
        "eta_seconds": 12.5,
        "files_ready": 1,
        "files_total": 2,
        "trouble": None,
        "files": [
            {
                "name": "model-00001-of-03000.safetensors",
                "digest": "sha256:1",
                "state": "waiting",
                "bytes_done": 0,
                "bytes_total": GIB,
            },
            {
                "name": "model-00002-of-03000.safetensors",
                "digest": "sha256:2",
                "state": "found",
                "bytes_done": GIB,
                "bytes_total": GIB,
            },
        ],
    }
    files = (shard(1, "fetching", 5), shard(2, "found", GIB))
    second = changes.since_last(Snapshot("pulling", 10, 30, 0.0, files, "it answered 503"))
    assert [(file["digest"], file["state"]) for file in second["files"]] == [("sha256:1", "fetching")]
    assert second["eta_seconds"] is None
    assert second["trouble"] == "it answered 503"


def test_quiet_is_quiet_with_json_too() -> None:
    output = Output()
    output.quiet = output.json = True
    with display.display(REFERENCE, output) as shown:
        assert not isinstance(shown, display.Occasional)
        shown.show(Snapshot())
