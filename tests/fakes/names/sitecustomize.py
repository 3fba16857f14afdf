"""A resolver for a driver in a process of its own: with this directory on PYTHONPATH, names that end in `.test` have
the addresses that the JSON file TEST_NAMES says; every other name is the machine's own matter.

`{"name.test": [["10.0.0.1"], ["::1", "10.0.0.2"]]}`: one list for each time it is asked for, the last one from then on.
An empty list is a name that doesn't exist, and a number in its place that many seconds of silence.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

_real = socket.getaddrinfo
_asked: collections.Counter[str] = collections.Counter()


def _lookup(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
    if not isinstance(host, str) or not host.endswith(".test"):
        return _real(host, port, *arguments, **options)
    answers = json.loads(Path(os.environ["TEST_NAMES"]).read_text()).get(host, [[]])
    answer = answers[min(_asked[host], len(answers) - 1)]
    _asked[host] += 1
    if not isinstance(answer, list):
        time.sleep(answer)
        answer = []
    if not answer:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [found for address in answer for found in _real(address, port, type=socket.SOCK_STREAM)]


socket.getaddrinfo = _lookup
