"""What has gone on since the first scenario: a registry so slow that a pull outlasts ten calls of the kubelet."""

from __future__ import annotations

import pytest

from tests.cluster.api import wait
from tests.cluster.conftest import Figures
from tests.cluster.patience import CALLS, PAUSES, PLACE, POD, Patience
from tests.cluster.test_trouble import CONFIG_BYTES
from tests.cluster.test_volumes import sees
from tests.cluster.world import WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(1800)

CALLS_SECONDS = sum(PAUSES) + 4 * WAIT_SECONDS
"""Patience with ten calls and the pauses between them."""


def test_a_registry_so_slow_that_ten_calls_come_and_go(world: World, patience: Patience, figures: Figures) -> None:
    model = patience.model
    slowly = wait("ten calls came and went", lambda: patience.slowly, CALLS_SECONDS)
    assert slowly < model.size / 2
    wait("the pull has ended", lambda: patience.received() >= model.size, WAIT_SECONDS)
    sees(world, POD, model, PLACE)
    assert patience.calls() == {"ABORTED": CALLS, "OK": 1}
    assert patience.received() <= model.size + CONFIG_BYTES
    assert patience.pauses() == PAUSES
    figures.update(calls_outlasted=CALLS, kubelet_pauses_s=PAUSES, pauses_s_sum=sum(PAUSES), bytes_slowly=slowly)
    world.gone(POD, namespace=PLACE)
    wait("no volume is left", lambda: not patience.left(), WAIT_SECONDS)
    patience.end()
