"""The first scenario, which begins what test_zz_patience ends."""

from __future__ import annotations

import pytest

from tests.cluster.api import wait
from tests.cluster.patience import Patience
from tests.cluster.world import WAIT_SECONDS, World

pytestmark = pytest.mark.timeout(900)


def test_a_pod_is_told_how_far_a_slow_pull_is(world: World, patience: Patience) -> None:
    told = wait("the pod is told", lambda: [t for t in world.warnings(patience.pod()) if "pulling" in t], WAIT_SECONDS)
    begin = 'FailedMount: MountVolume.SetUp failed for volume "model" : rpc error: code = Aborted desc = pulling '
    assert all(text.startswith(f"{begin}{patience.model.reference}: ") and " percent (" in text for text in told)
