"""How hosts and proxies are spelled, wherever an admin names one."""

from __future__ import annotations

import re
from typing import Final

HOST_WORDS: Final = "host or host:port as it stands in references, in lower case, without scheme or path"
PROXY_WORDS: Final = (
    "a URL such as http://proxy.example.com:3128, without login (proxy_login_file) and path; https and SOCKS proxies "
    "are not spoken to"
)

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)


def is_host(text: str) -> bool:
    """Whether it is what HOST_WORDS say."""
    match = _HOST.fullmatch(text)
    return match is not None and (match["port"] is None or 1 <= int(match["port"]) <= 65535)


def is_proxy(text: str) -> bool:
    """Whether it is what PROXY_WORDS say. Empty is fine: there is none."""
    return not text or (text.startswith("http://") and is_host(text.removeprefix("http://")))
