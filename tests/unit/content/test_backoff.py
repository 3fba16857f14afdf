"""Back-off after wrong bytes: longer each time, per source, across restarts; and never longer than an hour."""

from __future__ import annotations

import logging

import pytest

from modelmount.content import backoff as backoffs
from modelmount.content.backoff import Backoff
from modelmount.content.store import Store
from modelmount.errors import IntegrityError
from modelmount.oci.digest import Digest
from modelmount.system import atomic

from .downloads import OTHER_SCOPE, SCOPE

DIGEST = Digest.of(b"weights")


class Clock:
    """Wall-clock time that is what the test says."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoffs, "time", clock)
    return clock


def waits(backoff: Backoff, clock: Clock) -> float:
    """Seconds until the bar is gone."""
    began = clock.now
    while True:
        try:
            backoff.check()
        except IntegrityError:
            clock.now += 1
        else:
            passed = clock.now - began
            clock.now = began
            return passed


def test_each_time_twice_as_long_up_to_an_hour(store: Store, clock: Clock) -> None:
    found = []
    for _ in range(9):
        Backoff(store, DIGEST, SCOPE, "registry.example").punish("wrong bytes")
        found.append(waits(Backoff(store, DIGEST, SCOPE, "registry.example"), clock))
    assert found == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_the_sentence_names_reason_count_and_next_try(store: Store, clock: Clock) -> None:
    bar = Backoff(store, DIGEST, SCOPE, "registry.example")
    bar.punish("registry.example served wrong bytes")
    bar.punish("registry.example served wrong bytes")
    clock.now += 20
    with pytest.raises(IntegrityError, match=r"served wrong bytes; not asked again for 100 s \(tried 2 times\)"):
        bar.check()


def test_a_bar_stands_for_its_blob_scope_and_source_alone(store: Store, clock: Clock) -> None:
    Backoff(store, DIGEST, SCOPE, "a").punish("wrong bytes")
    Backoff(store, Digest.of(b"other"), SCOPE, "a").check()
    Backoff(store, DIGEST, OTHER_SCOPE, "a").check()
    Backoff(store, DIGEST, SCOPE, "b").check()


def test_the_right_bytes_forgive_everything(store: Store, clock: Clock) -> None:
    bar = Backoff(store, DIGEST, SCOPE, "a")
    bar.forgive()
    bar.punish("wrong bytes")
    bar.punish("wrong bytes")
    bar.forgive()
    bar.check()
    bar.punish("wrong bytes")
    assert waits(bar, clock) == 60


def test_a_clock_that_was_wrong_bars_nothing_for_ever(store: Store, clock: Clock) -> None:
    bar = Backoff(store, DIGEST, SCOPE, "a")
    clock.now += 10 * 365 * 86400
    bar.punish("wrong bytes")
    clock.now -= 10 * 365 * 86400
    bar.check()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"next_try": "soon"}'])
def test_an_unreadable_bar_bars_nothing(store: Store, clock: Clock, content: bytes) -> None:
    bar = Backoff(store, DIGEST, SCOPE, "a")
    (store.root / "backoff" / f"{DIGEST.hex}-{SCOPE}-a.json").write_bytes(content)
    bar.check()
    bar.punish("wrong bytes")
    assert waits(bar, clock) == 60


@pytest.mark.parametrize("source", ["h" * 253, "registry.example:5000", "мир.example", "h" * 60])
def test_every_source_has_a_file_name(store: Store, clock: Clock, source: str) -> None:
    digest = Digest("sha512", "ab" * 64)
    bar = Backoff(store, digest, SCOPE, source)
    bar.punish("wrong bytes")
    with pytest.raises(IntegrityError):
        Backoff(store, digest, SCOPE, source).check()
    Backoff(store, digest, SCOPE, source[:-1] + "x").check()


def test_a_full_disk_means_no_bar_and_no_error(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    bar = Backoff(store, DIGEST, SCOPE, "a")
    with caplog.at_level(logging.WARNING), atomic.armed("atomic.write_file.before_fsync=error(ENOSPC)"):
        bar.punish("wrong bytes")
    assert "cannot keep the back-off" in caplog.text
    bar.check()
