"""vLLM serves shards from a volume over HTTP, by path and by a repository's name, without a network."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.engines.conftest import ENGINES, Figures
from tests.engines.engine import Vllm
from tests.engines.test_transformers import PROGRAM, REPOSITORY
from tests.fakes import push

PYTHON = Path(ENGINES or "") / "vllm/bin/python"

pytestmark = [
    pytest.mark.mount,
    pytest.mark.registry,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON.exists(), reason="asked for by scripts/engines --vllm"),
]

Serve = Callable[..., AbstractContextManager[Vllm]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Starts vLLM on a model, with a home of its own where it may write."""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "VLLM_CACHE_ROOT": str(tmp_path / "vllm")}

    def start(model: str, **environment: str) -> Vllm:
        return Vllm(PYTHON, model, tmp_path / "vllm.log", {**os.environ, **home, **environment})

    return start


def test_it_says_from_a_volume_what_it_says_from_plain_files(
    node: Node, serve: Serve, tmp_path: Path, figures: Figures
) -> None:
    files = tmp_path / "model"
    subprocess.run([str(PYTHON), str(PROGRAM), "make", str(files)], check=True, capture_output=True)
    with serve(str(files)) as engine:
        expected = engine.complete()
    assert expected
    pushed = node.pusher.artifact("llm/tiny", "v1", push.modelpack(files))
    seconds: dict[str, list[float]] = {}
    for name, attributes in (("path", {}), ("name", {"layout": "hf-cache", "hfRepo": REPOSITORY})):
        begun = time.monotonic()
        pod = node.pod(name, pushed.reference, **attributes)
        node.kubelet.wait_running(pod)
        mount = str(node.mount(pod))
        with serve(REPOSITORY, HF_HUB_CACHE=mount) if attributes else serve(mount) as engine:
            assert engine.complete() == expected
        seconds[f"by_{name}_s"] = [time.monotonic() - begun]
        node.kubelet.delete(pod)
        node.kubelet.wait_gone(pod)
    figures.note("vllm", seconds)
    assert node.kubelet.leftovers() == []
