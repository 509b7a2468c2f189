"""Following what the server does on machines: a line for each step, and how it ended."""

from __future__ import annotations

import time
from typing import Any, Final

from backup_server import formats
from backup_server.cli import output
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit

POLL_S: Final = 0.5
PATIENCE_S: Final = 60.0
"""How long a server may be away while it is followed."""

app = noun("Operations: what the server does, or did last, on the machines of proxies.")


def follow(door: Door, operation: dict[str, Any]) -> dict[str, Any]:
    """The operation when it has ended. CliError with its reason when it failed, or when a person stops watching."""
    try:
        return _follow(door, operation)
    except KeyboardInterrupt:
        raise CliError(
            f"no longer watched; the server goes on with operation {operation['id'][:8]}: see "
            f"`{door.hint('operation list')}`",
            Exit.INTERRUPTED,
        ) from None


def _follow(door: Door, operation: dict[str, Any]) -> dict[str, Any]:
    told = 0
    away_since: float | None = None
    while True:
        for step in operation["steps"][told:]:
            output.note(f"  {step['name']}: {step['text']}")
        told = len(operation["steps"])
        if operation["state"] != "running":
            break
        time.sleep(POLL_S)
        try:
            operation = door.api.get(f"/operations/{operation['id']}")
            away_since = None
        except CliError as error:
            away_since = away_since or time.monotonic()
            if error.code is not Exit.UNREACHABLE or time.monotonic() - away_since > PATIENCE_S:
                raise
    if operation["state"] == "failed":
        raise CliError(str(operation["error"]), Exit.FAILED)
    return operation


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List operations, newest first."""
    items = list(door.api.items("/operations"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("id", "kind", "of", "state", "began", "last step", "error"),
        [
            (
                item["id"][:8],
                item["kind"],
                item["target"],
                item["state"],
                formats.moment(item["created_at"]),
                item["steps"][-1]["text"] if item["steps"] else None,
                item["error"],
            )
            for item in items
        ],
        empty="No operation was asked for yet.",
    )
