import pytest

from modelmount.transport.url import Url


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://Harbor.Example.com", ("https", "harbor.example.com", 443, "/")),
        ("HTTP://localhost:5000/v2/?a=b&c", ("http", "localhost", 5000, "/v2/?a=b&c")),
        ("https://harbor.example.com./x#fragment", ("https", "harbor.example.com", 443, "/x")),
        ("https://[2001:DB8::0:1]:8443/x", ("https", "2001:db8::1", 8443, "/x")),
        ("https://storage_1.example.com?sig=1", ("https", "storage_1.example.com", 443, "/?sig=1")),
        ("https://a.example.com/{b}%2f?c=[<d>]%2F", ("https", "a.example.com", 443, "/%7Bb%7D%2f?c=%5B%3Cd%3E%5D%2F")),
    ],
)
def test_a_url_is_taken_apart(text: str, parts: tuple[str, str, int, str]) -> None:
    url = Url.parse(text)
    assert (url.scheme, url.host, url.port, url.target) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/v2/",
        "harbor.example.com/v2/",
        "ftp://harbor.example.com/",
        "file:///etc/passwd",
        "data:text/plain,hello",
        "https://",
        "https:///v2/",
        "https://user:secret@harbor.example.com/",
        "https://harbor.example.com:0/",
        "https://harbor.example.com:65536/",
        "https://harbor.example.com:٤٤٣/",
        "https://harbor.example.com:/",
        "https://harbor..example.com/",
        "https://-harbor.example.com/",
        f"https://{'a' * 64}.example.com/",
        f"https://{'.'.join(['a' * 60] * 5)}/",
        "https://[::1%25eth0]/",
        "https://[127.0.0.1]/",
        "https://[::1/",
        "https://harbor.example.com/a b",
        "https://harbor.example.com/a\r\nX-Injected: 1",
        "https://harbor.example.com\\@evil.example.com/",
        "https://härbor.example.com/",
        "https://harbor.example.com/" + "x" * 20000,
    ],
)
def test_what_is_not_plainly_a_url_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it ") as refused:
        Url.parse(text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/other?x=1", "https://harbor.example.com/other"),
        ("sibling", "https://harbor.example.com/v2/sibling"),
        ("//storage.example.com:9000/x", "https://storage.example.com:9000/x"),
        ("http://storage.example.com/x?sig=1", "http://storage.example.com/x"),
        ("?only=query", "https://harbor.example.com/v2/blobs"),
    ],
)
def test_a_location_leads_on_from_where_it_was_given(location: str, expected: str) -> None:
    assert str(Url.parse("https://harbor.example.com/v2/blobs").join(location)) == expected


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:text/plain,x", "ftp://x/", "http://[x]/", "\t/x"])
def test_a_location_that_leads_nowhere_is_refused(location: str) -> None:
    with pytest.raises(ValueError):
        Url.parse("https://harbor.example.com/v2/blobs").join(location)


def test_neither_text_nor_repr_shows_the_query() -> None:
    url = Url.parse("https://storage.example.com/blob?X-Amz-Signature=secret")
    assert "secret" not in f"{url} {url!r}"
    assert str(url) == "https://storage.example.com/blob"


@pytest.mark.parametrize(
    ("text", "name", "same"),
    [
        ("https://harbor.example.com/", "harbor.example.com", True),
        ("https://harbor.example.com/", "harbor.example.com:443", True),
        ("https://harbor.example.com/", "Harbor.Example.com", True),
        ("https://harbor.example.com:8443/", "harbor.example.com", False),
        ("http://harbor.example.com/", "harbor.example.com:443", False),
        ("https://[::1]:5000/", "[0:0::1]:5000", True),
        ("https://evil.example.com/", "example.com", False),
        ("https://harbor.example.com/", "not a host", False),
    ],
)
def test_an_admins_name_means_one_origin(text: str, name: str, *, same: bool) -> None:
    assert Url.parse(text).is_named(name) is same


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", True),
        ("127.1", True),
        ("2130706433", True),
        ("0x7f.1", True),
        ("0x7f000001", True),
        ("[::1]", True),
        ("harbor.example.com", False),
        ("localhost", False),
        ("1.example", False),
    ],
)
def test_an_address_is_known_in_every_spelling(host: str, *, address: bool) -> None:
    assert Url.parse(f"https://{host}/").is_address is address
