"""`vmhaul job create-copy`: restore points of one repository into another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import job_options as options
from backup_server.cli import output
from backup_server.cli.door import Door, with_door

_NEWEST = "newest"


def register(app: typer.Typer) -> None:
    app.command("create-copy")(with_door(create_copy))


def create_copy(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="Repository whose restore points are copied.")
    ],
    target: Annotated[str, typer.Option("--to", metavar="NAME", help="Repository that they go to.")],
    description: Annotated[str | None, typer.Option("--description", help="For people.")] = None,
    vm: options.VmOption = None,
    job: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="NAME",
            help="The restore points of this job; repeat for more.",
            rich_help_panel=options.VMS,
        ),
    ] = None,
    exclude_vm: options.ExcludeVmOption = None,
    only_newest: Annotated[
        bool,
        typer.Option(
            "--only-newest",
            help="Of a VM that was never copied, begin with its newest restore point.",
            rich_help_panel=options.VMS,
        ),
    ] = False,
    after_backup: Annotated[
        bool,
        typer.Option(
            "--after-backup",
            help="Run whenever a backup into the source has ended.",
            rich_help_panel=options.WHEN,
        ),
    ] = False,
    schedule: options.ScheduleOption = None,
    time_zone: options.TimeZoneOption = None,
    missed: options.MissedOption = None,
    window: options.WindowOption = None,
    window_zone: options.WindowZoneOption = None,
    after: options.AfterOption = None,
    after_failure: options.AfterFailureOption = None,
    keep: options.KeepOption = None,
    keep_days: options.KeepDaysOption = None,
    weekly: options.WeeklyOption = None,
    monthly: options.MonthlyOption = None,
    yearly: options.YearlyOption = None,
    week_start: options.WeekStartOption = None,
    compression: options.CompressionOption = None,
    proxy: options.ProxyOption = None,
) -> None:
    """Create a job that copies restore points to a second repository; all of them without --vm and --job."""
    include = [{"type": "vm", "name": one} for one in vm or ()]
    include += [{"type": "job", "name": one} for one in job or ()]
    exclude = [{"type": "vm", "name": one} for one in exclude_vm or ()]
    body: dict[str, Any] = {
        "name": name,
        "kind": "copy",
        "source_repository": source,
        "repository": target,
        "selection": {"include": include or [{"type": "all", "name": "*"}], "exclude": exclude},
        "after_backup": after_backup,
        "first": _NEWEST if only_newest else "all",
        "schedule": options.schedule(schedule, time_zone, missed),
    }
    given = {
        "description": description,
        "retention": options.retention(
            options.Kept(
                keep=keep,
                keep_days=keep_days,
                weekly=weekly,
                monthly=monthly,
                yearly=yearly,
                week_start=week_start,
            )
        ),
        "compression": compression,
        "proxies": proxy,
        "window": options.window(window, window_zone),
        "after_job": after,
        "after_result": options.after_result(after_failure),
    }
    body |= {field: value for field, value in given.items() if value is not None}
    made = door.api.post("/jobs", body)
    if door.json:
        output.print_json(made)
        return
    output.say(
        f"Copy job '{name}' created: {options.describe_selectors(made['selection']['include'])} from "
        f"'{source}' to '{target}'; runs {describe_when(made)}, keeps "
        f"{options.describe_retention(made['retention'])}."
    )
    output.say(
        f"See what it will copy with `{door.hint(f'job plan {name}')}`, "
        f"run it with `{door.hint(f'job run {name}')}`."
    )


def describe_when(job: dict[str, Any]) -> str:
    """When a job runs by itself."""
    otherwise = options.describe_start({**job, "window": None})
    if not job.get("after_backup"):
        return otherwise
    alone = job["schedule"] is None and not job.get("after_job")
    return "after each backup" if alone else f"after each backup, and {otherwise}"


def describe_kind(job: dict[str, Any]) -> str:
    """backup, or copy and from where."""
    return f"copy from {job['source_repository']}" if job.get("kind") == "copy" else "backup"


def print_copy_plan(planned: dict[str, Any]) -> None:
    """The plan of a copy job: which points the next run copies."""
    rows = [
        (
            vm["name"],
            formats.moment(point["created_at"]),
            point["job"],
            point["id"][:8],
            formats.size(point["capacity_bytes"]),
        )
        for vm in planned["vms"]
        for point in vm["restore_points"]
    ]
    output.table(
        ("VM", "restore point of", "job", "id", "size"),
        rows,
        empty="Nothing new to copy: every restore point that the job takes is in the target.",
    )
