"""The one snapshot of a pull and the sentence a pod's owner reads."""

from __future__ import annotations

import pytest

from modelmount.pull import progress
from modelmount.pull.progress import Counters, Expected, File, Phase, Progress, Snapshot, State

MODEL = "harbor.example.com/llm/llama3-70b:v1"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def snapshot(phase: Phase, done: int, total: int, rate: float, ready: int, files: int) -> Snapshot:
    states: list[State] = ["ready" if n < ready else "waiting" for n in range(files)]
    return Snapshot(phase, done, total, rate, tuple(File("f", "sha256:0", state, 0, 0) for state in states))


def test_the_sentence_names_model_share_bytes_rate_time_left_and_files() -> None:
    assert progress.sentence(MODEL, snapshot("pulling", 60_100_000_000, 140_000_000_000, 1.2e9, 3, 12)) == (
        f"pulling {MODEL}: 42 % (60.1 of 140 GB) at 1.2 GB/s, about 1 min 7 s left, 3 of 12 files ready"
    )


def test_the_sentence_says_why_nothing_comes() -> None:
    counters, (weights,) = expecting(WEIGHTS)
    weights.fetched(100)
    weights.failed("registry.example.com answered 503")
    text = progress.sentence(MODEL, counters.snapshot())
    assert text.endswith(", 0 of 1 files ready; the last request failed: registry.example.com answered 503")


def test_what_another_pull_brought_ends_the_wait_for_it() -> None:
    counters, (archive, _) = expecting(ARCHIVE, WEIGHTS)
    archive.elsewhere()
    assert counters.snapshot().trouble == progress.ELSEWHERE
    archive.found()
    assert counters.snapshot().trouble == ""


@pytest.mark.parametrize("count", [1, 900])
def test_bytes_that_come_end_the_trouble(count: int) -> None:
    counters, (weights,) = expecting(WEIGHTS)
    weights.fetched(100)
    weights.failed("registry.example.com answered 503")
    weights.fetched(count)
    assert counters.snapshot().trouble == ""


def test_without_a_rate_there_is_no_guess_of_the_time_left() -> None:
    text = progress.sentence(MODEL, snapshot("pulling", 0, 1000, 0.0, 0, 1))
    assert text == f"pulling {MODEL}: 0 % (0.0 of 1.0 kB), 0 of 1 files ready"


def test_a_pull_whose_bytes_are_all_here_says_that_it_verifies() -> None:
    text = progress.sentence(MODEL, snapshot("verifying", 1000, 1000, 5.0, 0, 1))
    assert text == f"verifying {MODEL}: all 1.0 kB are here, 0 of 1 files ready"


def test_before_the_plan_is_known_the_sentence_says_what_goes_on() -> None:
    assert progress.sentence(MODEL, Progress().snapshot()) == f"resolving {MODEL}"


def expecting(*files: Expected, clock: Clock | None = None) -> tuple[Progress, list[Counters]]:
    made = Progress(clock or Clock())
    made.expect(files)
    return made, [made.file(file.key) for file in files]


ARCHIVE = Expected(("sha256:a", "unpacked"), "tokenizer", 100, is_archive=True)
WEIGHTS = Expected(("sha256:b", "raw"), "model.safetensors", 1000)


def test_a_file_goes_from_waiting_to_ready() -> None:
    counters, (weights,) = expecting(WEIGHTS)
    seen = [counters.snapshot().files[0]]
    weights.have(200)
    weights.fetched(300)
    seen.append(counters.snapshot().files[0])
    weights.fetched(500)
    seen.append(counters.snapshot().files[0])
    weights.ready()
    seen.append(counters.snapshot().files[0])
    assert [(file.state, file.bytes_done) for file in seen] == [
        ("waiting", 0),
        ("fetching", 500),
        ("fetching", 1000),
        ("ready", 1000),
    ]
    assert {(file.name, file.digest, file.bytes_total) for file in seen} == {("model.safetensors", "sha256:b", 1000)}


def test_an_archive_whose_bytes_are_here_unpacks() -> None:
    counters, (archive, weights) = expecting(ARCHIVE, WEIGHTS)
    archive.fetched(100)
    assert [file.state for file in counters.snapshot().files] == ["unpacking", "waiting"]
    assert counters.snapshot().phase == "pulling"
    weights.found()
    assert counters.snapshot().phase == "unpacking"
    archive.ready()
    counters.enter("linking")
    last = counters.snapshot()
    assert (last.phase, last.files_ready, last.bytes_done, last.bytes_total) == ("linking", 2, 1100, 1100)


def test_with_all_bytes_here_the_rest_is_verifying() -> None:
    counters, (weights,) = expecting(WEIGHTS)
    weights.fetched(1000)
    assert counters.snapshot().phase == "verifying"


def test_what_was_found_counts_as_done_but_not_as_rate() -> None:
    clock = Clock()
    counters, (archive, _) = expecting(ARCHIVE, WEIGHTS, clock=clock)
    archive.found()
    clock.now += 2
    last = counters.snapshot()
    assert (last.bytes_done, last.rate, last.files_ready, last.eta_seconds) == (100, 0.0, 1, None)
    assert counters.fetched_bytes == 0


def test_bytes_that_were_of_no_use_are_taken_back() -> None:
    counters, (weights,) = expecting(WEIGHTS)
    weights.fetched(1000)
    weights.have(-1000)
    assert counters.snapshot().bytes_done == 0
    assert counters.fetched_bytes == 1000


def test_fetched_bytes_make_a_rate_and_with_it_a_time_left() -> None:
    clock = Clock()
    counters, (weights,) = expecting(WEIGHTS, clock=clock)
    weights.fetched(100)
    assert counters.snapshot().rate == 0.0  # too early for anything but nonsense
    clock.now += 2
    weights.fetched(100)
    last = counters.snapshot()
    assert last.rate == pytest.approx(100)
    assert last.eta_seconds == pytest.approx(8)


def test_the_rate_is_of_late() -> None:
    clock = Clock()
    counters, (weights,) = expecting(WEIGHTS, clock=clock)
    for count in [90] * 5 + [10] * 20:
        clock.now += 1
        weights.fetched(count)
    assert counters.snapshot().rate == pytest.approx(10)


def test_in_a_silence_the_rate_falls_and_then_there_is_none() -> None:
    clock = Clock()
    counters, (weights,) = expecting(WEIGHTS, clock=clock)
    for _ in range(20):
        clock.now += 0.5
        weights.fetched(10)
    clock.now += 0.1
    weights.fetched(10)
    seen = []
    for _ in range(4):
        seen.append(round(counters.snapshot().rate))
        clock.now += 4
    assert seen == [21, 13, 5, 0]
    assert counters.snapshot().eta_seconds is None


def test_a_silence_before_the_last_seconds_says_nothing_about_them() -> None:
    clock = Clock()
    counters, (weights,) = expecting(WEIGHTS, clock=clock)
    for pause in [1, 0.1, 600, *[1] * 9]:
        clock.now += pause
        weights.fetched(50)
    assert counters.snapshot().rate == pytest.approx(50)


def test_what_vanished_is_expected_anew() -> None:
    counters, (weights,) = expecting(WEIGHTS)
    weights.fetched(1000)
    weights.ready()
    counters.expect([WEIGHTS])
    again = counters.snapshot()
    assert (again.phase, again.bytes_done, again.files[0].state) == ("pulling", 0, "waiting")
    assert counters.fetched_bytes == 1000


def test_files_that_did_not_change_are_the_same_in_the_next_snapshot() -> None:
    counters, (archive, _) = expecting(ARCHIVE, WEIGHTS)
    before = counters.snapshot().files
    archive.fetched(1)
    after = counters.snapshot().files
    assert after[0] is not before[0]
    assert after[1] is before[1]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.0 kB"), (1_230_000_000, "1.2 GB"), (140e9, "140 GB"), (2.5e12, "2.5 TB")],
)
def test_bytes_are_shown_in_decimal_units(count: float, text: str) -> None:
    assert progress.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (67, "1 min 7 s"),
        (7500, "2 h 5 min"),
        (3599.9, "1 h 0 min"),
        (172799, "47 h 59 min"),
        (172800, "2 d 0 h"),
        (439200, "5 d 2 h"),
    ],
)
def test_times_are_shown_for_people(seconds: float, text: str) -> None:
    assert progress.human_seconds(seconds) == text
