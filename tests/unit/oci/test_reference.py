"""References: the grammar of github.com/distribution/reference where both agree, stricter where a driver must be."""

from __future__ import annotations

import string

import pytest
from docker_image.reference import InvalidReference
from docker_image.reference import Reference as Oracle
from hypothesis import example, given
from hypothesis import strategies as st

from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.reference import MAX_PATH_CHARACTERS, Reference, Repository, split_port

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


def parts(text: str) -> tuple[str, str, str | None, str | None]:
    reference = Reference.parse(text)
    digest = str(reference.digest) if reference.digest else None
    return reference.repository.registry, reference.repository.repository, reference.tag, digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("harbor.example.com/llm/llama3-70b:v1", ("harbor.example.com", "llm/llama3-70b", "v1", None)),
        ("localhost/a", ("localhost", "a", "latest", None)),
        (f"localhost:5000/a/b:t@{DIGEST}", ("localhost:5000", "a/b", "t", DIGEST)),
        (f"reg.io/a@{DIGEST}", ("reg.io", "a", None, DIGEST)),
        (f"reg.io/a@sha512:{HEX}{HEX}", ("reg.io", "a", None, f"sha512:{HEX}{HEX}")),
        ("[::1]:5000/a", ("[::1]:5000", "a", "latest", None)),
        ("[FE80::1]/a", ("[fe80::1]", "a", "latest", None)),
        ("127.0.0.1:5000/proj/x:v1.0", ("127.0.0.1:5000", "proj/x", "v1.0", None)),
        ("Reg.Example.com/a/b", ("reg.example.com", "a/b", "latest", None)),
        ("reg.io/a__b/c.d-e---f_g", ("reg.io", "a__b/c.d-e---f_g", "latest", None)),
        ("reg.io/a:_Tag.with-Case", ("reg.io", "a", "_Tag.with-Case", None)),
        ("reg.io/a:" + "t" * 128, ("reg.io", "a", "t" * 128, None)),
        ("docker.io/x", ("docker.io", "library/x", "latest", None)),
        ("docker.io/ai/x", ("docker.io", "ai/x", "latest", None)),
        ("index.docker.io/x:1", ("docker.io", "library/x", "1", None)),
        ("oci://reg.io/a:1", ("reg.io", "a", "1", None)),
        ("docker://reg.io/a:1", ("reg.io", "a", "1", None)),
        ("oras://reg.io/a:1", ("reg.io", "a", "1", None)),
    ],
)
def test_a_reference_is_taken_apart(text: str, expected: tuple[str, str, str | None, str | None]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="R1-empty"),
        pytest.param("reg.io/" + "a" * 256, id="R1-name-of-256-characters"),
        pytest.param("docker.io/" + "a" * 250, id="R1-name-too-long-with-library"),
        pytest.param("reg.io/a:" + "t" * 129, id="R1-tag-of-129-characters"),
        pytest.param("reg.io/Proj/a", id="R1-upper-case-repository"),
        pytest.param("reg.io/../a", id="R1-two-dots"),
        pytest.param("reg.io/a/..", id="R1-two-dots-at-the-end"),
        pytest.param("reg.io/a..b", id="R1-two-dots-inside"),
        pytest.param("-reg.io/a", id="R1-leading-hyphen"),
        pytest.param("reg.io/-a", id="R1-leading-hyphen-in-the-path"),
        pytest.param("/reg.io/a", id="R1-leading-slash"),
        pytest.param("reg.io/a\n", id="R1-newline-at-the-end"),
        pytest.param("reg.io/a:t\n", id="R1-newline-after-the-tag"),
        pytest.param(" reg.io/a", id="R1-space"),
        pytest.param("reg.io/a\0b", id="R1-nul"),
        pytest.param("reg.io//a", id="R1-empty-component"),
        pytest.param("reg.io/a/", id="R1-slash-at-the-end"),
        pytest.param("reg.io/", id="R1-no-path"),
        pytest.param("reg.io", id="R1-host-only"),
        pytest.param("reg.io/a___b", id="R1-three-underscores"),
        pytest.param("reg.io/a:", id="R1-empty-tag"),
        pytest.param("reg.io/a:.t", id="R1-tag-with-leading-dot"),
        pytest.param("reg.io/a:t:x", id="R1-two-tags"),
        pytest.param("llama3:v1", id="R1-no-host"),
        pytest.param("llm/llama3", id="R1-no-host-but-a-path"),
        pytest.param("UPPER/a", id="R1-host-without-dot"),
        pytest.param(HEX, id="R1-bare-hex"),
        pytest.param(f"reg.io/a@sha256:{HEX[:63]}", id="R2-63-digits"),
        pytest.param(f"reg.io/a@sha256:{HEX}0", id="R2-65-digits"),
        pytest.param(f"reg.io/a@sha256:{HEX.upper()}", id="R2-upper-case-hex"),
        pytest.param(f"reg.io/a@SHA256:{HEX}", id="R2-upper-case-algorithm"),
        pytest.param(f"reg.io/a@sha1:{HEX[:40]}", id="R2-sha1"),
        pytest.param(f"reg.io/a@md5:{HEX[:32]}", id="R2-md5"),
        pytest.param("reg.io/a@sha256:abc", id="R2-short"),
        pytest.param("sha256:abc", id="R2-digest-only"),
        pytest.param("reg.io/a@", id="R2-empty-digest"),
        pytest.param(f"reg.io/a@{DIGEST}@{DIGEST}", id="R2-two-digests"),
        pytest.param(f"reg.io/a@{DIGEST}:t", id="R2-tag-after-the-digest"),
        pytest.param("[fe80::1%25eth0]/a", id="R5-ipv6-zone"),
        pytest.param("[fe80::1%eth0]/a", id="R5-ipv6-zone-unescaped"),
        pytest.param("[::g]/a", id="R5-bad-ipv6"),
        pytest.param("[::1/a", id="R5-open-bracket"),
        pytest.param("[1:2:3:4:5:6:7:8:9]/a", id="R5-ipv6-of-nine-groups"),
        pytest.param("user:pw@reg.io/a", id="R6-userinfo"),
        pytest.param("user@reg.io/a", id="R6-user"),
        pytest.param("http://reg.io/a", id="R6-http"),
        pytest.param("https://reg.io/a", id="R6-https"),
        pytest.param("file:///etc/passwd", id="R6-file"),
        pytest.param("oci:/tmp/layout", id="R6-oci-layout"),
        pytest.param("oci://oci://reg.io/a", id="R6-scheme-twice"),
        pytest.param("oci:///a", id="R6-scheme-without-host"),
        pytest.param("hf://org/model", id="R6-hf"),
        pytest.param("s3://bucket/key", id="R6-s3"),
        pytest.param("pvc://claim/path", id="R6-pvc"),
        pytest.param("reg.io:５０００/a", id="R7-full-width-port"),
        pytest.param("reg.io/a:ｖ１", id="R7-full-width-tag"),
        pytest.param("\u212aeg.io/a", id="R7-kelvin-sign"),
        pytest.param("reg.ıo/a", id="R7-dotless-i"),
        pytest.param("reg.io:/a", id="port-missing"),
        pytest.param("reg.io:0/a", id="port-zero"),
        pytest.param("reg.io:0443/a", id="port-in-another-spelling"),
        pytest.param("reg.io:65536/a", id="port-too-large"),
        pytest.param("reg.io:0655350/a", id="port-of-seven-digits"),
        pytest.param("reg.io:+80/a", id="port-with-sign"),
        pytest.param("reg_io.example/a", id="underscore-in-host"),
        pytest.param("reg..io/a", id="host-with-empty-label"),
        pytest.param("reg.io./a", id="host-with-final-dot"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Reference.parse(text)
    assert caught.value.message
    assert caught.value.message.isprintable()


def test_r3_with_tag_and_digest_the_digest_decides() -> None:
    """The tag is kept for people to read."""
    reference = Reference.parse(f"reg.io/a:v1@{DIGEST}")
    assert reference.digest == Digest.parse(DIGEST)
    assert str(reference) == f"reg.io/a:v1@{DIGEST}"


def test_r4_without_tag_and_digest_latest_is_meant() -> None:
    assert str(Reference.parse("reg.io/a")) == "reg.io/a:latest"


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="R5-ip-literal"),
        pytest.param("10.0.0.8:5000", id="R5-ip-literal-with-port"),
        pytest.param("localhost", id="R5-localhost"),
        pytest.param("LOCALHOST:5000", id="R5-localhost-in-upper-case"),
        pytest.param("registry.localhost", id="R5-name-below-localhost"),
        pytest.param("127.1", id="R5-two-part-address"),
        pytest.param("2130706433:80", id="R5-decimal-address"),
        pytest.param("0x7f.1", id="R5-hexadecimal-part"),
        pytest.param("127.0.0.0x1", id="R5-hexadecimal-last-part"),
        pytest.param("0177.0.0.1", id="R5-octal-part"),
        pytest.param("169.254.169.254", id="R5-link-local"),
        pytest.param("[fe80::1]", id="R5-ipv6-link-local"),
        pytest.param("[::ffff:127.0.0.1]:5000", id="R5-ipv4-in-ipv6"),
    ],
)
def test_hosts_that_are_addresses_are_recognised(host: str) -> None:
    assert Reference.parse(f"{host}/a").repository.is_address_like


@pytest.mark.parametrize(
    "host", ["reg.io", "harbor.example.com:5000", "1password.com", "localhost.example.com", "0x.io"]
)
def test_names_are_no_addresses(host: str) -> None:
    assert not Reference.parse(f"{host}/a").repository.is_address_like


@pytest.mark.parametrize(
    "text",
    [
        "user:secret@reg.io/a",
        "https://user:secret@reg.io/a",
        "oci://user:secret@reg.io/a",
        "user:s/secret@reg.io/a",
        "user:secret@reg.io",
        f"user:secret@reg.io/a@sha256:{HEX.upper()}",
        f"https://user:secret@reg.io/a@{DIGEST}",
        "https://user:secret" + "x" * 1000 + "@reg.io/a",
    ],
)
def test_what_may_be_a_password_is_not_repeated(text: str) -> None:
    """R6."""
    with pytest.raises(InvalidRequest) as caught:
        Reference.parse(text)
    assert "secret" not in caught.value.message


def test_a_refused_reference_is_shown_without_control_characters_and_cut() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Reference.parse("reg.io/\x1b[31m\u202e" + "a" * (1 << 20))
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


def test_a_scope_follows_from_registry_and_path_alone() -> None:
    scope = Reference.parse("reg.io/a:1").repository.scope
    assert Reference.parse(f"REG.io/a:2@{DIGEST}").repository.scope == scope
    assert len(scope) == 32
    assert set(scope) <= set(string.hexdigits.lower())
    others = ["reg.io/b", "reg.io:443/a", "reg.io/a/a", "reg.example/a"]
    assert len({scope, *(Reference.parse(other).repository.scope for other in others)}) == 5


@pytest.mark.parametrize(
    ("registry", "host", "port"),
    [("reg.io", "reg.io", None), ("reg.io:5000", "reg.io", 5000), ("[::1]", "[::1]", None), ("[::1]:80", "[::1]", 80)],
)
def test_a_registry_is_host_and_port(registry: str, host: str, port: int | None) -> None:
    assert split_port(registry) == (host, port)
    assert Repository(registry, "a").host == host.strip("[]")


# -- properties

COMPONENT = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|--?)[a-z0-9]{1,4}){0,2}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9]{1,4}\.[A-Za-z0-9]{1,4}(-[a-z]{1,3})?|localhost|\[::[0-9a-f]{1,4}\]", fullmatch=True)
REGISTRIES = st.one_of(HOSTS, st.tuples(HOSTS, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
PATHS = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
TAGS = st.just("") | st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
DIGESTS = st.just("") | st.binary(min_size=1, max_size=8).map(lambda data: f"@{Digest.of(data)}")
VALID = st.tuples(REGISTRIES, st.just("/"), PATHS, TAGS, DIGESTS).map("".join)
ALPHABET = "aB1./:@_-[]%\n "
NEARLY = st.tuples(VALID, st.integers(0, 30), st.sampled_from(ALPHABET)).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
)


def oracle(text: str) -> tuple[str, str, str | None, str | None] | None:
    """What the reference grammar of the field makes of it; None when it refuses."""
    try:
        found = Oracle.parse_normalized_named(text)
    except (InvalidReference, ValueError):
        return None
    registry, path = found.split_hostname()
    return registry.lower(), path, found["tag"], found["digest"]


@given(VALID)
def test_valid_references_read_as_in_the_field(text: str) -> None:
    registry, path, tag, digest = parts(text)
    assert (registry, path, tag if ":" in text.partition("/")[2].partition("@")[0] else None, digest) == oracle(text)


@given(NEARLY | st.text(ALPHABET, max_size=40))
@example("reg.io/" + "a" * MAX_PATH_CHARACTERS)
@example("docker.io/" + "a" * MAX_PATH_CHARACTERS)
def test_nothing_is_accepted_that_the_field_refuses(text: str) -> None:
    try:
        registry, path, _, digest = parts(text)
    except InvalidRequest:
        return
    expected = oracle(text)
    assert expected is not None
    assert (registry, path, digest) == (expected[0], expected[1], expected[3])


@given(VALID | NEARLY | st.text())
def test_canonical_text_is_a_fixed_point(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidRequest:
        return
    assert str(reference).isascii()
    assert Reference.parse(str(reference)) == reference
    assert str(Reference.parse(str(reference))) == str(reference)
