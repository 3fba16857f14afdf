"""docs/formats.md names every sample, and neither a sample nor a refusal that isn't there. That the tests are there
which it names besides, tests/unit/test_docs.py knows.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import test_container_images, test_formats, test_packagers
from .format import FormatConformance

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
SUITES: tuple[type[FormatConformance], ...] = (
    test_container_images.TestContainerImage,
    test_packagers.TestModelKit,
    test_packagers.TestOllama,
    test_packagers.TestDockerModel,
    test_formats.TestModelPack,
    test_formats.TestFiles,
)


def named() -> list[str]:
    """What the last column of the tables has in code marks, but for tests by name."""
    cells = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    marked = [name for cell in cells if len(cell) == 3 for name in re.findall(r"`([^`]+)`", cell[2])]
    return [name for name in marked if "::" not in name]


def test_every_sample_is_documented_and_every_documented_one_runs() -> None:
    samples = {sample.id for suite in SUITES for sample in suite.samples}
    refused = {refusal.id for suite in SUITES for refusal in suite.refused}
    assert len(named()) == len(set(named()))
    assert samples <= set(named()) <= samples | refused


def test_every_row_names_what_proves_it() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.rstrip(" |").endswith(("sample", "proved by"))]
    assert [row for row in rows if not re.search(r"`[^`]+` \|$", row)] == []
