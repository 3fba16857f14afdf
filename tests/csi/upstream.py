"""The published contracts, as descriptors: fetched as Go modules by the ordinary Go client, compiled here, never
committed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

# Options of the contracts are read through the extensions that our own stubs register.
from csi.v1 import csi_pb2  # noqa: F401

SUMS = {
    "github.com/container-storage-interface/spec@v1.13.0": "h1:6ja3nYoACisewTPAAZkJ1pbf4+1ehhvt9Z/nYgWGHGw=",
    "github.com/container-storage-interface/spec@v1.12.0": "h1:zrFOEqpR5AghNaaDG4qyedwPBqU2fU0dWjLQMP/azK0=",
    "k8s.io/kubelet@v0.34.1": "h1:doAaTA9/Yfzbdq/u/LveZeONp96CwX9giW6b+oHn4m4=",
}
"""Which modules are meant, to the byte."""


def contract(module: str, proto: str, scratch: Path) -> descriptor_pb2.FileDescriptorProto:
    """The file `proto` of `module` ("path@version"). Fails the test, and doesn't skip it, when there is no Go or no
    module.
    """
    go = shutil.which("go")
    if go is None:
        pytest.fail(
            "comparing the wire contracts with the published ones needs Go: install the package golang-go, "
            "or Go itself from go.dev/dl, and put it on the PATH"
        )
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    fetched = subprocess.run(
        [go, "mod", "download", "-json", module],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    answer = json.loads(fetched.stdout or "{}")
    if fetched.returncode != 0:
        pytest.fail(f"Go cannot fetch {module}; is there a network? {answer.get('Error', fetched.stderr)}")
    assert answer["Sum"] == SUMS[module]
    return compiled(Path(answer["Dir"]) / proto, scratch)


def compiled(proto: Path, scratch: Path) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of one file, without its imports."""
    output = scratch / "descriptors"
    well_known = resources.files("grpc_tools") / "_proto"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{proto.parent}",
        f"-I{well_known}",
        f"--descriptor_set_out={output}",
        proto.name,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    return file
