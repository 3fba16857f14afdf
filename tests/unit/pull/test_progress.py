"""The one snapshot of a pull and the sentence a pod's owner reads."""

from __future__ import annotations

import pytest

from modelmount.pull import progress
from modelmount.pull.progress import Progress, Snapshot

MODEL = "harbor.example.com/llm/llama3-70b:v1"


def test_the_sentence_names_model_share_bytes_rate_time_left_and_files() -> None:
    snapshot = Snapshot("pulling", 60_100_000_000, 140_000_000_000, 1.2e9, 3, 12)
    assert progress.sentence(MODEL, snapshot) == (
        f"pulling {MODEL}: 42 % (60.1 of 140 GB) at 1.2 GB/s, about 1 min 7 s left, 3 of 12 files ready"
    )


def test_without_a_rate_there_is_no_guess_of_the_time_left() -> None:
    snapshot = Snapshot("pulling", 0, 1000, 0.0, 0, 1)
    assert progress.sentence(MODEL, snapshot) == f"pulling {MODEL}: 0 % (0.0 of 1.0 kB), 0 of 1 files ready"


def test_a_pull_whose_bytes_are_all_here_says_that_it_verifies() -> None:
    snapshot = Snapshot("pulling", 1000, 1000, 5.0, 0, 1)
    assert progress.sentence(MODEL, snapshot) == f"verifying {MODEL}: all 1.0 kB are here, 0 of 1 files ready"


def test_before_the_plan_is_known_the_sentence_says_what_goes_on() -> None:
    assert progress.sentence(MODEL, Progress().snapshot()) == f"resolving {MODEL}"


def test_cached_bytes_count_as_done_but_not_as_rate() -> None:
    counters = Progress()
    counters.expect(100, 2)
    counters.have(60)
    counters.ready()
    snapshot = counters.snapshot()
    assert (snapshot.bytes_done, snapshot.rate, snapshot.files_ready) == (60, 0.0, 1)
    assert snapshot.eta_seconds is None


def test_fetched_bytes_make_a_rate_and_with_it_a_time_left() -> None:
    counters = Progress()
    counters.expect(100, 1)
    counters.fetched(50)
    snapshot = counters.snapshot()
    assert snapshot.rate > 0
    assert snapshot.eta_seconds == pytest.approx(50 / snapshot.rate)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.0 kB"), (1_230_000_000, "1.2 GB"), (140e9, "140 GB"), (2.5e12, "2.5 TB")],
)
def test_bytes_are_shown_in_decimal_units(count: float, text: str) -> None:
    assert progress.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (67, "1 min 7 s"), (7500, "2 h 5 min"), (3599.9, "1 h 0 min")]
)
def test_times_are_shown_for_people(seconds: float, text: str) -> None:
    assert progress.human_seconds(seconds) == text
