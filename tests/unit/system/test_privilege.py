"""What a driver keeps is what its deeds take, neither more nor less."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelmount.system import privilege
from tests.unit.system import rights

pytestmark = pytest.mark.mount

HEADER = Path("/usr/include/linux/capability.h")
ALL = privilege.DRIVER | {"SYS_PTRACE"}
# What each is for: the deed that fails without it.
NEEDED = [
    ("SYS_ADMIN", "show_a_tree", "EPERM"),
    ("DAC_OVERRIDE", "remove_a_tree", "EACCES"),
    ("CHOWN", "confine_a_worker", "EPERM"),
    ("SETGID", "confine_a_worker", "EPERM"),
    ("SETUID", "confine_a_worker", "EPERM"),
    ("SETPCAP", "confine_a_worker", "EPERM"),
    ("KILL", "end_a_worker", "EPERM"),
    ("SYS_PTRACE", "see_mounts_of_others", "EACCES"),
]


def held(*capabilities: str) -> None:
    """Skip where the tests themselves lack them."""
    missing = [name for name in capabilities if not privilege.holds(name)]
    if missing:
        pytest.skip(f"these tests run without {', '.join(missing)}")


@pytest.mark.parametrize(("capability", "deed", "said"), NEEDED)
def test_each_is_needed(tmp_path: Path, capability: str, deed: str, said: str) -> None:
    held(*ALL)
    assert rights.outcome(deed, tmp_path, ALL - {capability}) == said


@pytest.mark.parametrize("deed", sorted(rights.DEEDS))
def test_all_together_suffice(tmp_path: Path, deed: str) -> None:
    held(*ALL)
    assert rights.outcome(deed, tmp_path, ALL) == "done"


def test_none_is_kept_without_a_reason() -> None:
    assert {capability for capability, _, _ in NEEDED} == ALL == privilege.NUMBERS.keys()


@pytest.mark.skipif(not HEADER.exists(), reason="needs linux-libc-dev")
def test_the_numbers_are_the_kernels() -> None:
    theirs = dict(re.findall(r"^#define CAP_(\w+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE))
    assert {name: theirs[name] for name in privilege.NUMBERS} == {n: str(v) for n, v in privilege.NUMBERS.items()}


def test_who_has_none_can_call_it_too() -> None:
    code = "import os; from modelmount.system import privilege; os.setresuid(65534, 65534, 65534); privilege.keep(()); "
    code += "print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CapPrm:\t0000000000000000" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout
