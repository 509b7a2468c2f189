"""`vmhaul job retention`: which restore points stay, which go, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import job_options as options
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit


def register(app: typer.Typer) -> None:
    app.command("retention")(with_door(retention))


def retention(
    door: Door,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name or id of the job.")],
    keep: options.KeepOption = None,
    keep_days: options.KeepDaysOption = None,
    weekly: options.WeeklyOption = None,
    monthly: options.MonthlyOption = None,
    yearly: options.YearlyOption = None,
    week_start: options.WeekStartOption = None,
    gone_days: options.GoneDaysOption = None,
    vm: Annotated[str | None, typer.Option("--vm", help="Only this VM, by name or uuid.")] = None,
    removed_only: Annotated[
        bool, typer.Option("--removed-only", help="List only the restore points that go.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove what the job's rule keeps no more now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --apply.")] = False,
) -> None:
    """Show which restore points the job's retention keeps and removes, and why.

    With options it shows what another rule would do: nothing is changed. `vmhaul job edit` with the same
    options sets that rule; the job's own rule is carried out after each backup and once a day.
    """
    path = f"/jobs/{part(job)}/retention"
    given = options.Kept(
        keep=keep,
        keep_days=keep_days,
        weekly=weekly,
        monthly=monthly,
        yearly=yearly,
        week_start=week_start,
        gone_days=gone_days,
    )
    old = door.api.get(path, vm=vm)
    wanted = options.retention(given, old["retention"])
    if apply:
        if wanted is not None or vm is not None:
            raise CliError("--apply carries out the job's own rule for all its VMs", Exit.USAGE)
        _apply(door, path, old, yes=yes)
        return
    body = {"retention": wanted, **({"vm": vm} if vm else {})}
    shown = old if wanted is None else door.api.post(f"{path}/preview", body)
    if door.json:
        output.print_json(shown)
    else:
        _print(shown, removed_only=removed_only)


def _apply(door: Door, path: str, shown: dict[str, Any], *, yes: bool) -> None:
    points = formats.plural(int(shown["remove"]), "restore point")
    if shown["remove"]:
        secrets_in.confirm(f"Remove {points}?", assume_yes=yes, option="--yes")
    done = door.api.post(f"{path}/apply", slow=True)
    if door.json:
        output.print_json(done)
    else:
        output.say(f"Removed {formats.plural(int(done['removed']), 'restore point')}.")


def _print(shown: dict[str, Any], *, removed_only: bool) -> None:
    output.table(
        ("VM", "restore point", "created", "kind", "size", "what", "because"),
        [
            (
                vm["vm"],
                point["id"][:8],
                formats.moment(point["created_at"]),
                point["kind"],
                formats.size(point["size_bytes"]),
                "stays" if point["action"] == "keep" else "goes",
                point["reason"],
            )
            for vm in shown["vms"]
            for point in vm["points"]
            if point["action"] == "remove" or not removed_only
        ],
        right=("size",),
        empty="No restore point goes." if shown["vms"] else "The job has no restore points.",
    )
    output.say(
        f"{options.describe_retention(shown['retention'])}: {shown['keep']} stay, {shown['remove']} go "
        f"({formats.size(shown['remove_bytes'])} were stored for them; what others share stays)."
    )
