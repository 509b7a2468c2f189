"""`vmhaul doctor`: is everything in order, and what to do when it is not."""

from __future__ import annotations

from typing import Any, Final

import typer

from backup_server.cli import output
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit

MARKS: Final = {"ok": "ok", "warning": "warn", "error": "FAIL"}


def register(app: typer.Typer) -> None:
    app.command("doctor")(with_door(doctor))


def doctor(door: Door) -> None:
    """Check machine, broker, database, clock, vCenters, certificates, ports and free space."""
    checks: list[dict[str, Any]] = []
    if not door.remote:
        from backup_server.up.machine import machine_checks

        checks += [check.as_json() for check in machine_checks(door.data_dir)]
    checks += _server_checks(door)
    if door.json:
        output.print_json({"checks": checks})
    else:
        _print(checks)
    levels = {check["level"] for check in checks}
    if "error" in levels:
        raise typer.Exit(Exit.FAILED.value)
    if "warning" in levels:
        raise typer.Exit(Exit.WARNING.value)


def _server_checks(door: Door) -> list[dict[str, Any]]:
    """What the server says of itself; that it does not answer is a finding too."""
    try:
        return list(door.api.get("/doctor", slow=True)["checks"])
    except CliError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        return [
            {
                "name": "server",
                "level": "error",
                "text": "does not answer, so nothing behind it was checked",
                "advice": str(error),
            }
        ]


def _print(checks: list[dict[str, Any]]) -> None:
    width = max((len(check["name"]) for check in checks), default=0)
    for check in checks:
        advice = f" -> {check['advice']}" if check.get("advice") else ""
        output.say(f"{MARKS[check['level']]:<4}  {check['name']:<{width}}  {check['text']}{advice}")
    counts = {level: sum(1 for check in checks if check["level"] == level) for level in MARKS}
    output.say(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors.")
