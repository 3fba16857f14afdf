"""Keeps the requirement lists honest: the same direct dependencies everywhere, every one pinned, one version for one
package.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"


def direct(name: str) -> list[str]:
    """The requirements of an .in file, included files too, without comments."""
    found = []
    for line in (REQUIREMENTS / name).read_text().splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("-r "):
            found += direct(text[3:].strip())
        elif text:
            found.append(text)
    return found


def pins(name: str) -> dict[str, str]:
    """Package to version in a compiled list."""
    lines = (REQUIREMENTS / name).read_text().splitlines()
    found = (re.match(r"([a-z0-9-]+)==([^ ;\\]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def package(requirement: str) -> str:
    """The normalised name that a requirement begins with."""
    return re.sub(r"[-_.]+", "-", re.split(r"[ <>=!~;\[]", requirement)[0]).lower()


def problems() -> list[str]:
    """What is wrong, one sentence each."""
    found = []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, declared in (
        ("runtime.in", project["dependencies"]),
        ("verify.in", project["optional-dependencies"]["verify"]),
    ):
        listed = direct(name)
        found += [f"requirements/{name} lacks {r!r} of pyproject.toml" for r in sorted(declared) if r not in listed]
        found += [f"pyproject.toml lacks {r!r} of requirements/{name}" for r in sorted(listed) if r not in declared]
    for source in sorted(REQUIREMENTS.glob("*.in")):
        compiled = source.with_suffix(".txt").name
        if not (REQUIREMENTS / compiled).exists():
            found.append(f"requirements/{compiled} is missing; run scripts/requirements")
            continue
        pinned = pins(compiled)
        found += [f"requirements/{compiled} does not pin {r}" for r in direct(source.name) if package(r) not in pinned]
        text = (REQUIREMENTS / compiled).read_text()
        if "://" in text or re.search(r"^-", text, re.MULTILINE):
            found.append(f"requirements/{compiled} has an address or an option in it")
        unhashed = set(pinned) - {
            m[1] for m in re.finditer(r"^([a-z0-9-]+)==[^\n]*\\\n {4}--hash=sha256:", text, re.MULTILINE)
        }
        found += [f"requirements/{compiled} has no hash for {name}" for name in sorted(unhashed)]
    dev = pins("dev.txt")
    for shipped in ("runtime.txt", "verify.txt"):
        for name, version in pins(shipped).items():
            if dev.get(name) != version:
                found.append(f"{name} is {version} in {shipped} and {dev.get(name, 'absent')} in dev.txt")
    return found


if __name__ == "__main__":
    wrong = problems()
    print("\n".join(wrong))
    sys.exit(bool(wrong))
