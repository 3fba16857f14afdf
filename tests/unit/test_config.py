"""Settings from files, the environment and flags: what wins, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelmount import config
from modelmount.config import Registry
from modelmount.errors import InvalidRequest


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **overrides: Any) -> config.Settings:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return config.load(str(file), environ or {}, overrides)


def mistakes(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **overrides: Any) -> list[str]:
    """The lines of the complaint, without the heading."""
    with pytest.raises(InvalidRequest) as caught:
        load(tmp_path, text, environ, **overrides)
    heading, *lines = caught.value.message.splitlines()
    assert heading == "the configuration has mistakes:"
    return [line.removeprefix("  - ") for line in lines]


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("modelmount.config.reading.DEFAULT_CONFIG_PATH", str(tmp_path / "absent.toml"))
    assert config.load(None, {}) == config.Settings()


def test_the_default_file_is_read_where_it_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "present.toml").write_text('node_id = "n"')
    monkeypatch.setattr("modelmount.config.reading.DEFAULT_CONFIG_PATH", str(tmp_path / "present.toml"))
    effective = config.read(None, {})
    assert effective.settings.node_id == "n"
    assert effective.file == tmp_path / "present.toml"


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the configuration .*absent\.toml: No such file.*--config"):
        config.load(str(tmp_path / "absent.toml"), {})


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the configuration /nowhere/config\.toml"):
        config.load(None, {"MODELMOUNT_CONFIG": "/nowhere/config.toml"})


@pytest.mark.parametrize("content", [b"root = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_not_toml_is_an_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"config\.toml is not valid TOML"):
        config.load(str(file), {})


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    text = 'node_id = "file"\nmode = "node"\nlog_level = "debug"\n[pull]\nconnections = 2\n'
    environ = {"MODELMOUNT_NODE_ID": "environment", "MODELMOUNT_MODE": "all", "MODELMOUNT_PULL_CONNECTIONS": "3"}
    settings = load(tmp_path, text, environ, node_id="flag", **{"limits.free_bytes": 5, "mode": None})
    assert (settings.node_id, settings.mode, settings.log_level) == ("flag", "all", "debug")
    assert (settings.pull.connections, settings.limits.free_bytes) == (3, 5)


def test_csi_endpoint_wins_over_our_own_variable(tmp_path: Path) -> None:
    environ = {"MODELMOUNT_ENDPOINT": "unix:///ours.sock", "CSI_ENDPOINT": "unix:///csi/csi.sock"}
    assert load(tmp_path, "", environ).socket_path == Path("/csi/csi.sock")


def test_each_setting_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('mode = "node"\n[registries."127.0.0.1:5000"]\nplain_http = true\n')
    environ = {"MODELMOUNT_PULL_CONNECTIONS": "3", "CSI_ENDPOINT": "unix:///csi/csi.sock"}
    effective = config.read(str(file), environ, {"root": "/data/models", "node_id": None})
    assert effective.file == file
    assert effective.sources == {
        "mode": str(file),
        'registries."127.0.0.1:5000"': str(file),
        'registries."127.0.0.1:5000".plain_http': str(file),
        "pull.connections": "MODELMOUNT_PULL_CONNECTIONS",
        "endpoint": "CSI_ENDPOINT",
        "root": "command line",
    }


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    text = """
root = "relative"
mode = "nodes"
rooot = "/x"
[pull]
connections = 1000
connect_timeout_seconds = "soon"
[registries."https://harbor.example.com"]
plain_htp = true
"""
    found = mistakes(tmp_path, text, {"MODELMOUNT_PUBLISH_WAITERS": "many", "MODELMOUNT_NOD_ID": "x"})
    said = "\n".join(found)
    for key in ("root must be", "mode must be", "rooot", "pull.connections", "connect_timeout_seconds"):
        assert key in said
    for key in ("plain_htp", "https://harbor", "publish.waiters", "MODELMOUNT_NOD_ID"):
        assert key in said
    assert len(found) == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('rot = "/x"', "unknown key rot; did you mean root?"),
        ("connections = 8", "unknown key connections; did you mean pull.connections?"),
        ("[pull]\nconnection = 8", "unknown key pull.connection; did you mean pull.connections?"),
        ("[auth]\nxyzzy = 8", "unknown key auth.xyzzy; known are "),
        ('[registries."h.example"]\nca_fil = "/x"', 'unknown key registries."h.example".ca_fil; did you mean ca_file?'),
        ("pull = 8", "pull must be a table: [pull]"),
        ('registries = ["h"]', "registries must have one table a host"),
        ('registries = {"h.example" = 5}', "registries must have one table a host"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(tmp_path: Path, text: str, said: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(f"{tmp_path / 'config.toml'}: {said}")


def test_an_unknown_variable_gets_a_suggestion(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, "", {"MODELMOUNT_PULL_CONECTIONS": "8"})
    assert line == (
        "environment: unknown variable MODELMOUNT_PULL_CONECTIONS; did you mean MODELMOUNT_PULL_CONNECTIONS?"
    )


@pytest.mark.parametrize("name", ["MODELMOUNT_SERVICE_HOST", "MODELMOUNT_PORT_443_TCP_ADDR", "MODELMOUNT_WEB_PORT"])
def test_service_links_are_recognised(tmp_path: Path, name: str) -> None:
    (line,) = mistakes(tmp_path, "", {name: "10.0.0.1"})
    assert "enableServiceLinks: false" in line


def test_variables_of_other_tools_are_left_alone(tmp_path: Path) -> None:
    foreign = {"MODELMOUNT_FAILPOINTS": "a=off", "MODELMOUNT_TOOLS": "/x", "HOME": "/root", "CSI_ENDPOINT": ""}
    assert load(tmp_path, "", foreign) == config.Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pull]\nconnections = 0", "pull.connections must be a whole number from 1 to 256, not 0"),
        ('[pull]\nconnections = "8"', "pull.connections must be a whole number from 1 to 256, not '8'"),
        ("[pull]\nconnections = true", "pull.connections must be a whole number from 1 to 256, not True"),
        ("[pull]\nread_timeout_seconds = nan", "must be a number above 0 and up to 86400, not nan"),
        ("[pull]\nidle_seconds = inf", "must be a number above 0 and up to 86400, not inf"),
        ("[publish]\nwait_fraction = 1.0", "publish.wait_fraction must be a number from 0.1 to 0.99, not 1.0"),
        ('[publish]\nmount_flags = ["nosuid", "suid"]', "a list with any of nosuid, nodev, noexec, not ['nosuid', 'su"),
        ('mode = "nodes"', "mode must be one of all, node, controller, not 'nodes'"),
        ('target_roots = "/a"', "target_roots must be a list of texts, not '/a'"),
        ('[registries."h.example"]\nplain_http = "yes"', 'registries."h.example".plain_http must be true or false'),
        ('[registries."h.example"]\nca_file = 3', 'registries."h.example".ca_file must be a text, not 3'),
        ("[limits]\nfree_bytes = -1", "limits.free_bytes must be a whole number from 0 to"),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be(tmp_path: Path, text: str, said: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('root = "data"', "root must be an absolute path, not 'data'"),
        ('root = ""', "root must be an absolute path, not ''"),
        ('root = "/"', "root must be a directory of the store's own"),
        ('root = "/var/lib/"', "root must be a directory of the store's own"),
        ('root = "/k"\nkubelet_root = "/k/kubelet"', "must not hold /k/kubelet"),
        ('kubelet_root = "kubelet"', "kubelet_root must be an absolute path"),
        ('target_roots = ["pods"]', "target_roots[0] must be an absolute path, not 'pods'"),
        ('registration_dir = "reg"', "registration_dir must be an absolute path, not 'reg'"),
        ('registration_endpoint = "csi.sock"', "registration_endpoint must be an absolute path"),
        ('[auth]\ndocker_config = "~/.docker/config.json"', "auth.docker_config must be an absolute path"),
        ('[registries."h.example"]\nca_file = "ca.pem"', 'registries."h.example".ca_file must be an absolute path'),
        ('endpoint = "/csi/csi.sock"', "endpoint must be unix:// and an absolute path, not '/csi/csi.sock'"),
        ('endpoint = "tcp://0.0.0.0:1"', "endpoint must be unix:// and an absolute path"),
        (f'endpoint = "unix:///{"a" * 107}"', "is longer than the 107 bytes"),
        (f'registration_dir = "/{"a" * 90}"', "choose another registration_dir or a shorter driver_name"),
        ('driver_name = "csi/x"', "driver_name must have up to 63 letters"),
        ('driver_name = "csi1"', "driver_name must have up to 63 letters"),
        (f'node_id = "{"n" * 257}"', "node_id must have at most 256 printable bytes"),
        ('metrics_address = "9808"', "metrics_address must be host:port or :port, not '9808'"),
        ('metrics_address = "::1:9808"', "metrics_address must be host:port or :port"),
        ('metrics_address = ":65536"', "metrics_address must be host:port or :port"),
        ('metrics_address = "http://0.0.0.0:9808"', "metrics_address must be host:port or :port"),
        ('allowed_registries = ["https://h.example"]', "allowed_registries: 'https://h.example' must be a glob"),
        ('allowed_registries = ["h.example/llm"]', "allowed_registries: 'h.example/llm' must be a glob"),
        ('allowed_registries = ["H.Example"]', "in lower case"),
        ('allowed_registries = [""]', "allowed_registries: '' must be a glob"),
        ('[registries."h.example/llm"]', "registries: 'h.example/llm' must be host or host:port"),
        ('[registries."http://h.example"]', "registries: 'http://h.example' must be host or host:port"),
        ('[registries."H.Example"]', "in lower case"),
        ('[registries."h.example:0"]', "registries: 'h.example:0' must be host or host:port"),
        ('[registries."h.example:99999"]', "registries: 'h.example:99999' must be host or host:port"),
        ('[registries.""]', "registries: '' must be host or host:port"),
        ('[registries."h.example"]\ntrusted_realms = ["https://a"]', "trusted_realms: 'https://a' must be host"),
        ('[registries."h.example"]\nplain_http = true\nca_file = "/ca.pem"', "has both plain_http and ca_file"),
        ('[registries."h.example"]\nca_file = "/a.pem"\nca_files = ["/b.pem"]', "has both ca_file and ca_files"),
        (
            '[registries."h.example"]\nca_files = ["a.pem"]',
            'registries."h.example".ca_files[0] must be an absolute path',
        ),
        (
            '[registries."h.example"]\nclient_certificate = "/a"\nclient_certificates = [["/b"]]',
            "has both client_certificate",
        ),
        (
            '[registries."h.example"]\nclient_certificates = [["/a", "b"]]',
            "client_certificates[0][1] must be an absolute",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert said in line


@pytest.mark.parametrize(
    "host", ["harbor.example.com", "harbor.example.com:8443", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "a"]
)
def test_hosts_stand_as_in_references(tmp_path: Path, host: str) -> None:
    settings = load(tmp_path, f'[registries."{host}"]\nplain_http = true')
    assert settings.registry(host).plain_http
    assert not settings.registry("other.example.com").plain_http


def test_a_host_without_settings_is_listed_all_the_same(tmp_path: Path) -> None:
    assert load(tmp_path, '[registries."127.0.0.1:5000"]').registries == {"127.0.0.1:5000": config.Registry()}


@pytest.mark.parametrize(
    ("name", "text", "of"),
    [
        ("MODELMOUNT_TARGET_ROOTS", '["/a", "/b"]', ["/a", "/b"]),
        ("MODELMOUNT_ALLOWED_REGISTRIES", '["*.example.com"]', ["*.example.com"]),
        ("MODELMOUNT_METRICS_ADDRESS", "[::]:9808", "[::]:9808"),
        ("MODELMOUNT_NODE_ID", "17", "17"),
        ("MODELMOUNT_REGISTRIES", '{"h:5000": {"plain_http": true}}', {"h:5000": config.Registry(plain_http=True)}),
    ],
)
def test_a_variable_is_read_as_its_type_says(tmp_path: Path, name: str, text: str, of: object) -> None:
    settings = load(tmp_path, "", {name: text})
    assert getattr(settings, name.removeprefix("MODELMOUNT_").lower()) == of


def test_variables_of_sections_are_numbers_and_words(tmp_path: Path) -> None:
    environ = {"MODELMOUNT_PULL_READ_TIMEOUT_SECONDS": "2.5", "MODELMOUNT_AUTH_VERIFICATION": "never"}
    settings = load(tmp_path, "", environ)
    assert (settings.pull.read_timeout_seconds, settings.auth.verification) == (2.5, "never")


@pytest.mark.parametrize("text", ["/a", "/a,/b", '{"a": 1}', "[1]"])
def test_a_list_in_a_variable_is_json(tmp_path: Path, text: str) -> None:
    (line,) = mistakes(tmp_path, "", {"MODELMOUNT_TARGET_ROOTS": text})
    assert "MODELMOUNT_TARGET_ROOTS" in line
    assert "a list of texts" in line


def test_settings_of_one_host_come_together_from_file_and_environment(tmp_path: Path) -> None:
    text = '[registries."h:5000"]\nplain_http = true\ntrusted_realms = ["auth.example.com"]\n'
    settings = load(tmp_path, text, {"MODELMOUNT_REGISTRIES": '{"h:5000": {"plain_http": false}}'})
    assert settings.registry("h:5000") == config.Registry(plain_http=False, trusted_realms=["auth.example.com"])


def test_a_controller_may_have_any_root(tmp_path: Path) -> None:
    assert load(tmp_path, 'mode = "controller"\nroot = "/tmp"').mode == "controller"


def test_a_long_registration_path_matters_only_where_we_register(tmp_path: Path) -> None:
    long = f'kubelet_root = "/{"k" * 100}"\n'
    assert load(tmp_path, long + 'registration_dir = "none"').plugins_registry is None
    assert load(tmp_path, long + 'mode = "controller"').mode == "controller"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("0.0.0.0:9808", ("0.0.0.0", 9808)),
        (":9808", ("", 9808)),
        ("[::]:1", ("::", 1)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_the_metrics_address_comes_apart(tmp_path: Path, address: str, parts: tuple[str, int]) -> None:
    assert load(tmp_path, f'metrics_address = "{address}"').metrics_host_port == parts


def test_a_registrys_settings_count_with_its_port_named_or_not() -> None:
    listed = config.Registry(audit=True)
    for key in ("harbor.example.com", "harbor.example.com:443"):
        settings = config.Settings(registries={key: listed})
        assert settings.registry("harbor.example.com") == settings.registry("harbor.example.com:443") == listed
        assert not settings.registry("harbor.example.com:8443").audit
    plain = config.Settings(registries={"harbor.example.com": config.Registry(plain_http=True)})
    assert not plain.registry("harbor.example.com:443").plain_http


def test_metrics_are_off_without_an_address() -> None:
    assert config.Settings().metrics_host_port is None


@pytest.mark.parametrize(
    ("patterns", "host", "permitted"),
    [
        ([], "anything.example.com", True),
        (["*.example.com"], "harbor.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "harbor.example.com.evil.test", False),
        (["harbor.example.com"], "harbor.example.com:8443", False),
        (["harbor.example.com:*"], "harbor.example.com:8443", True),
        (["[fd00::1]:5000"], "[fd00:0::1]:5000", True),
        (["[fd00::1]:*"], "[fd00::2]:5000", False),
    ],
)
def test_the_allow_list_is_of_globs(patterns: list[str], host: str, permitted: bool) -> None:
    assert config.Settings(allowed_registries=patterns).permits(host) is permitted


def test_plain_values_are_those_of_a_file(tmp_path: Path) -> None:
    settings = load(tmp_path, '[registries."h:5000"]\nplain_http = true\n[publish]\nmount_flags = []\n')
    (listed,) = config.as_dict(settings)["registries"].items()
    assert listed == ("h:5000", {**msgspec.to_builtins(Registry()), "plain_http": True})
    assert config.as_dict(settings)["publish"]["wait_seconds"] == 105.0


@pytest.mark.parametrize("server", ["harbor.example.com/v2", "https://u:p@h.example.com", "https://h/x/", "ftp://h/v2"])
def test_a_server_is_a_url(tmp_path: Path, server: str) -> None:
    (mistake,) = mistakes(tmp_path, f'[registries."h.example.com"]\nserver = "{server}"\n')
    assert mistake.startswith('registries."h.example.com".server must be a URL such as https://')


def test_a_server_over_http_needs_the_word_for_it(tmp_path: Path) -> None:
    text = '[registries."h.example.com"]\nserver = "http://10.0.0.1:5000/v2"\n'
    (mistake,) = mistakes(tmp_path, text)
    assert "needs plain_http = true" in mistake
    assert load(tmp_path, text + "plain_http = true\n").registry("h.example.com").server == "http://10.0.0.1:5000/v2"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("max_bytes = 0", "cache.max_bytes"),
        ("share = 0.0", "cache.share"),
        ("share = 1.5", "cache.share"),
        ("high_watermark = 100", "cache.high_watermark"),
        ("low_watermark = 50", "cache.low_watermark needs a cache.high_watermark above it"),
        ("low_watermark = 80\nhigh_watermark = 80", "cache.low_watermark 80 must be below cache.high_watermark 80"),
        ("namespace_bytes = 0", "cache.namespace_bytes"),
        ("[cache.namespaces]\nteam-a = 0", "team-a"),
        ("[cache.namespaces]\nTeam_A = 1", "is no name of a namespace"),
        ('pins = ["not a reference"]', "cache.pins"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(tmp_path: Path, table: str, said: str) -> None:
    found = mistakes(tmp_path, f"[cache]\n{table}\n")
    assert any(said in line for line in found), found
