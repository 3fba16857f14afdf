"""The registry that other tests trust: it really stores, authenticates, redirects, and its log really tells what was
served.
"""

import base64
import http.client
import http.server
import io
import json
import tarfile
import threading
import urllib.parse
from functools import partial
from pathlib import Path

import pytest

from tests.fakes import push, tokens
from tests.fakes.registry import Registry, Tls

pytestmark = pytest.mark.registry


def model(directory: Path) -> Path:
    (directory / "sub/deep").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}\n')
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (directory / "sub/deep/tokenizer.json").write_text("{}\n")
    return directory


def get(registry: Registry, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = registry.connection()
    try:
        connection.request("GET", path, headers={"User-Agent": 'a "quoted" agent', **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_what_was_pushed_comes_back_and_each_request_is_counted_once(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    with Registry(tmp_path / "registry") as registry:
        pushed = push.Pusher(registry.host, registry.connection).artifact("models/tiny", "v1", push.oras(source))
        assert pushed.reference == f"{registry.host}/models/tiny:v1"
        registry.forget()
        status, headers, data = get(registry, "/v2/models/tiny/manifests/v1", Accept=push.MANIFEST)
        assert (status, headers["Docker-Content-Digest"], data) == (200, pushed.digest, pushed.document)
        for layer in json.loads(data)["layers"]:
            path = f"/v2/models/tiny/blobs/{layer['digest']}"
            assert get(registry, path)[2] == (source / layer["annotations"][push.TITLE]).read_bytes()
        weights = push.measure(source / "model.safetensors")[0]
        assert get(registry, f"/v2/models/tiny/blobs/{weights}", Range="bytes=1048000-")[0] == 206
        assert registry.blob_gets() == {**dict.fromkeys(pushed.layers, 1), weights: 2}
        assert [r.size for r in registry.requests() if r.status == 206] == [(1 << 20) - 1048000]
        assert [r.status for r in registry.manifest_requests()] == [200]
        assert {r.user_agent for r in registry.requests()} == {'a "quoted" agent'}
        assert registry.blob_file(weights).read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_stopped_registry_comes_back_on_its_port_with_its_content_and_its_counts(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    with Registry(tmp_path / "registry") as registry:
        pushed = push.Pusher(registry.host, registry.connection).artifact("m", "v1", push.oras(source))
        before = len(registry.requests())
        host = registry.host
        registry.stop(kill=True)
        with pytest.raises(ConnectionRefusedError):
            get(registry, "/v2/")
        assert len(registry.requests()) == before
        registry.start()
        assert registry.host == host
        assert get(registry, "/v2/m/manifests/v1", Accept=push.MANIFEST)[2] == pushed.document
        assert len(registry.requests()) == before + 1


def test_a_frozen_registry_is_silent_and_recovers(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        with registry.frozen():
            connection = registry.connection(timeout=0.2)
            connection.request("GET", "/v2/")
            with pytest.raises(TimeoutError):
                connection.getresponse()
            connection.close()
        assert get(registry, "/v2/")[0] == 200


def test_basic_authentication_lets_in_only_the_right_password(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", users={"alice": "p:ss wörd"}) as registry:
        status, headers, _ = get(registry, "/v2/")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic ")
        assert get(registry, "/v2/", Authorization=push.basic("alice", "wrong"))[0] == 401
        assert get(registry, "/v2/", Authorization=push.basic("alice", "p:ss wörd"))[0] == 200
        assert [r.status for r in registry.requests()] == [401, 401, 200]


def token_for(server: tokens.TokenServer, scope: str, authorization: str | None = None) -> str:
    query = urllib.parse.urlencode({"service": server.auth.service, "scope": scope})
    status, document = server.answer(query, authorization)
    assert status == 200
    return f"Bearer {document['token']}"


def test_bearer_tokens_open_exactly_what_they_were_given_for(tmp_path: Path) -> None:
    users = {"alice": tokens.User("secret", {"team/model": ("pull", "push")})}
    source = model(tmp_path / "model")
    with tokens.TokenServer(tmp_path, users=users) as server:
        with Registry(tmp_path / "registry", token=server.auth) as registry:
            status, headers, _ = get(registry, "/v2/team/model/manifests/v1")
            assert status == 401
            challenge = headers["WWW-Authenticate"]
            assert challenge.startswith(
                f'Bearer realm="{server.auth.realm}",service="test-registry",scope="repository:'
            )
            alice = push.basic("alice", "secret")
            token = token_for(server, "repository:team/model:pull,push", alice)
            pusher = push.Pusher(registry.host, registry.connection, authorization=token)
            pushed = pusher.artifact("team/model", "v1", push.oras(source))
            path = f"/v2/team/model/manifests/{pushed.digest}"
            assert get(registry, path, Authorization=token, Accept=push.MANIFEST)[0] == 200
            assert get(registry, path, Authorization=token_for(server, "repository:team/model:pull"))[0] == 401
            other = token_for(server, "repository:team/other:pull", alice)
            assert get(registry, path, Authorization=other)[0] == 401
        query = urllib.parse.urlencode({"scope": "repository:team/model:pull"})
        assert server.answer(query, push.basic("alice", "wrong"))[0] == 401
        server.harbor_style = True
        assert server.answer(query, push.basic("alice", "wrong"))[0] == 200
        connection = http.client.HTTPConnection(server.host, timeout=10)
        connection.request("GET", f"/token?{query}", headers={"Authorization": alice})
        assert json.loads(connection.getresponse().read())["expires_in"] == 300
        connection.close()
        assert [r.user for r in server.requests] == ["alice", None, "alice", "alice", "alice", "alice"]


def test_an_expired_token_is_refused_by_the_registry(tmp_path: Path) -> None:
    users = {"alice": tokens.User("secret")}
    with (
        tokens.TokenServer(tmp_path, users=users, lifetime_seconds=-120) as server,
        Registry(tmp_path / "registry", token=server.auth) as registry,
    ):
        token = token_for(server, "repository:a:pull", push.basic("alice", "secret"))
        assert get(registry, "/v2/a/manifests/v1", Authorization=token)[0] == 401
        server.lifetime_seconds = 60
        token = token_for(server, "repository:a:pull", push.basic("alice", "secret"))
        assert get(registry, "/v2/a/manifests/v1", Authorization=token)[0] == 404


def test_tls_is_trusted_by_its_own_ca_and_nobody_elses(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path / "tls")
    with Registry(tmp_path / "registry", tls=tls) as registry:
        assert registry.url.startswith("https://localhost:")
        assert get(registry, "/v2/")[0] == 200
        connection = http.client.HTTPSConnection("localhost", registry.port, timeout=10)
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            connection.request("GET", "/v2/")
        connection.close()


def test_a_redirecting_registry_sends_clients_to_its_storage(tmp_path: Path) -> None:
    handler = partial(QuietFiles, directory=str(tmp_path / "registry/storage"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_address[1]}/"
        with Registry(tmp_path / "registry", redirect_to=base) as registry:
            source = model(tmp_path / "model")
            pushed = push.Pusher(registry.host, registry.connection).artifact("m", "v1", push.oras(source))
            registry.forget()
            status, headers, _ = get(registry, f"/v2/m/blobs/{pushed.layers[0]}")
            assert status == 307
            assert headers["Location"].startswith(base)
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            connection.request("GET", urllib.parse.urlsplit(headers["Location"]).path)
            assert connection.getresponse().read() == (source / "config.json").read_bytes()
            connection.close()
            assert registry.blob_gets() == {pushed.layers[0]: 1}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def test_a_read_only_registry_refuses_pushes(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", read_only=True) as registry:
        with pytest.raises(push.RefusedError) as refused:
            push.Pusher(registry.host, registry.connection).artifact("m", "v1", push.oras(model(tmp_path / "model")))
        assert refused.value.status == 405


def test_a_configuration_the_registry_refuses_is_reported_with_its_words(tmp_path: Path) -> None:
    tls = Tls(tmp_path / "missing.pem", tmp_path / "missing.key", tmp_path / "missing-ca.pem")
    with pytest.raises(RuntimeError, match=r"missing\.pem"):
        Registry(tmp_path / "registry", tls=tls).start()


@pytest.mark.parametrize("packing", ["raw", "tar", "tar+gzip", "tar+zstd"])
def test_modelpack_layers_have_the_declared_form(tmp_path: Path, packing: push.Packing) -> None:
    source = model(tmp_path / "model")
    with Registry(tmp_path / "registry") as registry:
        pushed = push.Pusher(registry.host, registry.connection).artifact(
            "m", packing.replace("+", "-"), push.modelpack(source, packing=packing)
        )
        document = json.loads(pushed.document)
        assert document["artifactType"] == push.MODELPACK_ARTIFACT
        assert document["config"]["mediaType"] == push.MODELPACK_CONFIG
        for layer in document["layers"]:
            assert layer["mediaType"].endswith(f".v1.{packing}")
            path = layer["annotations"][push.FILEPATH]
            data = get(registry, f"/v2/m/blobs/{layer['digest']}")[2]
            if packing == "raw":
                assert data == (source / path).read_bytes()
            else:
                assert contents(push.decompress(data, packing)) == {path: (source / path).read_bytes()}


def contents(archive: bytes) -> dict[str, bytes | None]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return {m.name: file.read() if (file := members.extractfile(m)) else None for m in members}


def test_an_oras_directory_is_a_gzip_tar_with_prefixed_names(tmp_path: Path) -> None:
    artifact = push.oras(model(tmp_path / "model"), packed=["sub"])
    (layer,) = [layer for layer in artifact.layers if push.UNPACK in layer.annotations]
    assert isinstance(layer.content, bytes)
    archive = push.decompress(layer.content, "tar+gzip")
    assert layer.annotations[push.UNPACKED_DIGEST] == push.measure(archive)[0]
    assert contents(archive) == {"sub": None, "sub/deep": None, "sub/deep/tokenizer.json": b"{}\n"}
    assert [other.annotations[push.TITLE] for other in artifact.layers] == ["config.json", "model.safetensors", "sub"]


def test_the_same_directory_makes_the_same_artifact_twice(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    assert push.oras(source, packed=["sub"]) == push.oras(source, packed=["sub"])
    assert push.modelpack(source, packing="tar+zstd") == push.modelpack(source, packing="tar+zstd")
    archive = push.modelpack_archive(source, packing="tar+gzip")
    assert archive == push.modelpack_archive(source, packing="tar+gzip")
    assert isinstance(archive.layers[0].content, bytes)
    names = contents(push.decompress(archive.layers[0].content, "tar+gzip"))
    assert list(names) == ["config.json", "model.safetensors", "sub", "sub/deep", "sub/deep/tokenizer.json"]


def test_an_index_names_its_manifests_by_platform(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("m", "v1", push.oras(model(tmp_path / "model")))
        index = pusher.index("m", "multi", [(pushed, {"platform": {"os": "linux", "architecture": "amd64"}})])
        _, headers, data = get(registry, "/v2/m/manifests/multi", Accept=push.INDEX)
        assert headers["Content-Type"] == push.INDEX
        assert json.loads(data)["manifests"][0]["digest"] == pushed.digest
        assert index.pinned.endswith(headers["Docker-Content-Digest"])


def test_the_empty_config_carries_its_bytes(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        pusher = push.Pusher(registry.host, registry.connection)
        pushed = pusher.artifact("m", "v1", push.oras(model(tmp_path / "model")))
        config = json.loads(pushed.document)["config"]
        assert base64.b64decode(config["data"]) == b"{}"
        assert config["digest"] == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
