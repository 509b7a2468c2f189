"""Tables for people and JSON for programs, on standard output.

What is shown has been said by proxies, vCenters and guests: nothing of it may play with the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from backup_server.deploy.said import harmless

if TYPE_CHECKING:
    from rich.console import Console

_GAP: Final = 3
"""Columns between two of a table."""
PLAIN_WIDTH: Final = 200
"""Columns where the output is not a terminal: rows stay whole for grep and for logs."""

STYLES: Final = {
    "success": "green",
    "ok": "green",
    "online": "green",
    "warning": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "failed": "red",
    "error": "red",
    "offline": "red",
    "cancelled": "magenta",
    "running": "cyan",
}


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else PLAIN_WIDTH,
        highlight=False,
        soft_wrap=not stream.isatty(),
        markup=False,
        emoji=False,
    )


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """One sentence on standard output."""
    print(harmless(text), flush=True)


def note(text: str) -> None:
    """Something that is not the answer: on standard error, so that pipes stay clean."""
    print(harmless(text), file=sys.stderr, flush=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    empty: str = "",
) -> None:
    """Print rows under their columns; `right` names the columns of figures. On a terminal on which not even single words
    fit beside each other: one row below the other.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[harmless(_text(value)) for value in row] for row in rows]
    if not cells and empty:
        say(empty)
        return
    figures = set(right)
    screen = console()
    least = [
        _least_width([column, *(row[place] for row in cells)], whole=column in figures)
        for place, column in enumerate(columns)
    ]
    if screen.is_terminal and sum(least) + _GAP * (len(least) - 1) > screen.width:
        _one_below_the_other(columns, cells)
        return
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column, width in zip(columns, least, strict=True):
        grid.add_column(
            column,
            justify="right" if column in figures else "left",
            overflow="fold",
            no_wrap=column in figures,
            # Else words are cut to pieces where others could have been put into two lines.
            min_width=width if screen.is_terminal else None,
        )
    for row in cells:
        grid.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    screen.print(grid)


def _least_width(texts: Iterable[str], *, whole: bool) -> int:
    """Columns of the longest word, or of the longest text."""
    from rich.cells import cell_len

    return max(cell_len(part) for text in texts for part in ([text] if whole else text.split() or [""]))


def _one_below_the_other(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows):
        if number:
            say("")
        facts(zip(columns, row, strict=True))


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """One object: a name and a value on each line."""
    known = [(name, _text(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        say(f"{name:<{width}}  {value}")


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "-"
    return str(value)
