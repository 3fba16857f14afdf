"""The process that judges: it answers or is gone, in time, whatever it does; and it has no rights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelmount.signatures import process
from modelmount.signatures.messages import Key, Piece, Task
from modelmount.signatures.process import ProcessError
from tests.fakes import signing
from tests.unit.signatures.test_checks import DIGEST, key_of

ROOT = Path(__file__).resolve().parents[3]


def task(manifest: bytes = b"a manifest", *pieces: Piece, key: signing.Key | None = None) -> Task:
    keys: list[Key] = [key_of(key.pem)] if key is not None else []
    return Task(DIGEST, manifest, None, keys, [], [], list(pieces) or [Piece("report", "sha256:piece", b"{}")])


def test_it_judges_as_here() -> None:
    key = signing.Key()
    large = signing.statement(DIGEST, signing.CYCLONEDX, {"components": ["x" * 1000] * 1000})  # many messages
    pieces = [Piece("bundle", "1", key.bundle(large)), Piece("simple", "2", *key.simple(DIGEST, "a.example/b"))]
    found = process.judge(task(b"", *pieces, key=key))
    assert [[signer.name for signer in s.signers] for s in found] == [["ours.pub"], ["ours.pub"]]


@pytest.mark.parametrize(
    ("trick", "what"),
    [
        ("killed", r"gave no answer: it was ended by SIGKILL"),
        ("garbage", "said what it never should"),
        ("endless", "answered with more than"),
        ("other pieces", "said what it never should"),
        ("other keys", "said what it never should"),
        ("failing", "gave no answer: it ended with status 3"),
    ],
)
def test_one_that_does_what_it_likes(trick: str, what: str) -> None:
    with pytest.raises(ProcessError, match=what):
        process.judge(task(trick.encode()), module="tests.unit.signatures.rogue", directory=ROOT)


def test_what_imports_the_libraries_does_so_once_for_many_tasks() -> None:
    """Each is judged by a process of its own all the same, and what forks them is told none."""
    process.prepare(identities=False)
    helper = process._helper(process._KEYS, None)
    before = helper.pid
    assert before is not None
    key, other = signing.Key(), signing.Key()
    for number in range(3):
        bundle = Piece("bundle", str(number), (key if number else other).bundle(signing.statement(DIGEST)))
        (found,) = process.judge(task(b"", bundle, key=key))
        assert [signer.name for signer in found.signers] == (["ours.pub"] if number else [])
    assert helper.pid == before


def test_one_that_is_silent_is_killed() -> None:
    """Or isn't even started in so little time, on a machine that has a lot to do."""
    with pytest.raises(ProcessError, match=r"didn't answer within 3 s, and was killed|can't be started"):
        process.judge(task(b"silent"), seconds=3, module="tests.unit.signatures.rogue", directory=ROOT)


def test_one_that_can_not_be_imported() -> None:
    with pytest.raises(ProcessError, match="can't be started"):
        process.judge(task(), module="tests.unit.signatures.absent", directory=ROOT)


def test_an_installation_without_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProcessError, match=r"lacks cryptography; install modelmount\[verify\]"):
        process.judge(task())


def test_this_process_imports_none_of_it() -> None:
    """The driver stays as small as it was: asked in a fresh interpreter, since the tests here do import it."""
    import subprocess

    code = (
        "import sys; import modelmount.wiring, modelmount.cli, modelmount.daemon; "
        "print(sorted(set(sys.modules) & {'cryptography', 'sigstore', 'pydantic', 'requests'}))"
    )
    path = f"{ROOT}/driver:{ROOT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout == "[]\n", done.stderr
