import pytest

from modelmount.config import Registry, Settings
from modelmount.errors import Forbidden
from modelmount.transport.addresses import Reach
from modelmount.transport.trust import Trust, judge
from modelmount.transport.url import Url

CA = "/etc/ca.pem"


def judged(settings: Settings, registry: str, url: str) -> Trust:
    return judge(settings, registry, Url.parse(url))


def test_a_host_nobody_lists_is_verified_by_the_systems_cas_and_stays_off_this_node() -> None:
    assert judged(Settings(), "harbor.example.com", "https://harbor.example.com/v2/") == Trust(
        Reach.NETWORK, system_cas=True
    )


def test_a_registrys_ca_alone_counts_on_its_own_host_and_beside_the_systems_where_it_redirects_to() -> None:
    settings = Settings(registries={"harbor.example.com": Registry(ca_file=CA)})
    assert judged(settings, "harbor.example.com", "https://harbor.example.com/v2/") == Trust(Reach.ANYWHERE, (CA,))
    assert judged(settings, "harbor.example.com", "https://harbor.example.com:9000/x") == Trust(Reach.ANYWHERE, (CA,))
    assert judged(settings, "harbor.example.com", "https://s3.example.com/x") == Trust(
        Reach.NETWORK, (CA,), system_cas=True
    )


def test_a_storage_host_that_is_listed_has_its_own_ca() -> None:
    settings = Settings(registries={"harbor.example.com": Registry(), "s3.example.com:9000": Registry(ca_file=CA)})
    assert judged(settings, "harbor.example.com", "https://s3.example.com:9000/x") == Trust(Reach.ANYWHERE, (CA,))


def test_a_listed_token_server_may_be_anywhere() -> None:
    settings = Settings(registries={"harbor.example.com": Registry(trusted_realms=["auth.example.com:8443"])})
    assert judged(settings, "harbor.example.com", "https://auth.example.com:8443/t").reach is Reach.ANYWHERE
    assert judged(settings, "harbor.example.com", "https://auth.example.com/t").reach is Reach.NETWORK
    assert judged(settings, "other.example.com", "https://auth.example.com:8443/t").reach is Reach.NETWORK


def test_a_registry_that_nobody_lists_borrows_nothing_of_a_listed_host_that_it_redirects_to() -> None:
    """Anybody may run one: neither the node's certificate nor its loopback is for what it leads to."""
    inside = Registry(ca_file=CA, client_certificate="/etc/client.pem")
    settings = Settings(registries={"harbor.example.com": inside, "127.0.0.1:5000": Registry(ca_file=CA)})
    for host in ("harbor.example.com", "127.0.0.1:5000"):
        there = judged(settings, "evil.example.com", f"https://{host}/v2/secret/blobs/x")
        assert there == Trust(Reach.NETWORK, (CA,))
        assert judged(settings, host, f"https://{host}/v2/").reach is Reach.ANYWHERE
    assert judged(settings, "harbor.example.com", "https://harbor.example.com/v2/").clients == inside.clients
    assert judged(settings, "127.0.0.1:5000", "https://harbor.example.com/x").clients == inside.clients


def test_a_registry_that_is_asked_elsewhere_is_at_home_there() -> None:
    settings = Settings(registries={"docker.io": Registry(server="https://hub.example.com/v2", ca_file=CA)})
    assert judged(settings, "docker.io", "https://hub.example.com/v2/") == Trust(Reach.ANYWHERE, (CA,))
    assert judged(settings, "docker.io", "https://s3.example.com/x") == Trust(Reach.NETWORK, (CA,), system_cas=True)


@pytest.mark.parametrize("registry", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"])
def test_storage_on_loopback_is_reached_from_a_listed_registry_on_loopback(registry: str) -> None:
    settings = Settings(registries={registry: Registry(plain_http=True)})
    assert judged(settings, registry, "http://storage.test:9000/x").reach is Reach.NETWORK_AND_LOOPBACK
    assert judged(Settings(), registry, "https://storage.test:9000/x").reach is Reach.NETWORK


def test_plain_http_needs_the_admins_word_for_the_registry() -> None:
    settings = Settings(registries={"plain.example.com": Registry(plain_http=True), "tls.example.com": Registry()})
    assert judged(settings, "plain.example.com", "http://plain.example.com/v2/").reach is Reach.ANYWHERE
    for registry in ("tls.example.com", "other.example.com"):
        with pytest.raises(Forbidden, match="only the admin can allow that"):
            judged(settings, registry, "http://plain.example.com/v2/")
