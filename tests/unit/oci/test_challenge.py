"""What registries in the field write into WWW-Authenticate, and what else may stand there."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.oci import challenge
from modelmount.oci.challenge import Challenge

TOKENS = st.text(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-", min_size=1, max_size=10)
QUOTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=20)


def read(*values: str) -> list[tuple[str, dict[str, str], str]]:
    return [(found.scheme, dict(found.parameters), found.token68) for found in challenge.parse(values)]


def test_the_bearer_challenge_of_docker_hub() -> None:
    value = (
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
        'scope="repository:library/x:pull,push"'
    )
    parameters = {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:library/x:pull,push",
    }
    assert read(value) == [("bearer", parameters, "")]


def test_scheme_and_parameter_names_are_read_in_lower_case_and_values_as_they_are() -> None:
    assert read('BASIC Realm="Harbor Registry"') == [("basic", {"realm": "Harbor Registry"}, "")]


def test_one_header_may_hold_several_challenges() -> None:
    value = 'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"'  # RFC 9110 §11.6.1
    assert read(value) == [
        ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}, ""),
        ("basic", {"realm": "simple"}, ""),
    ]


def test_several_headers_are_read_in_order() -> None:
    assert [scheme for scheme, _, _ in read('Bearer realm="a"', "Negotiate", 'Basic realm="b"')] == [
        "bearer",
        "negotiate",
        "basic",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Basic", [("basic", {}, "")]),
        ("Negotiate, Basic realm=x", [("negotiate", {}, ""), ("basic", {"realm": "x"}, "")]),
        ("Negotiate YIIB+/w==", [("negotiate", {}, "YIIB+/w==")]),
        ('Negotiate YIIB==, Basic realm="x"', [("negotiate", {}, "YIIB=="), ("basic", {"realm": "x"}, "")]),
        (',, ,Basic realm="x", ,charset="UTF-8",', [("basic", {"realm": "x", "charset": "UTF-8"}, "")]),
        ('Basic realm = "x"', [("basic", {"realm": "x"}, "")]),
        ('Bearer realm="a"\r\n  ,service="b"', [("bearer", {"realm": "a", "service": "b"}, "")]),
        ('Basic realm=""', [("basic", {"realm": ""}, "")]),
        ('Basic realm="café"', [("basic", {"realm": "café"}, "")]),
    ],
)
def test_forms_that_the_grammar_allows(value: str, expected: list[tuple[str, dict[str, str], str]]) -> None:
    assert read(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Bearer realm=https://x:5000/token?a=b,service=q", {"realm": "https://x:5000/token?a=b", "service": "q"}),
        ('Bearer realm="a" service="b"', {"realm": "a", "service": "b"}),
    ],
)
def test_forms_that_the_field_writes_though_it_must_not(value: str, expected: dict[str, str]) -> None:
    assert read(value) == [("bearer", expected, "")]


def test_unknown_parameters_and_schemes_are_kept() -> None:
    assert read('Bearer error="insufficient_scope",x-new=1, Future') == [
        ("bearer", {"error": "insufficient_scope", "x-new": "1"}, ""),
        ("future", {}, ""),
    ]


def test_of_a_parameter_given_twice_the_first_counts() -> None:
    assert read('Bearer realm="https://right", REALM="https://wrong"') == [("bearer", {"realm": "https://right"}, "")]


@pytest.mark.parametrize(
    ("value", "schemes"),
    [
        ("", []),
        ('realm="x"', []),
        ('"Basic" realm=x', []),
        ('Bearer realm="https://never-ends', ["bearer"]),
        ('Basic realm="x"\x00, Bearer realm="y"', ["basic"]),
        ('Basic realm="a\x1bb"', ["basic"]),
        ("Bearer a b c", []),
        ("Bаsic realm=x", []),  # a Cyrillic letter
    ],
)
def test_a_header_counts_up_to_where_it_stops_making_sense(value: str, schemes: list[str]) -> None:
    found = read(value)
    assert [scheme for scheme, _, _ in found] == schemes
    assert all("never-ends" not in str(parameters) for _, parameters, _ in found)


def test_sizes_are_bounded() -> None:
    assert len(read(*["Basic"] * 1000)) == challenge.MAX_CHALLENGES
    assert len(read(",".join(["Basic"] * 1000))) == challenge.MAX_CHALLENGES
    many = "Bearer " + ",".join(f"p{number}=1" for number in range(1000))
    assert len(read(many)[0][1]) == challenge.MAX_PARAMETERS
    assert read("," * challenge.MAX_CHARACTERS + "Basic", "Basic") == []


def test_long_values_take_no_quadratic_time() -> None:
    for hostile in ("a" * (1 << 20), 'Basic realm="' + "\\" * (1 << 20), "Basic " + "a=" * (1 << 19), " " * (1 << 20)):
        challenge.parse([hostile])


@given(st.lists(st.text(max_size=100), max_size=5))
def test_no_header_raises(values: list[str]) -> None:
    for found in challenge.parse(values):
        assert found.scheme == found.scheme.lower()


@given(
    st.lists(st.tuples(TOKENS, st.dictionaries(TOKENS.map(str.lower), QUOTABLE, min_size=1, max_size=4)), max_size=5)
)
def test_what_is_written_by_the_grammar_is_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    written = ", ".join(
        scheme + " " + ",".join(f'{name}="{_quoted(value)}"' for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(found.scheme, dict(found.parameters)) for found in challenge.parse([written])] == [
        (scheme.lower(), parameters) for scheme, parameters in challenges
    ]


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def test_a_challenge_has_no_parameters_unless_given_some() -> None:
    assert Challenge("basic").parameters == {}
