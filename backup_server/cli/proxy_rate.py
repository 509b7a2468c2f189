"""Options of `vmhaul proxy edit` for the proxy's own rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from backup_server.cli.exits import CliError, Exit
from backup_server.cli.traffic import hours_of

RATE: Final = "Rate of its tasks"

LimitOption = Annotated[
    str | None,
    typer.Option(
        "--rate-limit",
        metavar="RATE",
        help="How fast its tasks together may move data over the network, as in 400Mbit or 50MB/s; unlimited. "
        "Beside traffic rules: the lowest wins.",
        rich_help_panel=RATE,
    ),
]
WindowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rate-window",
        metavar="HOURS=RATE",
        help="Another rate in weekly hours, as in 'mon-fri 08:00-18:00=50Mbit'; repeat for more. They replace those "
        "of before; the first that is open counts.",
        rich_help_panel=RATE,
    ),
]
ZoneOption = Annotated[
    str | None,
    typer.Option(
        "--rate-time-zone",
        metavar="ZONE",
        help="Time zone of --rate-window, as in Europe/Berlin; UTC by default.",
        rich_help_panel=RATE,
    ),
]
NoWindowsOption = Annotated[
    bool,
    typer.Option(
        "--no-rate-windows", help="The same rate at all hours: --rate-limit.", rich_help_panel=RATE
    ),
]
RestoresOption = Annotated[
    bool | None,
    typer.Option(
        "--rate-restores/--no-rate-restores",
        help="Hold restores to the rate as well; they are not by default.",
        show_default=False,
        rich_help_panel=RATE,
    ),
]


def changes(
    *,
    limit: str | None,
    windows: Sequence[str] | None,
    time_zone: str | None,
    no_windows: bool,
    restores: bool | None,
) -> dict[str, Any]:
    """What the options ask for; CliError (usage) for those that do not fit together."""
    if time_zone and not windows:
        raise CliError("--rate-time-zone needs --rate-window", Exit.USAGE)
    found: dict[str, Any] = {}
    if limit is not None:
        found["rate_limit"] = limit
    if windows or no_windows:
        found["rate_windows"] = (
            [] if no_windows else hours_of(windows or (), time_zone, "--rate-window")
        )
    if restores is not None:
        found["rate_restores"] = restores
    return found
