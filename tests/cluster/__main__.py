"""The cluster for trying by hand: everything up, modelmount installed by its chart, and a shell."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.cluster import images
from tests.cluster.world import World


def main() -> None:
    """Bring it up, open a shell, take it down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with World(Path(os.environ["MODELMOUNT_CLUSTER"])) as world:
        model = world.model()
        print(
            f"\nKubernetes with modelmount. The registry is {world.registry.host}, it has {model.reference}, and pods "
            f"may use the image {images.BUSYBOX}. For example:\n\n"
            f"  kubectl get pods -A\n  kubectl apply -f {world.example(model)}\n  kubectl describe pod example\n\n"
            "Everything ends with this shell.",
            flush=True,
        )
        environment = {**os.environ, **world.cluster.environment(), "PS1": "cluster# "}
        subprocess.run(["/bin/bash", "--norc", "-i"], env=environment, check=False, cwd=world.directory)


if __name__ == "__main__":
    main()
