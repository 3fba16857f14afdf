"""The command line's grammar: help that teaches, mistakes that are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import modelmount
from modelmount.cli import COMMANDS, cli

LEAVES = [(name,) for name in COMMANDS if name != "config"] + [("config", "show"), ("config", "check")]


def run(*arguments: str | None) -> Result:
    return CliRunner().invoke(cli, [a for a in arguments if a is not None], prog_name="modelmount")


def test_the_version_is_said() -> None:
    assert run("--version").output == f"modelmount, version {modelmount.__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_has_every_command_in_order_examples_and_exit_codes(flag: str) -> None:
    said = run(flag).output
    assert [
        name for name in (line.split()[0] for line in said.splitlines() if line.startswith("  ")) if name in COMMANDS
    ][: len(COMMANDS)] == list(COMMANDS)
    assert "modelmount pull harbor.example.com" in said
    assert "130  interrupted" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_called_as_it_is_listed(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


def test_a_command_loads_no_other(tmp_path: Path) -> None:
    """Of what they do, and of what only they need, such as a way to the registries."""
    probe = "import sys; from modelmount.cli import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    command = [sys.executable, "-c", probe, "ls", "--root", str(tmp_path / "none")]
    loaded = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert "modelmount.cli.ls" in loaded
    others = {f"modelmount.cli.{place.partition('.')[0]}" for place in COMMANDS.values()} - {"modelmount.cli.ls"}
    assert not (others | {"modelmount.wiring"}) & set(loaded)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_example(name: str) -> None:
    said = run(name, "--help").output
    assert "Examples:\n  " in said
    assert f"modelmount {name}" in said
    assert max(len(line) for line in said.splitlines()) <= 100


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_but_serve_can_speak_json_and_names_its_settings(path: tuple[str, ...]) -> None:
    said = run(*path, "-h").output
    assert "--config FILE" in said
    assert "--root DIR" in said
    assert ("--json" in said) is (path != ("serve",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pul",), "No such command 'pul'; did you mean pull?"),
        (("unmount", "/mnt/x"), "No such command 'unmount'; did you mean umount?"),
        (("login",), "No such command 'login'"),
        (("pull",), "Missing argument 'REFERENCE'"),
        (("pull", "h.example/a:b", "--plain-htp"), "--plain-htp"),
        (("pull", "h.example/a:b", "--password-stdin"), "--password-stdin needs --username"),
        (("pull", "h.example/a:b", "--username", "me"), "give it with --password-stdin"),
        (("pull", "h.example/a:b", "--ca-file", "/nowhere.pem"), "'/nowhere.pem' does not exist"),
        (("mount", "h.example/a:b"), "Missing argument 'DIRECTORY'"),
        (("mount", "h.example/a:b", "/x", "--pull", "often"), "'often' is not one of"),
        (("serve", "--mode", "nodes"), "'nodes' is not one of"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_home_that_nobody_can_look_into_is_named_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", f"/{'x' * 300}")
    result = run("inspect", "h.example/a:b", "--root", "/nowhere/store")
    assert result.exit_code == 2
    assert "--docker-config" in result.stderr


def test_a_ca_without_tls_is_refused() -> None:
    result = run("pull", "h.example/a:b", "--plain-http", "--ca-file", __file__)
    assert result.exit_code == 2
    assert "exclude each other" in result.output


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("llama3", "names no registry host"),
        ("https://h.example/a:b", "begins with https://"),
        ("h.example/a@sha256:12", "a sha256 digest has 64"),
        ("h.example/A:b", "bad repository path"),
    ],
)
@pytest.mark.parametrize("command", [("pull",), ("inspect",), ("mount", "/mnt/x")], ids=lambda c: c[0])
def test_a_bad_reference_is_a_usage_error_in_one_line(command: tuple[str, ...], reference: str, said: str) -> None:
    result = run(command[0], reference, *command[1:], "--root", "/nowhere/store")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("modelmount: ")
    assert len(result.stderr.splitlines()) == 1
