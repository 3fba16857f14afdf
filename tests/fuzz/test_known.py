"""Every input that fuzzing begins with or ever kept, and a few hundred new ones: the same in every run."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzzer import FindingError, Fuzzer
from tests.fuzz.targets import TARGETS, Target

STEPS = 100


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_known_and_some_new_inputs_are_read_or_refused(name: str) -> None:
    fuzzer = Fuzzer(name, TARGETS[name], seed=0, grow=False)
    fuzzer.begin()
    for _ in range(STEPS):
        fuzzer.step()
    assert fuzzer.runs == len(fuzzer.pool) + STEPS


def test_an_error_that_no_contract_names_is_a_finding() -> None:
    def run(data: bytes) -> None:
        if b"!" in data:
            raise KeyError(data)

    fuzzer = Fuzzer("nothing", Target(run, (b"a",), (b"!",)), seed=1)
    fuzzer.begin()
    with pytest.raises(FindingError, match="KeyError") as caught:
        for _ in range(1000):
            fuzzer.step()
    assert b"!" in caught.value.data
