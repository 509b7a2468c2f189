"""`vmhaul job`: what is backed up, when and how."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import job_copy, job_retention, output, secrets_in
from backup_server.cli import job_options as options
from backup_server.cli.client import ApiError, part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.follow import follow

app = noun("Jobs: which VMs are backed up or copied, when, and how.")

NameArgument = Annotated[str, typer.Argument(metavar="JOB", help="Name or id of the job.")]
DescriptionOption = Annotated[str | None, typer.Option("--description", help="For people.")]


@app.command("create")
@with_door
def create(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    vcenter: Annotated[str, typer.Option("--vcenter", metavar="NAME", help="Where the VMs are.")],
    repository: Annotated[
        str, typer.Option("--repository", metavar="NAME", help="Where restore points go.")
    ],
    description: DescriptionOption = None,
    vm: options.VmOption = None,
    folder: options.FolderOption = None,
    pool: options.PoolOption = None,
    cluster: options.ClusterOption = None,
    datacenter: options.DatacenterOption = None,
    tag: options.TagOption = None,
    all_: options.AllOption = False,
    exclude_vm: options.ExcludeVmOption = None,
    exclude_folder: options.ExcludeFolderOption = None,
    exclude_pool: options.ExcludePoolOption = None,
    exclude_cluster: options.ExcludeClusterOption = None,
    exclude_datacenter: options.ExcludeDatacenterOption = None,
    exclude_tag: options.ExcludeTagOption = None,
    exclude_disk: options.ExcludeDiskOption = None,
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
    gone_days: options.GoneDaysOption = None,
    full_every_days: options.FullEveryOption = None,
    sample_blocks: options.SampleOption = None,
    quiesce: options.QuiesceOption = None,
    compression: options.CompressionOption = None,
    retries: options.RetriesOption = None,
    retry_wait: options.RetryWaitOption = None,
    proxy: options.ProxyOption = None,
    mode: options.ModeOption = None,
    change_tracking: options.TrackingOption = None,
    failover: options.FailoverOption = None,
    storage_snapshots: options.StorageSnapshotsOption = None,
    storage_failover: options.StorageFailoverOption = None,
) -> None:
    """Create a job over the VMs that the selectors name."""
    chosen = _chosen(vm, folder, pool, cluster, datacenter, tag, everything=all_)
    if not chosen.selectors():
        raise CliError("the job selects no VM: use --vm, --folder, --tag, ... or --all", Exit.USAGE)
    excluded = _chosen(
        exclude_vm, exclude_folder, exclude_pool, exclude_cluster, exclude_datacenter, exclude_tag
    )
    body: dict[str, Any] = {
        "name": name,
        "vcenter": vcenter,
        "repository": repository,
        "selection": options.selection(chosen, excluded, exclude_disk or ()),
        "schedule": options.schedule(schedule, time_zone, missed),
    }
    body |= _settings(
        description=description,
        retention=options.retention(
            options.Kept(
                keep=keep,
                keep_days=keep_days,
                weekly=weekly,
                monthly=monthly,
                yearly=yearly,
                week_start=week_start,
                gone_days=gone_days,
            )
        ),
        full_every_days=full_every_days,
        sample_blocks=sample_blocks,
        quiesce=quiesce,
        compression=compression,
        proxies=proxy,
        modes=mode,
        change_tracking=change_tracking,
        failover_to_network=failover,
        storage_snapshots=storage_snapshots,
        storage_failover=storage_failover,
        window=options.window(window, window_zone),
        after_job=after,
        after_result=options.after_result(after_failure),
    )
    if retries is not None or retry_wait is not None:
        body["retries"] = _retries(retries, retry_wait, {"count": 3, "wait_s": 600})
    job = door.api.post("/jobs", body)
    if door.json:
        output.print_json(job)
        return
    output.say(
        f"Job '{name}' created: {options.describe_selectors(job['selection']['include'])}; "
        f"runs {options.describe_start(job)}; keeps {options.describe_retention(job['retention'])}."
    )
    output.say(
        f"See what it will take with `{door.hint(f'job plan {name}')}`, run it with `{door.hint(f'job run {name}')}`."
    )


def _chosen(
    vm: options.Names,
    folder: options.Names,
    pool: options.Names,
    cluster: options.Names,
    datacenter: options.Names,
    tag: options.Names,
    *,
    everything: bool = False,
) -> options.Chosen:
    return options.Chosen(
        vm=vm or (),
        folder=folder or (),
        resource_pool=pool or (),
        cluster=cluster or (),
        datacenter=datacenter or (),
        tag=tag or (),
        everything=everything,
    )


def _settings(**given: Any) -> dict[str, Any]:
    """Only what was given; 0 days between fulls means never."""
    found = {key: value for key, value in given.items() if value is not None}
    if "full_every_days" in found:
        found["full_every_days"] = found["full_every_days"] or None
    if "modes" in found:
        found["modes"] = [mode.value for mode in found["modes"]]
    return found


def _retries(count: int | None, wait_s: int | None, old: dict[str, Any]) -> dict[str, Any]:
    return {
        "count": old["count"] if count is None else count,
        "wait_s": old["wait_s"] if wait_s is None else wait_s,
    }


job_copy.register(app)


def describe_storage(job: dict[str, Any]) -> str:
    """What the job says of storage snapshots."""
    if not job.get("storage_snapshots"):
        return "no"
    return "yes, else the VM snapshot" if job.get("storage_failover") else "yes, else the VM fails"


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the jobs with their last result and next run."""
    items = list(door.api.items("/jobs"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        (
            "name",
            "kind",
            "enabled",
            "vCenter",
            "repository",
            "VMs",
            "schedule",
            "next run",
            "keeps",
            "last run",
            "result",
        ),
        [_row(item) for item in items],
        empty="No job yet: create one with `vmhaul job create NAME --vcenter V --repository R --vm PATTERN`.",
    )


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    last = job.get("last_session") or {}
    return (
        job["name"],
        job_copy.describe_kind(job),
        job["enabled"],
        job["vcenter"],
        job["repository"],
        options.describe_selectors(job["selection"]["include"]),
        job_copy.describe_when(job),
        formats.moment(job.get("next_run_at")),
        options.describe_retention(job["retention"]),
        formats.moment(last.get("started_at")),
        last.get("result") or last.get("state"),
    )


def _show(door: Door, job: dict[str, Any]) -> None:
    if door.json:
        output.print_json(job)
        return
    last = job.get("last_session") or {}
    picked = job["selection"]
    full_days = job.get("full_every_days")
    retries = job.get("retries") or {"count": 0, "wait_s": 0}
    output.facts(
        [
            ("name", job["name"]),
            ("id", job["id"]),
            ("description", job.get("description")),
            ("enabled", job["enabled"]),
            ("kind", job_copy.describe_kind(job)),
            ("vCenter", job["vcenter"]),
            ("repository", job["repository"]),
            ("takes", options.describe_selectors(picked["include"])),
            ("but not", options.describe_selectors(picked["exclude"])),
            (
                "nor disks",
                ", ".join(f"{disk['vm']}:{disk['disk']}" for disk in picked["exclude_disks"]),
            ),
            ("schedule", job_copy.describe_when(job)),
            ("missed runs", describe_missed(job)),
            ("window", options.describe_window(job.get("window"))),
            ("follows job", options.describe_after(job)),
            ("next run", formats.moment(job.get("next_run_at"))),
            ("keeps", options.describe_retention(job["retention"])),
            ("VMs not in it", describe_gone(job["retention"])),
            ("quiesce", job.get("quiesce")),
            ("compression", job.get("compression")),
            ("change tracking", job.get("change_tracking")),
            ("tried with", _sample(job.get("sample_blocks") or 0)),
            ("full read", f"every {full_days} days" if full_days else "when needed"),
            ("retries", f"{retries['count']}, after {formats.duration(retries['wait_s'])}"),
            ("proxies", job.get("proxies") or "any"),
            ("modes", job.get("modes") or "any"),
            ("failover to network", job.get("failover_to_network")),
            ("storage snapshots", describe_storage(job)),
            ("last run", formats.moment(last.get("started_at"))),
            ("last result", last.get("result") or last.get("state")),
            ("reason", last.get("reason")),
        ]
    )


def _sample(blocks: int) -> str:
    return f"{blocks} blocks of each disk" if blocks else "nothing: it is believed"


def describe_gone(retention: dict[str, Any]) -> str:
    days = retention.get("gone_days")
    return f"points removed {days} days after the newest" if days else "points stay"


def describe_missed(job: dict[str, Any]) -> str | None:
    """What is done about them, and the last that there was. Why is said short: the session's log has all of it."""
    policy = (job["schedule"] or {}).get("missed")
    newest = next(iter(job.get("missed_runs") or []), None)
    if newest is None:
        return policy
    last = f"the last was due {formats.moment(newest['due_at'])} ({newest['why']})"
    return f"{policy}; {last}" if policy else last


@app.command("show")
@with_door
def show(door: Door, job: NameArgument) -> None:
    """Show one job."""
    _show(door, door.api.get(f"/jobs/{part(job)}"))


@app.command("edit")
@with_door
def edit(
    door: Door,
    job: NameArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    repository: Annotated[str | None, typer.Option("--repository", metavar="NAME")] = None,
    description: DescriptionOption = None,
    vm: options.VmOption = None,
    folder: options.FolderOption = None,
    pool: options.PoolOption = None,
    cluster: options.ClusterOption = None,
    datacenter: options.DatacenterOption = None,
    tag: options.TagOption = None,
    all_: options.AllOption = False,
    exclude_vm: options.ExcludeVmOption = None,
    exclude_folder: options.ExcludeFolderOption = None,
    exclude_pool: options.ExcludePoolOption = None,
    exclude_cluster: options.ExcludeClusterOption = None,
    exclude_datacenter: options.ExcludeDatacenterOption = None,
    exclude_tag: options.ExcludeTagOption = None,
    exclude_disk: options.ExcludeDiskOption = None,
    no_exclusions: Annotated[
        bool, typer.Option("--no-exclusions", help="Drop all exclusions.", rich_help_panel=options.VMS)
    ] = False,
    schedule: options.ScheduleOption = None,
    no_schedule: Annotated[
        bool, typer.Option("--no-schedule", help="Run by hand only.", rich_help_panel=options.WHEN)
    ] = False,
    time_zone: options.TimeZoneOption = None,
    missed: options.MissedOption = None,
    window: options.WindowOption = None,
    window_zone: options.WindowZoneOption = None,
    no_window: Annotated[
        bool, typer.Option("--no-window", help="Run at any time.", rich_help_panel=options.WHEN)
    ] = False,
    after: options.AfterOption = None,
    after_failure: options.AfterFailureOption = None,
    no_after: Annotated[
        bool, typer.Option("--no-after", help="Follow no other job.", rich_help_panel=options.WHEN)
    ] = False,
    keep: options.KeepOption = None,
    keep_days: options.KeepDaysOption = None,
    weekly: options.WeeklyOption = None,
    monthly: options.MonthlyOption = None,
    yearly: options.YearlyOption = None,
    week_start: options.WeekStartOption = None,
    gone_days: options.GoneDaysOption = None,
    full_every_days: options.FullEveryOption = None,
    sample_blocks: options.SampleOption = None,
    quiesce: options.QuiesceOption = None,
    compression: options.CompressionOption = None,
    retries: options.RetriesOption = None,
    retry_wait: options.RetryWaitOption = None,
    proxy: options.ProxyOption = None,
    any_proxy: Annotated[
        bool,
        typer.Option("--any-proxy", help="Any proxy may work for it.", rich_help_panel=options.HOW),
    ] = False,
    mode: options.ModeOption = None,
    any_mode: Annotated[
        bool,
        typer.Option("--any-mode", help="Any transport mode may be used.", rich_help_panel=options.HOW),
    ] = False,
    change_tracking: options.TrackingOption = None,
    failover: options.FailoverOption = None,
    storage_snapshots: options.StorageSnapshotsOption = None,
    storage_failover: options.StorageFailoverOption = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Remove restore points that a new retention keeps no more, without asking."
        ),
    ] = False,
    after_backup: Annotated[
        bool | None,
        typer.Option(
            "--after-backup/--no-after-backup",
            help="Of a copy job: run whenever a backup into its source has ended.",
            show_default=False,
            rich_help_panel=options.WHEN,
        ),
    ] = None,
) -> None:
    """Change a job: what is not named stays. Selectors replace those before, exclusions too.

    `vmhaul job retention` shows what another retention would remove.
    """
    path = f"/jobs/{part(job)}"
    old = door.api.get(path)
    before = dict(old["selection"])
    if no_exclusions:
        before |= {"exclude": [], "exclude_disks": []}
    changes = _settings(
        name=name,
        repository=repository,
        description=description,
        retention=options.retention(
            options.Kept(
                keep=keep,
                keep_days=keep_days,
                weekly=weekly,
                monthly=monthly,
                yearly=yearly,
                week_start=week_start,
                gone_days=gone_days,
            ),
            old["retention"],
        ),
        full_every_days=full_every_days,
        sample_blocks=sample_blocks,
        quiesce=quiesce,
        compression=compression,
        proxies=[] if any_proxy else proxy,
        modes=[] if any_mode else mode,
        change_tracking=change_tracking,
        failover_to_network=failover,
        storage_snapshots=storage_snapshots,
        storage_failover=storage_failover,
        after_backup=after_backup,
        window=options.window(window, window_zone, old["window"]),
        after_job=after,
        after_result=options.after_result(after_failure),
    )
    if no_window:
        changes["window"] = None
    if no_after:
        changes["after_job"] = None
    picked = options.selection(
        _chosen(vm, folder, pool, cluster, datacenter, tag, everything=all_),
        _chosen(
            exclude_vm, exclude_folder, exclude_pool, exclude_cluster, exclude_datacenter, exclude_tag
        ),
        exclude_disk or (),
        before,
    )
    if picked != old["selection"]:
        changes["selection"] = picked
    if no_schedule:
        changes["schedule"] = None
    elif schedule or time_zone or missed:
        changes["schedule"] = options.schedule(schedule, time_zone, missed, old["schedule"])
    if retries is not None or retry_wait is not None:
        changes["retries"] = _retries(retries, retry_wait, old["retries"])
    if not changes:
        raise CliError("nothing to change: name at least one option with a new value", Exit.USAGE)
    _show(door, _edited(door, path, changes, yes=yes))


def _edited(door: Door, path: str, changes: dict[str, Any], *, yes: bool) -> dict[str, Any]:
    """The changed job; asks first when restore points would go."""
    if yes:
        changes = {**changes, "confirm_removal": True}
    try:
        job: dict[str, Any] = door.api.patch(path, changes)
    except ApiError as error:
        if error.details.get("confirm") != "confirm_removal":
            raise
        points = formats.plural(int(error.details["points"]), "restore point")
        vms = formats.plural(int(error.details["vms"]), "VM")
        question = f"The new retention removes {points} of {vms}. Change it?"
        secrets_in.confirm(question, assume_yes=False, option="--yes")
        job = door.api.patch(path, {**changes, "confirm_removal": True})
    return job


@app.command("enable")
@with_door
def enable(door: Door, job: NameArgument) -> None:
    """Let its schedule run it."""
    _show(door, door.api.patch(f"/jobs/{part(job)}", {"enabled": True}))


@app.command("disable")
@with_door
def disable(door: Door, job: NameArgument) -> None:
    """Keep its schedule from running it."""
    _show(door, door.api.patch(f"/jobs/{part(job)}", {"enabled": False}))


@app.command("delete")
@with_door
def delete(
    door: Door,
    job: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a job; its restore points stay."""
    secrets_in.confirm(f"Delete job '{job}'? Its restore points stay.", assume_yes=yes, option="--yes")
    door.api.delete(f"/jobs/{part(job)}")
    if not door.json:
        output.say(f"Job '{job}' deleted. Its restore points stay.")


@app.command("plan")
@with_door
def plan(door: Door, job: NameArgument) -> None:
    """Show which VMs and disks the next run takes, what it leaves out, and why."""
    planned = door.api.get(f"/jobs/{part(job)}/plan", slow=True)
    if door.json:
        output.print_json(planned)
        return
    if planned.get("kind") == "copy":
        job_copy.print_copy_plan(planned)
        return
    from backup_server.cli.plan import print_plan

    print_plan(planned)


@app.command("run")
@with_door
def run(
    door: Door,
    job: NameArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Read everything, not only what changed.")
    ] = False,
    failed_only: Annotated[
        bool,
        typer.Option(
            "--failed-only", "--only-failed", help="Only the VMs that failed in the last session."
        ),
    ] = False,
    ignore_window: Annotated[
        bool,
        typer.Option(
            "--ignore-window", help="Begin although its window is closed, and run to the end."
        ),
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Start it and return at once.")
    ] = False,
) -> None:
    """Run a job now and follow it. Ctrl-C detaches; the session goes on."""
    try:
        session = door.api.post(
            f"/jobs/{part(job)}/run",
            {"full": full, "only_failed": failed_only, "ignore_window": ignore_window},
            slow=True,
        )
    except ApiError as error:
        running = error.details.get("session")
        if error.error_code == "conflict" and running:
            hint = door.hint(f"session follow {str(running)[:8]}")
            raise CliError(f"{error}; follow it with `{hint}`") from error
        raise
    if not no_follow:
        if not door.json:
            output.say(f"Session {session['id']} of job '{job}' started.")
        follow(door, session)
    elif door.json:
        output.print_json(session)
    else:
        hint = door.hint(f"session follow {session['id'][:8]}")
        output.say(f"Session {session['id']} started. Follow it with `{hint}`.")


job_retention.register(app)
