"""The head of an answer: its status and its headers.

Everything about bodies is the standard library's. Its heads aren't: it has the email package read them, which takes
several times as long as all else that a small blob's request takes in Python, ends a line at characters that no other
reader of HTTP takes for an end, and takes a head that was cut off for a whole one.
"""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterable
from typing import Final

from modelmount.transport.dial import Timed

BUFFER_BYTES: Final = 64 << 10
"""So much may come along with the head: a small blob is received by one call."""
MAX_LINE_BYTES: Final = 64 << 10
MAX_LINES: Final = 100

# Blanks around a value are taken off afterwards: an expression that looks for them too tries each run of them again and
# again, for minutes where a line is long, and holds up everything else.
_BLANKS = b" \t"
_STATUS = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9]{2})( [^\r\n]*|[ \t]*)\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+):([^\r\n\0]*)\r?\n")
# Names have no colon, so that there is one way to read a head, and nothing to try again: it is read in one go.
_FIELDS = re.compile(rb"(?:[!-9;-~]++:[^\r\n\0]*+\r?\n)*+\r?\n")
_FOLDED = re.compile(rb"[ \t]([^\r\n\0]*)\r?\n")
LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
"""A Content-Length that makes sense."""
_SWITCHING, _NO_CONTENT, _NOT_MODIFIED = 101, 204, 304


class Fields:
    """The fields of a head. `values` are those of each, in the answer's order, by its name in lower case."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        """Names, in whatever case, and values."""
        self.values: dict[str, list[str]] = {}
        for name, value in pairs:
            self.values.setdefault(name.lower(), []).append(value)

    def get(self, name: str) -> str | None:
        """The value of the field with this name in lower case, those of a repeated one joined by commas (RFC 9110,
        5.3); None where there is none.
        """
        values = self.values.get(name)
        return None if values is None else ", ".join(values)


class Head(http.client.HTTPResponse):
    """An answer as http.client has them, whose headers are `fields`; `headers` and `msg` stay empty."""

    def __init__(self, sock: Timed, method: str) -> None:
        """Nothing is received yet."""
        super().__init__(sock, method=method)
        self._is_head = method == "HEAD"
        self.fp = io.BufferedReader(self.fp.detach(), BUFFER_BYTES)
        self.fields = Fields()

    def begin(self) -> None:
        """Read the head, and know from it how the body ends (RFC 9112, 6.3). What is said in between (1xx) is skipped.

        Raises HTTPException for what is no head, RemoteDisconnected for one that ends early, OSError.
        """
        while True:
            self._read_status_line()
            fields = self._read_fields()
            if not 100 <= self.status < 200 or self.status == _SWITCHING:
                break
        self.fields = fields
        self.chunked = (fields.get("transfer-encoding") or "").lower() == "chunked"
        self.chunk_left = None
        self.length = None
        if self._is_head or self.status in {_SWITCHING, _NO_CONTENT, _NOT_MODIFIED}:
            self.length = 0
        elif not self.chunked and LENGTH.fullmatch(declared := fields.get("content-length") or ""):
            self.length = int(declared)
        self.will_close = not self._stays() or (self.length is None and not self.chunked)

    def _stays(self) -> bool:
        said = (self.fields.get("connection") or "").lower()
        return "keep-alive" in said if self.version == 10 else "close" not in said

    def _read_status_line(self) -> None:
        line = self._line()
        match = _STATUS.fullmatch(line)
        if match is None:
            raise http.client.BadStatusLine(repr(line[:80]))
        self.version = 10 if match[1] == b"0" else 11
        self.code = self.status = int(match[2])
        self.reason = match[3].decode("latin-1").strip()

    def _read_fields(self) -> Fields:
        # Mostly all of it came along with the status, and each line is a header.
        if (whole := _FIELDS.match(self.fp.peek())) is not None:
            found = _FIELD.findall(whole[0])
            if len(found) < MAX_LINES:
                self.fp.read(whole.end())
                return Fields([(n.decode("latin-1"), v.strip(_BLANKS).decode("latin-1")) for n, v in found])
        fields: list[tuple[str, str]] = []
        for _ in range(MAX_LINES):
            line = self._line()
            if line in {b"\r\n", b"\n"}:
                return Fields(fields)
            if match := _FIELD.fullmatch(line):
                fields.append((match[1].decode("latin-1"), match[2].strip(_BLANKS).decode("latin-1")))
            elif fields and (match := _FOLDED.fullmatch(line)):  # obsolete, and read as one space (RFC 9112, 5.2)
                name, value = fields.pop()
                fields.append((name, f"{value} {match[1].strip(_BLANKS).decode('latin-1')}"))
            else:
                raise http.client.HTTPException("a line of the head is no header")
        raise http.client.HTTPException(f"the head has more than {MAX_LINES} lines")

    def _line(self) -> bytes:
        line = self.fp.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise http.client.LineTooLong("head")
        if not line.endswith(b"\n"):
            raise http.client.RemoteDisconnected("the other side closed the connection before its answer's body")
        return line
