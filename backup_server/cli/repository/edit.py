"""`vmhaul repository edit` and `remove`."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from backup_server.cli import output, sizes
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository import storage_options
from backup_server.cli.repository.common import NameArgument
from backup_server.cli.repository.show import print_repository

EVERY: Final = {"day": "0 12 * * *", "week": "0 12 * * 6", "month": "0 12 1 * *"}
"""At noon: most backups run at night."""
NEVER: Final = "never"
AUTO: Final = "auto"
STRUCTURE: Final = "structure"


def register(app: typer.Typer) -> None:
    app.command("edit")(with_door(edit))
    app.command("remove")(with_door(remove))


def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option("--max-tasks", min=1, help="Disks that may be written at the same time."),
    ] = None,
    verify_every: Annotated[
        str | None,
        typer.Option(
            "--verify-every",
            metavar="day|week|month|never|CRON",
            help="When a verification runs: daily, Saturdays or on the first at noon, never, or a cron "
            "expression of five fields.",
        ),
    ] = None,
    verify_time_zone: Annotated[
        str | None,
        typer.Option("--verify-time-zone", metavar="ZONE", help="Of that schedule; UTC by default."),
    ] = None,
    verify_sample: Annotated[
        str | None,
        typer.Option(
            "--verify-sample",
            metavar="SHARE|auto|structure",
            help="How much of the data each verification reads, as in 5%; auto: such that all is read "
            "every 30 days; structure: none.",
        ),
    ] = None,
    access_key_id: storage_options.AccessKeyOption = None,
    secret_access_key_file: storage_options.SecretKeyFileOption = None,
    account_key_file: storage_options.AccountKeyFileOption = None,
    sas_token_file: storage_options.SasTokenFileOption = None,
    service_account_file: storage_options.ServiceAccountFileOption = None,
    immutable_days: storage_options.ImmutableDaysOption = None,
) -> None:
    """Change a repository: what is not named stays."""
    path = f"/repositories/{part(name)}"
    secrets = storage_options.storage_secrets(
        access_key_id=access_key_id,
        secret_access_key_file=secret_access_key_file,
        account_key_file=account_key_file,
        sas_token_file=sas_token_file,
        service_account_file=service_account_file,
    )
    given: dict[str, Any] = {
        "name": new_name,
        "max_tasks": max_tasks,
        "storage_secrets": secrets or None,
        "immutable_days": immutable_days,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if verify_every is not None or verify_time_zone is not None or verify_sample is not None:
        old = door.api.get(path).get("verification")
        changes["verification"] = verification(old, verify_every, verify_time_zone, verify_sample)
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    print_repository(door, door.api.patch(path, changes))


def verification(
    old: dict[str, Any] | None, every: str | None, time_zone: str | None, sample: str | None
) -> dict[str, Any] | None:
    """The settings as the API takes them; a part for which no option was given stays as in `old`."""
    if every == NEVER:
        return None
    if every is None and old is None:
        raise CliError("--verify-sample and --verify-time-zone need --verify-every", Exit.USAGE)
    value = dict(old or {"schedule": {"cron": ""}, "sample_share": None, "read_data": True})
    schedule = dict(value["schedule"])
    if every is not None:
        schedule["cron"] = EVERY.get(every, every)
    if time_zone is not None:
        schedule["time_zone"] = time_zone
    value["schedule"] = schedule
    if sample is not None:
        value["read_data"] = sample != STRUCTURE
        own = sample not in (AUTO, STRUCTURE)
        value["sample_share"] = sizes.parse_share(sample, "--verify-sample") if own else None
    return value


def remove(door: Door, name: NameArgument) -> None:
    """Forget a repository; its data stays where it is."""
    door.api.delete(f"/repositories/{part(name)}")
    if not door.json:
        output.say(f"Repository '{name}' forgotten. Its data was not touched.")
