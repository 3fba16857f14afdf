import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden
from modelmount.registry import realms

LISTED = Settings(
    registries={
        "10.0.0.5:5000": Registry(),
        "plain.example.com": Registry(plain_http=True),
        "harbor.example.com": Registry(trusted_realms=["sso.example.com", "10.0.0.9:8443"]),
    }
)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("harbor.example.com", "https://harbor.example.com/service/token"),
        ("harbor.example.com", "https://harbor.example.com:8443/token"),
        ("harbor.example.com", "https://HARBOR.example.com./token"),
        ("harbor.example.com", "https://sso.example.com/token"),
        ("harbor.example.com", "https://10.0.0.9:8443/token"),
        ("other.example.com", "https://other.example.com/token?x=1"),
        ("plain.example.com", "http://plain.example.com/token"),
        ("plain.example.com", "https://plain.example.com/token"),
        ("10.0.0.5:5000", "https://10.0.0.5/token"),
        ("docker.io", "https://auth.docker.io/token"),
    ],
)
def test_h2_token_servers_that_are_the_registrys_own_or_trusted_are_believed(registry: str, realm: str) -> None:
    assert realms.judge(LISTED, registry, realm, "x").scheme in {"http", "https"}


@pytest.mark.parametrize(
    ("registry", "realm", "why"),
    [
        ("harbor.example.com", "http://harbor.example.com/token", "without TLS"),
        ("harbor.example.com", "http://sso.example.com/token", "without TLS"),
        ("harbor.example.com", "https://evil.example.com/token", "isn't its own host"),
        ("harbor.example.com", "https://harbor.example.com.evil.net/token", "isn't its own host"),
        ("harbor.example.com", "https://example.com/token", "isn't its own host"),
        ("harbor.example.com", "https://sso.example.com:8443/token", "isn't its own host"),
        ("harbor.example.com", "https://10.0.0.9/token", "isn't its own host"),
        ("harbor.example.com", "https://169.254.169.254/token", "isn't its own host"),
        ("other.example.com", "https://sso.example.com/token", "isn't its own host"),
        ("10.0.0.6:5000", "https://10.0.0.6/token", "not shown to an address"),
        ("0x7f.1", "https://0x7f.1/token", "not shown to an address"),
        ("[::1]:5000", "https://[::1]/token", "not shown to an address"),
        ("docker.io", "https://auth.docker.io.evil.net/token", "isn't its own host"),
        ("harbor.example.com", "javascript:alert(1)", "can't be asked"),
        ("harbor.example.com", "", "can't be asked"),
        ("harbor.example.com", "https://a:b@harbor.example.com/", "can't be asked"),
    ],
)
def test_h2_others_are_not(registry: str, realm: str, why: str) -> None:
    with pytest.raises(Forbidden, match=f"^x: .*{why}"):
        realms.judge(LISTED, registry, realm, "x")
