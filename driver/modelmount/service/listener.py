"""One gRPC server on one unix socket, with threads of its own."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from modelmount.service import sockets

MESSAGE_BYTES = 4 << 20
"""Largest message either way; a larger one is answered RESOURCE_EXHAUSTED by gRPC."""
CONCURRENT_CALLS = 4096
"""Calls that may be under way or queue for a thread; more are answered RESOURCE_EXHAUSTED. A bound on memory, far above
a kubelet's needs.
"""


class Listener:
    """Serves `services` at `path` from `start` to `stop`; neither happens twice.

    `workers` threads run the calls that name no threads themselves.
    """

    def __init__(self, path: Path, services: Iterable[grpc.GenericRpcHandler], *, workers: int, name: str) -> None:
        self.path = path
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._server = grpc.server(
            self._threads,
            handlers=list(services),
            options=(
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
            ),
            maximum_concurrent_rpcs=CONCURRENT_CALLS,
        )
        self._socket: sockets.SocketName | None = None

    def start(self) -> None:
        """Bind and serve. Raises Precondition as `sockets.SocketName.bind` does."""
        self._socket = sockets.SocketName.bind(self._server, self.path)
        self._server.start()

    def is_reachable(self) -> bool:
        """Whether the path leads here still. A socket that was removed or replaced serves only who is connected
        already.
        """
        return self._socket is not None and self._socket.is_ours()

    def stop(self, grace_seconds: float) -> None:
        """Remove the socket, take no more calls, let the running ones finish for so long, cancel the rest."""
        if self._socket is not None:
            self._socket.release()
        self._server.stop(grace_seconds).wait()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._threads.shutdown(wait=False, cancel_futures=True)
