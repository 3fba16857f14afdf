import pytest

from modelmount.transport.addresses import Reach, refusal


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("169.254.169.254", "metadata-service"),
        ("169.254.170.2", "metadata-service"),
        ("100.100.100.200", "metadata-service"),
        ("168.63.129.16", "metadata-service"),
        ("192.0.0.192", "metadata-service"),
        ("fd00:ec2::254", "metadata-service"),
        ("fd20:ce::254", "metadata-service"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "site-local"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("192.0.0.8", "reserved"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "reserved"),
        ("::ffff:169.254.169.254", "metadata-service"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:0:169.254.169.254", "metadata-service"),
        ("::169.254.169.254", "metadata-service"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "metadata-service"),
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b:1::a9fe:a9fe", "metadata-service"),
        ("2002:a9fe:a9fe::1", "metadata-service"),
        ("2002:7f00:1::", "loopback"),
        ("harbor.example.com", "malformed"),
    ],
)
def test_h4_places_that_are_no_registry_are_refused_in_every_spelling(address: str, kind: str) -> None:
    assert refusal(address, Reach.NETWORK) == kind


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "8.8.8.8",
        "fd12:3456::1",
        "2600::1",
        "2001:200::1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "::ffff:10.0.0.1",
    ],
)
def test_h4_networks_private_ones_included_are_reached(address: str) -> None:
    assert refusal(address, Reach.NETWORK) is None


def test_loopback_is_reached_where_the_admins_registry_is_there_too_and_nothing_else_is() -> None:
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1"):
        assert refusal(address, Reach.NETWORK_AND_LOOPBACK) is None
    for address in ("169.254.169.254", "0.0.0.0", "::ffff:169.254.1.1", "::", "fe80::1"):
        assert refusal(address, Reach.NETWORK_AND_LOOPBACK) is not None


def test_a_host_that_the_admin_names_may_be_anywhere() -> None:
    assert refusal("169.254.169.254", Reach.ANYWHERE) is None
