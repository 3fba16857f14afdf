"""docs/formats.md names every sample, and no sample that isn't there."""

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
    """What the last column of the tables with samples has in code marks."""
    cells = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return [name for cell in cells if len(cell) == 3 for name in re.findall(r"`([^`]+)`", cell[2])]


def test_every_sample_is_documented_and_every_documented_one_runs() -> None:
    samples = sorted(sample.id for suite in SUITES for sample in suite.samples)
    assert sorted(named()) == samples
