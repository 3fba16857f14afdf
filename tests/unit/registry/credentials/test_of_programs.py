"""Credential helpers and the kubelet's provider plugins: real programs that note what they are asked."""

import json
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelmount.config import Auth, Registry, Settings
from modelmount.errors import InvalidRequest, Unavailable
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential, Credentials, plugins
from modelmount.registry.credentials.kept import Answer, Kept

REPOSITORY = Repository("harbor.example.com", "llm/x")
OTHER = Repository("harbor.example.com", "llm/y")
API = "credentialprovider.kubelet.k8s.io/v1"
PASSWORD = "sw0rdfish"


class Programs:
    """A directory of programs: each prints what its `answer` file says, and notes its question and arguments."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bin").mkdir()

    def make(self, name: str, answer: Any, status: int = 0) -> None:
        text = f"""\
            #!{sys.executable} -I
            import json, os, sys
            question = sys.stdin.read()
            with open({str(self.directory / name)!r} + ".asked", "a") as file:
                file.write(json.dumps([sys.argv[1:], question, dict(os.environ)]) + "\\n")
            sys.stdout.write({answer if isinstance(answer, str) else json.dumps(answer)!r})
            sys.stderr.write("{PASSWORD}")
            sys.exit({status})
            """
        path = self.directory / "bin" / name
        path.write_text(textwrap.dedent(text))
        path.chmod(0o755)

    def asked(self, name: str) -> list[tuple[list[str], str, dict[str, str]]]:
        path = self.directory / f"{name}.asked"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def credentials(self, *, docker: Any = None, providers: Any = None, audience: str = "") -> Credentials:
        auth: dict[str, Any] = {"program_dir": str(self.directory / "bin")}
        if docker is not None:
            auth["docker_config"] = str(self.directory / "config.json")
            Path(auth["docker_config"]).write_text(json.dumps(docker))
        if providers is not None:
            auth["provider_config"] = str(self.directory / "providers.yaml")
            document = {
                "apiVersion": "kubelet.config.k8s.io/v1",
                "kind": "CredentialProviderConfig",
                "providers": providers,
            }
            Path(auth["provider_config"]).write_text(yaml.safe_dump(document))
        registries = {"harbor.example.com": Registry(service_account_audience=audience)} if audience else {}
        return Credentials(Settings(auth=Auth(**auth), registries=registries))


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def of(username: str) -> Credential:
    return Credential(username=username, password=PASSWORD)


def provider(name: str, *patterns: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "apiVersion": API, "matchImages": list(patterns), "defaultCacheDuration": "1h", **more}


def response(auth: dict[str, str] | None, kind: str = "Image", **more: Any) -> dict[str, Any]:
    entries = {host: {"username": name, "password": PASSWORD} for host, name in (auth or {}).items()}
    return {
        "kind": "CredentialProviderResponse", "apiVersion": API, "cacheKeyType": kind, "auth": entries, **more,
    }  # fmt: skip


# -- docker's helpers


@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
def test_a_helper_is_asked_about_the_registry_and_its_answer_kept(programs: Programs, key: str) -> None:
    programs.make("docker-credential-vault", {"ServerURL": "x", "Username": "h", "Secret": PASSWORD})
    value = {"harbor.example.com": "vault"} if key == "credHelpers" else "vault"
    found = programs.credentials(docker={key: value})
    assert [found.find(each, {}) for each in (REPOSITORY, OTHER)] == [of("h"), of("h")]
    ((arguments, question, environment),) = programs.asked("docker-credential-vault")
    assert (arguments, question) == (["get"], "harbor.example.com")
    assert PASSWORD not in str(environment)


def test_docker_hub_has_its_old_name_with_helpers(programs: Programs) -> None:
    programs.make("docker-credential-vault", {"Username": "<token>", "Secret": "refresh"})
    found = programs.credentials(docker={"credHelpers": {"https://index.docker.io/v1/": "vault"}})
    assert found.find(Repository("docker.io", "ai/x"), {}) == Credential(identity_token="refresh")
    assert found.find(REPOSITORY, {}).is_anonymous
    assert [question for _, question, _ in programs.asked("docker-credential-vault")] == ["https://index.docker.io/v1/"]


def test_entries_of_the_file_come_before_its_helper_and_the_registrys_helper_before_the_general(
    programs: Programs,
) -> None:
    programs.make("docker-credential-own", {"Username": "own", "Secret": PASSWORD})
    programs.make("docker-credential-all", {"Username": "all", "Secret": PASSWORD})
    docker = {
        "auths": {"harbor.example.com/llm/y": {"username": "entry", "password": PASSWORD}, "harbor.example.com": {}},
        "credHelpers": {"harbor.example.com": "own"},
        "credsStore": "all",
    }
    found = programs.credentials(docker=docker)
    assert [found.find(each, {}) for each in (OTHER, REPOSITORY)] == [of("entry"), of("own")]
    assert found.find(Repository("other.example.com", "x"), {}) == of("all")


def test_a_helper_without_an_entry_is_as_good_as_none(programs: Programs) -> None:
    programs.make("docker-credential-vault", "credentials not found in native keychain\n", status=1)
    assert programs.credentials(docker={"credsStore": "vault"}).find(REPOSITORY, {}).is_anonymous


@pytest.mark.parametrize(
    ("name", "answer", "status"),
    [
        ("vault", f"{PASSWORD} went wrong", 1),
        ("vault", f"not JSON {PASSWORD}", 0),
        ("vault", {"Username": PASSWORD}, 0),
        ("missing", "", 0),
        ("../vault", "", 0),
    ],
)
def test_a_helper_that_fails_is_the_admins_to_put_right(
    programs: Programs, name: str, answer: Any, status: int
) -> None:
    programs.make("docker-credential-vault", answer, status)
    with pytest.raises(Unavailable, match="credential helper") as told:
        programs.credentials(docker={"credsStore": name}).find(REPOSITORY, {})
    error: BaseException | None = told.value
    while error is not None:
        assert PASSWORD not in str(error)
        error = error.__cause__
    assert (programs.asked("docker-credential-vault") == []) == (name != "vault")


def test_a_helper_that_a_pods_secret_names_is_not_started(programs: Programs) -> None:
    programs.make("docker-credential-vault", {"Username": "h", "Secret": PASSWORD})
    secret = json.dumps({"auths": {}, "credsStore": "vault", "credHelpers": {"harbor.example.com": "vault"}})
    assert programs.credentials().find(REPOSITORY, {".dockerconfigjson": secret}).is_anonymous
    assert programs.asked("docker-credential-vault") == []


# -- the kubelet's plugins


def test_a_plugin_gets_the_image_without_a_tag_and_its_arguments_and_environment(programs: Programs) -> None:
    programs.make("ecr", response({"*.example.com": "plugin"}))
    more = {"args": ["get-credentials"], "env": [{"name": "PROFILE", "value": "models"}]}
    found = programs.credentials(providers=[provider("ecr", "*.example.com", **more)])
    assert found.find(REPOSITORY, {}) == of("plugin")
    ((arguments, question, environment),) = programs.asked("ecr")
    assert arguments == ["get-credentials"]
    assert environment["PROFILE"] == "models"
    assert json.loads(question) == {
        "kind": "CredentialProviderRequest",
        "apiVersion": API,
        "image": "harbor.example.com/llm/x",
    }


@pytest.mark.parametrize(("kind", "runs"), [("Image", 2), ("Registry", 1), ("Global", 1)])
def test_an_answer_is_kept_for_what_it_says_it_is_good_for(programs: Programs, kind: str, runs: int) -> None:
    programs.make("ecr", response({"harbor.example.com": "plugin"}, kind))
    found = programs.credentials(providers=[provider("ecr", "*.example.com")])
    for _ in range(2):
        assert [found.find(each, {}) for each in (REPOSITORY, OTHER)] == [of("plugin")] * 2
    assert len(programs.asked("ecr")) == runs


@pytest.mark.parametrize(
    ("said", "default", "runs"), [("0s", "1h", 2), (None, "0s", 2), ("5m0s", "0s", 1), (None, "1h", 1)]
)
def test_an_answer_is_kept_for_as_long_as_it_says(
    programs: Programs, said: str | None, default: str, runs: int
) -> None:
    programs.make("ecr", response({"harbor.example.com": "plugin"}, cacheDuration=said))
    found = programs.credentials(providers=[provider("ecr", "*.example.com", defaultCacheDuration=default)])
    assert [found.find(REPOSITORY, {}) for _ in range(2)] == [of("plugin")] * 2
    assert len(programs.asked("ecr")) == runs


def test_the_longest_path_of_an_answer_wins_and_only_matching_plugins_run(programs: Programs) -> None:
    programs.make("ecr", response({"harbor.example.com": "wide", "harbor.example.com/llm/x": "narrow"}))
    programs.make("other", response({"harbor.example.com": "wrong"}))
    patterns = ["harbor.example.com:8443", "*.*.example.com", "example.com", "harbor.example.com/llm/z"]
    found = programs.credentials(providers=[provider("other", *patterns), provider("ecr", "*.example.com/llm")])
    assert [found.find(each, {}) for each in (REPOSITORY, OTHER)] == [of("narrow"), of("wide")]
    assert programs.asked("other") == []
    assert found.find(Repository("harbor.example.com", "public/x"), {}).is_anonymous


def test_a_plugin_without_a_credential_lets_the_next_one_try(programs: Programs) -> None:
    programs.make("first", response(None))
    programs.make("second", response({"harbor.example.com": "plugin"}))
    found = programs.credentials(providers=[provider(name, "*.example.com") for name in ("first", "second")])
    assert found.find(REPOSITORY, {}) == of("plugin")


def test_what_a_volume_or_the_nodes_file_has_comes_before_any_plugin(programs: Programs) -> None:
    programs.make("ecr", response({"harbor.example.com": "plugin"}))
    docker = {"auths": {"harbor.example.com/llm/y": {"username": "entry", "password": PASSWORD}}}
    found = programs.credentials(docker=docker, providers=[provider("ecr", "*.example.com")])
    assert found.find(OTHER, {}) == of("entry")
    assert found.find(REPOSITORY, {"username": "pod", "password": PASSWORD}) == of("pod")
    assert programs.asked("ecr") == []
    assert found.find(REPOSITORY, {}) == of("plugin")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (PASSWORD, 0),
        ({"kind": "Other"}, 0),
        (response({"harbor.example.com": "x"}, "Node"), 0),
        (response({"harbor.example.com": "x"}, cacheDuration="soon"), 0),
        (response({"harbor.example.com": "x"}, cacheDuration=5), 0),
        (response({"harbor.example.com": "x"}, apiVersion=API + "beta1"), 0),
        (response({"harbor.example.com": "x"}), 1),
        ({**response(None), "auth": {"harbor.example.com": {"auth": PASSWORD}}}, 0),
    ],
)
def test_a_plugin_that_fails_is_not_replaced_by_anything_else(programs: Programs, answer: Any, status: int) -> None:
    programs.make("ecr", answer, status)
    programs.make("next", response({"harbor.example.com": "plugin"}))
    found = programs.credentials(providers=[provider(name, "*.example.com") for name in ("ecr", "next")])
    with pytest.raises(Unavailable, match="credential provider") as told:
        found.find(REPOSITORY, {})
    assert PASSWORD not in str(told.value)
    assert programs.asked("next") == []


def test_a_slow_plugin_is_given_up(programs: Programs) -> None:
    path = programs.directory / "bin/slow"
    path.write_text("#!/bin/sh\nexec sleep 600\n")
    path.chmod(0o755)
    config = programs.directory / "slow.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kubelet.config.k8s.io/v1",
                "kind": "CredentialProviderConfig",
                "providers": [provider("slow", "*.example.com")],
            }
        )
    )
    auth = Auth(provider_config=str(config), program_dir=str(path.parent), program_seconds=0.5)
    with pytest.raises(Unavailable, match=r"slow didn't end within 0.5 s"):
        Credentials(Settings(auth=auth)).find(REPOSITORY, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "kind: [",
        "apiVersion: kubelet.config.k8s.io/v9\nkind: CredentialProviderConfig\nproviders: []",
        yaml.safe_dump({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig"}),
    ],
)
def test_a_configuration_that_cannot_be_used_is_the_admins_to_put_right(programs: Programs, text: str) -> None:
    found = programs.credentials(providers=[])
    (programs.directory / "providers.yaml").write_text(text)
    with pytest.raises(Unavailable, match=r"credential providers' configuration .* the admin has to put it right"):
        found.find(REPOSITORY, {})


@pytest.mark.parametrize(
    "wrong",
    [{"name": "../x"}, {"apiVersion": "v2"}, {"matchImages": []}, {"defaultCacheDuration": "1 day"}, {"args": "x"}],
)
def test_a_provider_with_a_mistake_is_the_admins_to_put_right(programs: Programs, wrong: dict[str, Any]) -> None:
    found = programs.credentials(providers=[{**provider("ecr", "*.example.com"), **wrong}])
    with pytest.raises(Unavailable, match="credential providers' configuration"):
        found.find(REPOSITORY, {})


def test_durations_are_gos() -> None:
    assert [plugins.seconds_of(text) for text in ("0", "0s", "12h", "5m0s", "1.5h", "250ms")] == [
        0, 0, 43200, 300, 5400, 0.25,
    ]  # fmt: skip


def test_a_duration_without_end_is_refused_at_once() -> None:
    """Looked through for units it would take the square of its length, which a program may make a mebibyte: so its
    length is looked at first, also where each unit of it is right.
    """
    most = "1s" * (plugins.MAX_DURATION_CHARACTERS // 2)
    assert plugins.seconds_of(most) == len(most) // 2
    for text in (most + "1s", "9" * 20_000):
        with pytest.raises(ValueError, match="is no duration"):
            plugins.seconds_of(text)


def test_of_many_who_want_the_same_one_asks() -> None:
    kept, asked, inside = Kept(), [], threading.Event()

    def ask() -> Answer:
        asked.append(1)
        inside.wait(0.2)
        return Answer(("k",), {"a": 1}, 60)

    threads = [threading.Thread(target=lambda: kept.get([("k",)], 30, ask)) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_what_is_kept_ends() -> None:
    now = [0.0]
    kept = Kept(lambda: now[0])
    asked: list[float] = []

    def ask() -> Answer:
        asked.append(now[0])
        return Answer(("k",), {}, 60)

    for when in (0.0, 59.0, 60.0, 61.0):
        now[0] = when
        kept.get([("k",)], 30, ask)
    assert asked == [0.0, 60.0]


# -- tokens of service accounts


def tokens(**audiences: str) -> str:
    return json.dumps({name: {"token": token, "expirationTimestamp": "x"} for name, token in audiences.items()})


def test_a_service_accounts_token_is_for_registries_with_its_audience(programs: Programs) -> None:
    programs.make("docker-credential-all", {"Username": "all", "Secret": PASSWORD})
    found = programs.credentials(docker={"credsStore": "all"}, audience="models")
    both = tokens(models="jwt-m", other="jwt-o")
    assert found.find(REPOSITORY, {}, both) == Credential(account_token="jwt-m")
    assert found.find(REPOSITORY, {"username": "pod", "password": PASSWORD}, both) == of("pod")
    assert found.find(REPOSITORY, {}, tokens(other="jwt-o")) == of("all")
    assert found.find(Repository("evil.example.com", "x"), {}, both) == of("all")


@pytest.mark.parametrize(
    "wrong", ["nonsense sw0rdfish", "[]", '{"models": {"token": "a b"}}', '{"models": "sw0rdfish"}']
)
def test_malformed_tokens_are_refused_without_showing_them(programs: Programs, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="service account") as told:
        programs.credentials(audience="models").find(REPOSITORY, {}, wrong)
    assert PASSWORD not in str(told.value)


def test_a_plugin_gets_the_token_it_wants_and_answers_are_kept_for_that_account_alone(programs: Programs) -> None:
    programs.make("gar", response({"harbor.example.com": "plugin"}, "Global"))
    wants = {"serviceAccountTokenAudience": "gar", "requireServiceAccount": True}
    found = programs.credentials(providers=[provider("gar", "*.example.com", tokenAttributes=wants)])
    assert found.find(REPOSITORY, {}).is_anonymous
    for token in ("jwt-one", "jwt-two", "jwt-one"):
        assert found.find(REPOSITORY, {}, tokens(gar=token)) == of("plugin")
    shown = [json.loads(question)["serviceAccountToken"] for _, question, _ in programs.asked("gar")]
    assert shown == ["jwt-one", "jwt-two"]
    assert all("jwt-one" not in str((arguments, environment)) for arguments, _, environment in programs.asked("gar"))
