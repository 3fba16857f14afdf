"""`modelmount config`: what is set, by whom, and whether it is right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from click.testing import CliRunner, Result

from modelmount import config
from modelmount.cli import cli

TEXT = 'mode = "node"\n[pull]\nconnections = 7\n[registries."127.0.0.1:5000"]\nplain_http = true\n'


def run(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments], prog_name="modelmount", env=env)


def write(tmp_path: Path, text: str = TEXT) -> str:
    (tmp_path / "config.toml").write_text(text)
    return str(tmp_path / "config.toml")


def test_what_is_shown_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    file = write(tmp_path, TEXT + '[registries."localhost:1"]\nca_file = "/ca.pem"\ntrusted_realms = ["a.example"]\n')
    shown = run("show", "--config", file, "--root", str(tmp_path), env={"MODELMOUNT_NODE_ID": 'n"ö\\'})
    assert shown.exit_code == 0, shown.output
    (tmp_path / "again.toml").write_text(shown.stdout)
    effective = config.load(file, {"MODELMOUNT_NODE_ID": 'n"ö\\'}, {"root": str(tmp_path)})
    assert config.load(str(tmp_path / "again.toml"), {}) == effective


def test_each_setting_that_was_set_says_by_whom(tmp_path: Path) -> None:
    file = write(tmp_path)
    lines = run("show", "--config", file, env={"MODELMOUNT_LOG_LEVEL": "debug"}).stdout.splitlines()
    (mode,) = [line for line in lines if line.startswith("mode = ")]
    (level,) = [line for line in lines if line.startswith("log_level = ")]
    (name,) = [line for line in lines if line.startswith("driver_name = ")]
    assert mode.endswith(f"# {file}")
    assert level.endswith("# MODELMOUNT_LOG_LEVEL")
    assert "#" not in name


def test_json_has_settings_sources_and_file(tmp_path: Path) -> None:
    file = write(tmp_path)
    shown = json.loads(run("show", "--config", file, "--json").stdout)
    assert msgspec.convert(shown["settings"], config.Settings) == config.load(file, {})
    assert shown["sources"]["pull.connections"] == file
    assert shown["file"] == file


def test_a_right_configuration_is_called_right(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert run("check", "--config", file).stdout == f"the configuration is right: {file}\n"
    assert json.loads(run("check", "--config", file, "--json").stdout) == {"ok": True, "file": file}


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    checked = run("check", "--config", write(tmp_path, 'mode = "x"\nrooot = "/y"\n'))
    assert checked.exit_code == 2
    assert checked.stdout == ""
    heading, *mistakes = checked.stderr.splitlines()
    assert heading == "modelmount: the configuration has mistakes:"
    assert len(mistakes) == 2


def test_mistakes_in_json(tmp_path: Path) -> None:
    checked = run("check", "--json", "--config", write(tmp_path, 'mode = "x"\n'))
    assert checked.exit_code == 2
    error = json.loads(checked.stdout)["error"]
    assert error["reason"] == "InvalidRequest"
    assert "mode must be one of" in error["message"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    checked = run("check", "--config", str(tmp_path / "absent.toml"))
    assert checked.exit_code == 2
    assert "absent.toml" in checked.stderr
