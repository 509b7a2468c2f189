"""What a machine says, before it is kept or shown: bounded, and without what would play with a terminal.

A machine that is being made a proxy is not trusted: its output goes into messages, journals, a console and a terminal.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

KEPT_BYTES: Final = 1 << 20
"""Of one command's output its end is kept, and of its errors: what is read of them stands there."""
MOST_BYTES: Final = 64 << 20
"""A command that says more is not one of ours, and is ended. Package managers say some hundred kilobytes."""
_LINE_CHARS: Final = 4096
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]?"
)
_LEFT: Final = "\n\t"
_ERROR_CHARS: Final = 300
_LOG_CHARS: Final = 800
VALUE_CHARS: Final = 300
"""Of one fact about a machine."""


_TURNS: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of writing."""


def harmless(text: str) -> str:
    """Text as a terminal may show it, whoever wrote it: names of VMs, reasons that proxies give. No escape sequences,
    control characters but new lines and tabs, marks that turn the direction of writing.
    """
    if text.isprintable():
        return text
    text = _ESCAPES.sub("", text)
    return "".join(
        sign
        for sign in text
        if sign in _LEFT or (unicodedata.category(sign) != "Cc" and sign not in _TURNS)
    )


def clean(data: bytes) -> str:
    """Text of lines: no escape sequences, control characters, marks that turn the direction of writing; long lines
    are cut.
    """
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    text = _ESCAPES.sub("", text)
    if not text.isascii() or not text.replace("\n", "").isprintable():
        text = "".join(
            sign for sign in text if sign in _LEFT or not unicodedata.category(sign).startswith("C")
        )
    return "\n".join(line[:_LINE_CHARS] for line in text.split("\n"))


def reason_of(error: BaseException) -> str:
    """What an error of a connection says, for a message: it may be the machine's own words. Its kind where it says
    nothing.
    """
    text = clean(str(error).encode(errors="replace"))
    return " ".join(text.split())[:_ERROR_CHARS] or type(error).__name__


def in_one_line(text: str) -> str:
    """Lines of a log for a message: bounded, the end stays."""
    return " / ".join(line.strip() for line in text.splitlines() if line.strip())[-_LOG_CHARS:]


class Named:
    """What a look printed: lines of NAME=VALUE, a name perhaps more than once."""

    def __init__(self, text: str) -> None:
        self._found: dict[str, list[str]] = {}
        for line in text.splitlines():
            name, _, value = line.partition("=")
            self._found.setdefault(name, []).append(value.strip())

    def one(self, name: str) -> str:
        """The first, bounded; empty: it does not say that."""
        return self._found.get(name, [""])[0][:VALUE_CHARS]

    def all(self, name: str) -> list[str]:
        return self._found.get(name, [])


def number(text: str, otherwise: float) -> float:
    """What a machine that is not trusted yet says is a number: one that fits, or `otherwise`."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else otherwise


class Kept:
    """The end of what comes in pieces."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._data = bytearray()
        self.total_bytes = 0

    def add(self, piece: bytes) -> None:
        self.total_bytes += len(piece)
        self._data += piece
        if len(self._data) > 2 * self._most_bytes:
            del self._data[: -self._most_bytes]

    def text(self) -> str:
        return clean(bytes(self._data[-self._most_bytes :]))
