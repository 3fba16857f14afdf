"""The command line's grammar: help that teaches, mistakes that are named."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result

import modelmount
from modelmount.cli import COMMANDS, cli

LEAVES = [(c.name,) for c in COMMANDS if not isinstance(c, click.Group)] + [("config", "show"), ("config", "check")]


def run(*arguments: str | None) -> Result:
    return CliRunner().invoke(cli, [a for a in arguments if a is not None], prog_name="modelmount")


def test_the_version_is_said() -> None:
    assert run("--version").output == f"modelmount, version {modelmount.__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_has_every_command_in_order_examples_and_exit_codes(flag: str) -> None:
    said = run(flag).output
    assert [
        name
        for name in (line.split()[0] for line in said.splitlines() if line.startswith("  "))
        if name in cli.commands
    ][: len(COMMANDS)] == [c.name for c in COMMANDS]
    assert "modelmount pull harbor.example.com" in said
    assert "130  interrupted" in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_teaches_by_example(command: click.Command) -> None:
    said = run(command.name, "--help").output
    assert "Examples:\n  " in said
    assert f"modelmount {command.name}" in said
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
        (("pul",), "No such command 'pul'"),
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
