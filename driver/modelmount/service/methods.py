"""Tables of methods, and the gRPC service made of one.

A service class names its behaviours in a table instead of subclassing the generated servicer: what isn't in the table
is refused in one place, and each entry says which threads serve it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from modelmount.service import interceptors, ports, status


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. An `instant` one asks no disk, lock or other program, and is served by threads that nothing else can
    occupy.
    """

    name: str
    request: type[Message]
    behavior: interceptors.Behavior[Any]
    instant: bool
    level: int


def method(
    request: type[interceptors.Req],
    behavior: interceptors.Behavior[interceptors.Req],
    *,
    name: str = "",
    instant: bool = False,
    level: int = logging.DEBUG,
) -> Method:
    """An entry; without a name it has the request's, less the word Request. A success is logged at `level`."""
    return Method(name or request.DESCRIPTOR.name.removesuffix("Request"), request, behavior, instant, level)


def service(
    descriptor: ServiceDescriptor,
    table: Iterable[Method],
    instant_threads: ThreadPoolExecutor | None = None,
    observe: interceptors.Observe = interceptors.record,
) -> grpc.GenericRpcHandler:
    """The gRPC service of `table`. The descriptor's other methods answer UNIMPLEMENTED with a sentence, where gRPC
    itself says "Method not found!".

    Raises TypeError for an entry that the descriptor doesn't have in this form.
    """
    entries = {entry.name: entry for entry in table}
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
    for described in descriptor.methods:
        entry = entries.pop(described.name, None)
        if entry is None:
            entry = Method(described.name, Empty, _refusal(described.name), True, logging.DEBUG)
        elif entry.request.DESCRIPTOR is not described.input_type:
            raise TypeError(f"{descriptor.full_name}.{described.name} takes {described.input_type.full_name}")
        behavior = _Threaded(entry, observe, instant_threads if entry.instant else None)
        handlers[described.name] = grpc.unary_unary_rpc_method_handler(behavior)
    if entries:
        raise TypeError(f"{descriptor.full_name} has no {', '.join(entries)}")
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


class _Threaded(interceptors.Surrounded[Message]):
    """A behaviour that names its threads. grpcio reads the attribute; if it stopped to, the calls would go to the
    server's threads as usual.
    """

    def __init__(self, entry: Method, observe: interceptors.Observe, threads: ThreadPoolExecutor | None) -> None:
        super().__init__(entry.name, entry.request, entry.behavior, observe=observe, level=entry.level)
        self.experimental_thread_pool = threads


def _refusal(name: str) -> interceptors.Behavior[Empty]:
    def refuse(request: Empty, call: ports.Call) -> NoReturn:
        raise status.NotOffered(f"{name} isn't offered by this driver, or not in the mode of this instance")

    return refuse
