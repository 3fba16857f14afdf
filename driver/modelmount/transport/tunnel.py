"""A connection through the proxy that the admin names: CONNECT, for http as for https (RFC 9110, 9.3.6).

The proxy resolves names, so what it may reach is its own rules' business; an address is judged here as without it,
in each of its spellings.
"""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import Final

from modelmount.errors import Forbidden, Unavailable
from modelmount.transport import addresses
from modelmount.transport.addresses import Reach
from modelmount.transport.dial import Dialer, Timed
from modelmount.transport.trust import Trust
from modelmount.transport.url import Url

MAX_ANSWER_BYTES: Final = 16 << 10
_MAX_LOGIN_BYTES: Final = 4096
_WANTS_LOGIN: Final = 407
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


def tunnel(dialer: Dialer, trust: Trust, host: str, port: int, timeout: float) -> Timed:
    """A socket that is connected to `host` through `trust.proxy`, within `timeout` seconds, which are then its timeout.

    Raises Forbidden for an address that `trust.reach` doesn't cover, Unavailable for everything else, also where the
    file with the proxy's login can't be used; nothing of that is in any message.
    """
    _judge(host, trust.reach)
    login = _login(trust.proxy_login) if trust.proxy_login is not None else ""
    deadline = time.monotonic() + timeout
    proxy = Url.parse(trust.proxy)
    try:
        sock = dialer.connect(proxy.host, proxy.port, Reach.ANYWHERE, timeout)
    except Unavailable as e:
        raise Unavailable(f"the proxy {proxy.authority}: {e.message}", unreachable=e.unreachable) from e
    try:
        sock.deadline = deadline
        there = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        sock.sendall(f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n{login}\r\n".encode("ascii"))
        status = _status(sock)
        if status == _WANTS_LOGIN:
            raise Unavailable(
                f"the proxy {proxy.authority} doesn't take "
                + ("what proxy_login_file says" if login else "strangers; the admin has to set proxy_login_file")
            )
        if not 200 <= status < 300:
            raise Unavailable(f"the proxy {proxy.authority} lets nobody through to {there} (it answered {status})")
        sock.deadline = None
        sock.settimeout(timeout)
    except OSError as e:
        sock.close()
        raise Unavailable(f"the proxy {proxy.authority} didn't answer ({e.strerror or 'in time'})") from e
    except BaseException:
        sock.close()
        raise
    return sock


def _login(file: str) -> str:
    """The header that shows the name and password of this file (RFC 7617), read anew: they may be rotated."""
    try:
        with Path(file).open("rb") as opened:
            line = opened.read(_MAX_LOGIN_BYTES).rstrip(b"\r\n")
    except OSError as e:
        reason = f"can't be read ({e.strerror})"
        raise Unavailable(f"the proxy's login {file} {reason}; the admin has to put it right") from e
    if not re.fullmatch(rb"[^\x00-\x1f:]+:[^\x00-\x1f]+", line):
        raise Unavailable(f"the proxy's login {file} isn't name:password in one line; the admin has to put it right")
    return f"Proxy-Authorization: Basic {base64.b64encode(line).decode()}\r\n"


def _status(sock: Timed) -> int:
    """Read no byte beyond the head: what follows is the other side's. 0 where it isn't HTTP."""
    head, byte = bytearray(), memoryview(bytearray(1))
    while not head.endswith(b"\r\n\r\n"):
        if len(head) >= MAX_ANSWER_BYTES or not sock.recv_into(byte):
            return 0
        head += byte
    match = _STATUS.match(head)
    return int(match[1]) if match is not None else 0


def _judge(host: str, reach: Reach) -> None:
    address = addresses.spelled(host)
    kind = addresses.refusal(address, reach) if address is not None else None
    if kind is not None:
        raise Forbidden(
            f"{host} is a {kind} address, and those are not connected to; only the admin can allow that, by naming the "
            "host in registries"
        )
