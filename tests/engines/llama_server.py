"""llama.cpp's HTTP server on one GGUF: `llama_server.py MODEL HOST PORT`, run by an interpreter that has xllamacpp.

Prints its address in a line of its own once it serves. Ends with its standard input, or by a signal.
"""

from __future__ import annotations

import sys

import xllamacpp

CONTEXT_TOKENS = 256


def main(model: str, host: str, port: int) -> None:
    """Serve until standard input ends. Port 0 is any free one."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames, params.port = [host], port
    params.n_ctx, params.warmup = CONTEXT_TOKENS, False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
