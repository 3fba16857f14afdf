"""The contracts in `protos/` say what the published ones say, and the committed stubs say what the contracts do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from csi.registration import registration_pb2
from csi.v1 import csi_pb2
from tests.csi import upstream

ROOT = Path(__file__).parents[2]
SPECIFICATION = "github.com/container-storage-interface/spec@v1.13.0"
BEFORE = "github.com/container-storage-interface/spec@v1.12.0"
KUBELET = "k8s.io/kubelet@v0.34.1"

LEFT_OUT = {
    "Controller": {"CreateSnapshot", "DeleteSnapshot", "ListSnapshots", "GetSnapshot"}
    | {"ControllerListVolumeHealth", "ControllerGetVolumeHealth"},
    "Node": {"NodeGetVolumeHealth", "NodeGetStorageHealth"},
    "Identity": set[str](),
}
"""Methods of our services that `protos/` doesn't have. A method that a later version adds shows up here."""

KEPT = {
    ".VolumeCondition",
    ".VolumeCondition.abnormal",
    ".VolumeCondition.message",
    ".NodeGetVolumeStatsResponse.volume_condition",
    ".NodeServiceCapability.RPC.Type.VOLUME_CONDITION",
}
"""What 1.13 removed and 1.12 has: kubelets still speak it."""

Facts = dict[str, tuple[Any, ...]]


def facts(file: descriptor_pb2.FileDescriptorProto) -> Facts:
    """Everything a contract says about messages, fields, enumerations, extensions and options, by full name."""
    found: Facts = {}
    _note_messages("", file.message_type, found)
    _note_enums("", file.enum_type, found)
    for extension in file.extension:
        found[f"extension {extension.name}"] = _field(extension, extension.extendee)
    return found


def _note_messages(scope: str, messages: Iterable[descriptor_pb2.DescriptorProto], found: Facts) -> None:
    for message in messages:
        name = f"{scope}.{message.name}"
        found[name] = ("message", _options(message))
        oneofs = [oneof.name for oneof in message.oneof_decl]
        for field in message.field:
            oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else ""
            found[f"{name}.{field.name}"] = _field(field, oneof)
        _note_enums(name, message.enum_type, found)
        _note_messages(name, message.nested_type, found)


def _note_enums(scope: str, enums: Iterable[descriptor_pb2.EnumDescriptorProto], found: Facts) -> None:
    for enum in enums:
        found[f"{scope}.{enum.name}"] = ("enum", _options(enum))
        for value in enum.value:
            found[f"{scope}.{enum.name}.{value.name}"] = (value.number, _options(value))


def _field(field: descriptor_pb2.FieldDescriptorProto, where: str) -> tuple[Any, ...]:
    return (field.number, field.type, field.type_name, field.label, field.proto3_optional, where, _options(field))


def _options(described: Any) -> bytes:
    options: Message = described.options
    return options.SerializeToString(deterministic=True)


def methods(file: descriptor_pb2.FileDescriptorProto) -> dict[str, Facts]:
    """The methods of each service."""
    return {
        service.name: {
            m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming, _options(m))
            for m in service.method
        }
        for service in file.service
    }


def own(module: Any) -> descriptor_pb2.FileDescriptorProto:
    """The contract that our stubs carry."""
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def within(known: Facts, name: str) -> Iterator[str]:
    """The names directly inside the message or enumeration `name`."""
    return (other for other in known if other.startswith(f"{name}.") and "." not in other[len(name) + 1 :])


@pytest.fixture(scope="module")
def specification(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    return upstream.contract(SPECIFICATION, "csi.proto", tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    return upstream.contract(BEFORE, "csi.proto", tmp_path_factory.mktemp("old"))


def test_every_message_field_enumeration_and_option_of_ours_is_the_specifications(
    specification: descriptor_pb2.FileDescriptorProto,
) -> None:
    ours, theirs = facts(own(csi_pb2)), facts(specification)
    assert len(ours) > 250
    assert _differences({name: fact for name, fact in ours.items() if name not in KEPT}, theirs) == {}


def test_every_message_and_enumeration_of_ours_is_whole(specification: descriptor_pb2.FileDescriptorProto) -> None:
    ours, theirs = facts(own(csi_pb2)), facts(specification)
    for name in ours:
        assert set(within(theirs, name)) <= set(within(ours, name)), name


def test_every_method_of_ours_is_the_specifications_and_only_the_known_ones_are_missing(
    specification: descriptor_pb2.FileDescriptorProto,
) -> None:
    ours, theirs = methods(own(csi_pb2)), methods(specification)
    assert set(ours) == {"Identity", "Controller", "Node"}
    for service, known in ours.items():
        assert _differences(known, theirs[service]) == {}
        assert set(theirs[service]) - set(known) == LEFT_OUT[service]


def test_what_the_specification_removed_is_as_it_was_and_its_numbers_are_still_reserved(
    specification: descriptor_pb2.FileDescriptorProto, before: descriptor_pb2.FileDescriptorProto
) -> None:
    ours, old, new = facts(own(csi_pb2)), facts(before), facts(specification)
    assert _differences({name: ours[name] for name in KEPT}, old) == {}
    assert KEPT.isdisjoint(new)
    messages = {message.name: message for message in specification.message_type}
    (rpc,) = (m for m in messages["NodeServiceCapability"].nested_type if m.name == "RPC")
    (kind,) = (e for e in rpc.enum_type if e.name == "Type")
    assert [(r.start, r.end) for r in kind.reserved_range] == [(4, 4)]
    assert [(r.start, r.end) for r in messages["NodeGetVolumeStatsResponse"].reserved_range] == [(2, 3)]


def test_the_registration_service_is_the_kubelets(tmp_path: Path) -> None:
    theirs = upstream.contract(KUBELET, "pkg/apis/pluginregistration/v1/api.proto", tmp_path)
    ours = own(registration_pb2)
    assert ours.package == theirs.package == "pluginregistration"
    assert facts(ours) == facts(theirs)
    assert methods(ours) == methods(theirs)


def test_the_comparison_notices_a_changed_number_type_option_and_name(
    specification: descriptor_pb2.FileDescriptorProto,
) -> None:
    theirs = facts(specification)
    for change in ("number", "type", "options", "name"):
        file = own(csi_pb2)
        (message,) = (m for m in file.message_type if m.name == "DeleteVolumeRequest")
        field = message.field[1]
        if change == "number":
            field.number = 3
        elif change == "type":
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
        elif change == "options":
            field.ClearField("options")
        else:
            field.name = "secret"
        assert len(_differences({n: f for n, f in facts(file).items() if n not in KEPT}, theirs)) == 1, change


def test_without_go_the_comparison_fails_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="install the package golang-go"):
        upstream.contract(SPECIFICATION, "csi.proto", tmp_path)


def _differences(
    ours: Mapping[str, tuple[Any, ...]], theirs: Mapping[str, tuple[Any, ...]]
) -> dict[str, tuple[Any, Any]]:
    return {name: (fact, theirs.get(name)) for name, fact in ours.items() if theirs.get(name) != fact}


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "scripts" / "protos", "--check"],
        env={**os.environ, "STUBS_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contracts, the stubs and the script, to be spoilt."""
    for part in ("protos", "csi", "scripts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_stubs_are_what_the_protos_generate() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_proto_is_drift_until_the_stubs_are_generated_again(copy: Path) -> None:
    proto = copy / "protos/csi/registration/registration.proto"
    proto.write_text(proto.read_text().replace("string error = 2", "string reason = 2"))
    done = check(copy)
    assert done.returncode == 1
    assert "run scripts/protos" in done.stderr
    subprocess.run([copy / "scripts/protos"], env={**os.environ, "STUBS_PYTHON": sys.executable}, check=True, timeout=100)
    assert check(copy).returncode == 0
    assert (copy / "csi/__init__.py").exists()


@pytest.mark.parametrize("spoil", ["changed", "missing", "stray"])
def test_a_stub_that_is_changed_missing_or_generated_by_nothing_is_drift(copy: Path, spoil: str) -> None:
    stub = copy / "csi/v1/csi_pb2.pyi"
    if spoil == "changed":
        stub.write_text(stub.read_text() + "# by hand\n")
    elif spoil == "missing":
        stub.unlink()
    else:
        (copy / "csi/v1/old_pb2.py").write_text("")
    assert check(copy).returncode == 1
