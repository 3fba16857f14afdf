"""containerd's hosts.toml directories: what they say about mirrors, and what is said about their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmount import config
from modelmount.config import Registry, Settings, hosts
from modelmount.config.hosts import Host, Hosts
from modelmount.errors import InvalidRequest

SECRET = "Basic c2VjcmV0OnNlY3JldA=="


def write(directory: Path, name: str, text: str) -> Path:
    (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / name / "hosts.toml").write_text(text)
    return directory


def read(directory: Path, name: str, text: str) -> Hosts:
    found, problems = hosts.read(str(write(directory, name, text)))
    assert problems == []
    return found


def problems(directory: Path, text: str, name: str = "harbor.example.com") -> list[str]:
    found = hosts.read(str(write(directory, name, text)))[1]
    return [problem.removeprefix(f"{directory}/{name}/hosts.toml: ") for problem in found]


def test_without_a_directory_there_are_no_mirrors() -> None:
    assert hosts.load(Settings()).mirrors("harbor.example.com") == ()


def test_mirrors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "docker.io",
        """
        server = "https://registry-1.docker.io"
        [host."https://z.example.com"]
        capabilities = ["pull"]
        [host."http://192.168.31.250:5000"]
        capabilities = ["pull", "resolve", "push"]
        skip_verify = true  # means nothing without TLS
        [host."a.example.com"]
        ca = "mirror.crt"
        dial_timeout = "1m0.2s"
        """,
    )
    mirrors = found.mirrors("docker.io")
    assert [each.url for each in mirrors] == [
        "https://z.example.com/v2",
        "http://192.168.31.250:5000/v2",
        "https://a.example.com/v2",
    ]
    assert mirrors[2].ca_files == (str(tmp_path / "docker.io/mirror.crt"),)
    assert [each.dial_seconds for each in mirrors] == [None, None, 60.2]
    assert found.mirrors("harbor.example.com") == ()


def test_a_host_that_may_not_pull_is_no_mirror(tmp_path: Path) -> None:
    text = '[host."https://a.example.com"]\ncapabilities = ["resolve"]\n[host."https://b.example.com"]\n'
    assert [each.name for each in read(tmp_path, "harbor.example.com", text).mirrors("harbor.example.com")] == [
        "b.example.com"
    ]


@pytest.mark.parametrize("name", ["harbor.example.com:8443", "harbor.example.com_8443_"])
def test_a_port_is_spelled_in_either_way(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, '[host."https://m.example.com"]')
    assert len(found.mirrors("harbor.example.com:8443")) == 1
    assert found.mirrors("harbor.example.com") == ()


def test_the_default_is_for_registries_without_a_directory_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "_default", '[host."http://127.0.0.1:4001"]\n')
    found = read(tmp_path, "harbor.example.com", "")
    assert [each.name for each in found.mirrors("other.example.com")] == ["127.0.0.1:4001"]
    assert found.mirrors("harbor.example.com") == ()


@pytest.mark.parametrize(
    ("url", "override", "expected", "name"),
    [
        ("https://m.example.com/", "false", "https://m.example.com/v2", "m.example.com"),
        ("https://m.example.com/v2", "false", "https://m.example.com/v2", "m.example.com"),
        ("https://M.example.com/hub", "false", "https://m.example.com/hub/v2", "m.example.com_hub_v2"),
        ("https://m.example.com/v2/hub/", "true", "https://m.example.com/v2/hub", "m.example.com_v2_hub"),
        ("https://m.example.com", "true", "https://m.example.com", "m.example.com"),
    ],
)
def test_the_root_of_the_api_is_containerds(tmp_path: Path, url: str, override: str, expected: str, name: str) -> None:
    (mirror,) = read(tmp_path, "h.example.com", f'[host."{url}"]\noverride_path = {override}\n').mirrors(
        "h.example.com"
    )
    assert (mirror.url, mirror.name, mirror.authority) == (expected, name, "m.example.com")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"/c/a.pem"', [("/c/a.pem", None)]),
        ('["/c/a.pem", "b.pem"]', [("/c/a.pem", None), ("{}/b.pem", None)]),
        ('[["a.crt", "a.key"], ["/c/b.crt", "b.key"]]', [("{}/a.crt", "{}/a.key"), ("/c/b.crt", "{}/b.key")]),
        ('[["a.crt", "a.key"], ["b.pem", ""]]', [("{}/a.crt", "{}/a.key"), ("{}/b.pem", None)]),
    ],
)
def test_client_certificates_in_each_of_containerds_forms(
    tmp_path: Path, text: str, expected: list[tuple[str, str | None]]
) -> None:
    """For mirrors as for the registry itself, where what is said about it in the configuration comes first."""
    found = read(tmp_path, "h.example.com", f'client = {text}\n[host."https://m.example.com"]\nclient = {text}')
    here = tmp_path / "h.example.com"
    pairs = tuple((one.format(here), other and other.format(here)) for one, other in expected)
    (mirror,) = found.mirrors("h.example.com")
    listed = Settings(registries={"m.example.com": Registry(client_certificate="/own.pem", client_key="/own.key")})
    assert mirror.settings(listed).registry("m.example.com").clients == pairs
    assert found.applied(Settings()).registry("h.example.com").clients == pairs
    own = Settings(registries={"h.example.com": Registry(client_certificate="/own.pem")})
    assert found.applied(own).registry("h.example.com").clients == (("/own.pem", None),)


def test_several_cas_and_a_proxy_are_read_as_containerd_has_them(tmp_path: Path) -> None:
    """Of the registry itself and of a mirror; where the configuration names a proxy of either, that one counts."""
    text = """
        ca = ["/c/a.pem", "b.pem"]
        proxy = "http://different-proxy:8080"
        [host."https://m.example.com"]
        ca = ["own.pem", "/c/d.pem"]
        proxy = "http://my-proxy:8080/"
        """
    found, here = read(tmp_path, "h.example.com", text), tmp_path / "h.example.com"
    own = found.applied(Settings()).registry("h.example.com")
    assert (own.cas, own.proxy) == (("/c/a.pem", f"{here}/b.pem"), "http://different-proxy:8080")
    (mirror,) = found.mirrors("h.example.com")
    known = Settings(registries={"m.example.com": Registry(ca_file="/known.pem")})
    made = mirror.settings(known).registry("m.example.com")
    assert (made.cas, made.proxy) == ((f"{here}/own.pem", "/c/d.pem"), "http://my-proxy:8080")
    login = Registry(proxy="http://other:1", proxy_login_file="/login", ca_file="/known.pem")
    named = Settings(registries={"h.example.com": login, "m.example.com": login})
    for registry in (found.applied(named).registry("h.example.com"), mirror.settings(named).registry("m.example.com")):
        assert (registry.proxy, registry.proxy_login_file) == ("http://other:1", "/login")
    assert found.applied(named).registry("h.example.com").cas == ("/known.pem",)


def test_certificates_without_a_hosts_toml_are_read_as_dockers(tmp_path: Path) -> None:
    for name in ("h.example.com:8443", "docker.io", "empty.example.com", "told.example.com"):
        (tmp_path / name).mkdir()
    for name in ("b.crt", "a.crt", "client.cert", "client.key", "readme.txt"):
        (tmp_path / "h.example.com:8443" / name).touch()
    (tmp_path / "docker.io" / "ca.crt").touch()
    (tmp_path / "told.example.com" / "ca.crt").touch()
    applied = read(tmp_path, "told.example.com", "").applied(Settings())
    here = tmp_path / "h.example.com:8443"
    assert applied.registries == {
        "h.example.com:8443": Registry(
            server="https://h.example.com:8443/v2",
            ca_files=[f"{here}/a.crt", f"{here}/b.crt"],
            client_certificates=[[f"{here}/client.cert", f"{here}/client.key"]],
        ),
        "docker.io": Registry(server="https://registry-1.docker.io/v2", ca_files=[f"{tmp_path}/docker.io/ca.crt"]),
    }


def test_a_certificate_without_its_key_and_one_for_everybody_are_mistakes(tmp_path: Path) -> None:
    for name in ("h.example.com", "_default"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "client.cert").touch()
    assert hosts.read(str(tmp_path))[1] == [
        f"{tmp_path}/_default: certificates have no meaning in _default; give the registry a directory of its own",
        f"{tmp_path}/h.example.com: client.cert has no client.key beside it",
    ]


def test_headers_are_read_and_never_shown(tmp_path: Path) -> None:
    text = f"""
        [host."http://127.0.0.1:4001"]
        [host."http://127.0.0.1:4001".header]
        X-Dragonfly-Registry = ["https://harbor.example.com"]
        Authorization = "{SECRET}"
        """
    (mirror,) = read(tmp_path, "h.example.com", text).mirrors("h.example.com")
    assert mirror.headers == {"X-Dragonfly-Registry": "https://harbor.example.com", "Authorization": SECRET}
    assert SECRET not in repr(mirror)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server = ", "is not valid TOML"),
        ('host = "https://m.example.com"', "host must have one table a host"),
        ('[host."https://m.example.com"]\nca_file = "x"', 'host."https://m.example.com".ca_file: unknown key; known'),
        ('[host."https://m.example.com"]\nclient = [["a", "b", "c"]]', "client: name certificates as"),
        ('[host."https://m.example.com"]\nclient = [["", "b"]]', "client: name certificates as"),
        ('[host."https://m.example.com"]\nclient = 3', "client: Expected `str | array`, got `int`"),
        ('[host."https://m.example.com"]\nproxy = "socks5://p:1"', "https and SOCKS proxies are not spoken to"),
        ('[host."https://m.example.com"]\nproxy = "https://p:1"', "https and SOCKS proxies are not spoken to"),
        ('[host."https://m.example.com"]\nproxy = "http://p:1/path"', "proxy must be a URL such as"),
        (f'proxy = "http://user:{SECRET[6:-2]}@p.example.com:1"', "proxy must be a URL such as"),
        ('[host."https://m.example.com"]\nproxy = 3', "proxy: Expected `str`, got `int`"),
        ('[host."https://m.example.com"]\nskip_verify = true', "TLS verification cannot be switched off; name the CA"),
        ('[host."https://m.example.com"]\nskip_verify = "no"', "skip_verify: Expected `bool`, got `str`"),
        ('[host."https://m.example.com"]\ncapabilities = ["fly"]', "capabilities: 'fly' is unknown"),
        ('[host."https://m.example.com"]\nca = ["a", 3]', "ca: Expected `str`, got `int`"),
        ('[host."https://m.example.com"]\ndial_timeout = "soon"', "dial_timeout must be a time such as 200ms"),
        ('[host."https://m.example.com"]\ndial_timeout = "2h"', "dial_timeout must be a time such as 200ms"),
        ('[host."ftp://m.example.com/?x=1"]', "must be a URL such as https://mirror.example.com"),
        ('[host."https://user:pass@m.example.com"]', "must be a URL such as https://mirror.example.com"),
        (f'[host."https://m.example.com".header]\n"a b" = "{SECRET}"', "header: 'a b' is no header"),
        (f'[host."https://m.example.com".header]\nX = "{SECRET}\\n"', "header: 'X' is no header, or its value can't"),
        (f'[host."https://m.example.com".header]\nX = [1, "{SECRET}"]', "header: Expected `str`, got `int`"),
        ('server = "https://h.example.com"\n[header]\nX = "y"', "header is for mirrors"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_without_secrets(tmp_path: Path, text: str, complaint: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert complaint in problem
    assert SECRET[6:-2] not in problem


def test_the_default_has_no_server(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, 'server = "https://m.example.com"', "_default")
    assert problem.startswith("server has no meaning in _default")


def test_a_directory_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert hosts.read(str(tmp_path / "absent"))[1] == [f"hosts_dir {tmp_path}/absent is not a directory"]


def test_every_mistake_is_told_with_those_of_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, "a.example.com", "server = 1\nspeed = 2\n")
    file = tmp_path / "config.toml"
    file.write_text(f'hosts_dir = "{tmp_path}"\nspeed = 3\n')
    with pytest.raises(InvalidRequest) as caught:
        config.load(str(file), {})
    assert caught.value.message.count("\n") == 3
    with pytest.raises(InvalidRequest, match="hosts_dir has mistakes"):
        hosts.load(Settings(hosts_dir=str(tmp_path)))


def test_a_server_moves_the_registry_and_leaves_what_the_configuration_says(tmp_path: Path) -> None:
    write(tmp_path, "a.example.com", 'server = "http://10.0.0.1:5000"\n')
    write(tmp_path, "b.example.com", 'ca = "own.pem"\n')
    found = read(tmp_path, "c.example.com", 'server = "https://other.example.com"\n')
    applied = found.applied(Settings(registries={"c.example.com": Registry(ca_file="/c.pem", connections=3)}))
    assert applied.registries == {
        "a.example.com": Registry(server="http://10.0.0.1:5000/v2", plain_http=True),
        "b.example.com": Registry(
            server="https://b.example.com/v2", ca_files=[str(tmp_path / "b.example.com/own.pem")]
        ),
        "c.example.com": Registry(server="https://other.example.com/v2", ca_file="/c.pem", connections=3),
    }


def test_docker_io_is_no_server_whatever_containerds_examples_say(tmp_path: Path) -> None:
    """Its API has another host; with more said of it that one counts."""
    server = 'server = "https://docker.io"\n'
    assert read(tmp_path, "docker.io", server).applied(Settings()) == Settings()
    applied = read(tmp_path, "docker.io", f'{server}proxy = "http://p.example.com:1"').applied(Settings())
    assert applied.registries == {
        "docker.io": Registry(server="https://registry-1.docker.io/v2", proxy="http://p.example.com:1")
    }


def test_a_mirror_is_asked_with_less_patience_and_as_it_wants(tmp_path: Path) -> None:
    settings = Settings(registries={"m.example.com": Registry(plain_http=True, trusted_realms=["auth.example.com"])})
    mirror = Host("https://m.example.com/v2", ca_files=("/m.pem", "/n.pem"), dial_seconds=0.5)
    made = mirror.settings(settings)
    assert made.registry("m.example.com") == Registry(
        server="https://m.example.com/v2", ca_files=["/m.pem", "/n.pem"], trusted_realms=["auth.example.com"]
    )
    assert made.pull.connect_timeout_seconds == 0.5
    assert made.pull.read_timeout_seconds == made.pull.document_timeout_seconds == settings.pull.mirror_timeout_seconds
