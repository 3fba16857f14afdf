"""What follows from the chart in deploy/helm, which is the one source: plain manifests, and the schema of `config`.

`--check-schema` compares the schema only and needs no helm; tests/unit/deploy compares the manifests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from modelmount.config import Settings
from tests.fakes.tools import tool

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm"
SCHEMA = CHART / "values.schema.json"
NAMESPACE = "modelmount-system"
KUBERNETES = "1.34.0"
"""What `helm template` is told; the chart renders the same for every version that it allows."""
CHART_KNOWS_BETTER = (
    *("root", "mode", "endpoint", "driver_name", "node_id", "kubelet_root", "hosts_dir"),
    *("registration_dir", "registration_endpoint", "metrics_address", "kubernetes"),
)
"""Settings that follow from other values."""
PLAIN = ("namespace.create=true", "restartOnChange=false", "image.repository=modelmount", "image.tag=0")
MODEL_CLASS = (
    "storageClasses[0].name=model-qwen3-8b",
    "storageClasses[0].parameters.model=registry.example.com/llm/qwen3-8b:v1",
)
MANIFESTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "namespace.yaml": ("namespace.yaml", ()),
    "csidriver.yaml": ("csidriver.yaml", ()),
    "rbac.yaml": ("rbac.yaml", ()),
    "config.yaml": ("config.yaml", ()),
    "daemonset.yaml": ("daemonset.yaml", ()),
    "daemonset-sidecars.yaml": ("daemonset.yaml", ("sidecars.enabled=true",)),
    "controller.yaml": ("controller.yaml", ()),
    "storageclass.yaml": ("storageclass.yaml", MODEL_CLASS),
}
"""File in deploy/manifests: the chart's template, and what is set for it."""


def render(*arguments: str, template: str | None = None) -> str:
    """What `helm template` prints. Raises CalledProcessError with helm's sentence in `stderr`."""
    shown = () if template is None else ("--show-only", f"templates/{template}")
    command = (str(tool("helm")), "template", "modelmount", str(CHART), "--namespace", NAMESPACE)
    done = subprocess.run(
        [*command, "--kube-version", KUBERNETES, *shown, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def manifest(name: str) -> str:
    """The text of one file of deploy/manifests, as it has to be."""
    template, more = MANIFESTS[name]
    chosen = [part for value in (*PLAIN, *more) for part in ("--set-string" if "tag" in value else "--set", value)]
    lines = render(*chosen, template=template).replace("image: modelmount:0\n", "image: modelmount\n").splitlines()
    kept = [line for line in lines if not line.startswith("# Source:")]
    text = "\n".join(kept).strip("\n-") + "\n"
    return f"# Made from deploy/helm by scripts/manifests.\n{text}"


def settings_schema() -> dict[str, Any]:
    """The JSON schema of what an admin may put below `config`, definitions by name."""

    def lean(node: Any) -> Any:
        if isinstance(node, list):
            return [lean(each) for each in node]
        if not isinstance(node, dict):
            return node
        kept = {k: lean(v) for k, v in node.items() if k not in {"default", "title", "description", "required"}}
        if "properties" in node:  # names here, not keywords
            kept["properties"] = {name: lean(each) for name, each in node["properties"].items()}
        return kept

    definitions: dict[str, Any] = msgspec.json.schema(Settings)["$defs"]
    found = {name: lean(definition) for name, definition in sorted(definitions.items())}
    for key in CHART_KNOWS_BETTER:
        del found["Settings"]["properties"][key]
    return found


def schema() -> str:
    """The text of values.schema.json, as it has to be: by hand but for `$defs`."""
    document = json.loads(SCHEMA.read_text())
    document["$defs"] = settings_schema()
    return json.dumps(document, indent=2) + "\n"


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check-schema", action="store_true")
    if parser.parse_args().check_schema:
        if SCHEMA.read_text() != schema():
            sys.exit(f"{SCHEMA.relative_to(ROOT)} does not know the driver's settings any more; run scripts/manifests")
        return
    SCHEMA.write_text(schema())
    for name in MANIFESTS:
        (ROOT / "deploy/manifests" / name).write_text(manifest(name))


if __name__ == "__main__":
    main()
