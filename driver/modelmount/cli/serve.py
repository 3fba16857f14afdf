"""`modelmount serve`: the CSI driver."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from modelmount import config
from modelmount.system import init


@click.command(
    short_help="Serve the CSI driver.",
    epilog="""\b
Examples:
  modelmount serve --config /etc/modelmount/config.toml     as in Kubernetes
  modelmount serve --mode controller --endpoint unix:///csi/csi.sock

Settings come from the configuration file, then MODELMOUNT_* and CSI_ENDPOINT in the environment, then these options;
`modelmount config show` has the outcome. It logs JSON lines on standard error and ends with SIGTERM; mounts stay.
""",
)
@click.option("--config", "file", metavar="FILE", help=f"Configuration file.  [default: {config.DEFAULT_CONFIG_PATH}]")
@click.option("--root", metavar="DIR", help="The store.")
@click.option("--mode", type=click.Choice(["all", "node", "controller"]), help="Which CSI services to serve.")
@click.option("--endpoint", metavar="unix://PATH", help="The CSI socket.")
@click.option("--node-id", metavar="NAME", help="This node's name in Kubernetes; the host's name if empty.")
@click.option("--driver-name", metavar="NAME", help="The driver's name in Kubernetes.")
@click.option("--kubelet-root", metavar="DIR", help="The kubelet's root directory.")
@click.option("--metrics-address", metavar="HOST:PORT", help="Where to serve /metrics and /healthz.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe level logged."
)
def serve(file: str | None, root: str | None, **flags: str | None) -> None:
    """Serve the CSI driver until SIGTERM: pulls models, mounts them into pods.

    A node's driver needs root and CAP_SYS_ADMIN; `--mode controller` needs neither. One driver at a time uses a store.
    """
    init.stand_in()
    overrides = {**flags, "root": None if root is None else str(Path(root).absolute())}
    settings = config.load(file, overrides=overrides)
    # gRPC's C core logs to standard error in a form of its own, and every line there is to be JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from modelmount import daemon  # here, for gRPC takes longer to import than all other commands together

    status = daemon.run(settings, lambda: config.load(file, overrides=overrides))
    sys.stderr.flush()
    # Everything has ended in order by now. A usual exit would join gRPC's threads, of which one may still be deep in a
    # request to a registry that doesn't answer.
    os._exit(status)
