"""Options of `vmhaul job create` and `edit`, and what they say in the API's shape. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from backup_server import formats
from backup_server.cli.exits import CliError, Exit


class Quiesce(StrEnum):
    OFF = "off"
    TRY = "try"
    REQUIRE = "require"


class Compression(StrEnum):
    NONE = "none"
    FAST = "fast"
    BALANCED = "balanced"
    HIGH = "high"


class Missed(StrEnum):
    RUN_ONCE = "run-once"
    SKIP = "skip"


class Mode(StrEnum):
    STORAGE_SNAPSHOT = "storage-snapshot"
    DIRECT_SAN = "direct-san"
    DIRECT_NFS = "direct-nfs"
    HOTADD = "hotadd"
    NBDSSL = "nbdssl"
    NBD = "nbd"


class Weekday(StrEnum):
    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


VMS: Final = "Which VMs"
WHEN: Final = "When, and what is kept"
HOW: Final = "How"


def _names(option: str, metavar: str, help_text: str) -> Any:
    return typer.Option(
        option, metavar=metavar, help=help_text + "; repeat for more.", rich_help_panel=VMS
    )


Names = list[str] | None
VmOption = Annotated[
    Names, _names("--vm", "PATTERN", "VMs of this name; * and ? match any text and letter")
]
FolderOption = Annotated[Names, _names("--folder", "PATH", "VMs below this folder (DC0/Prod/Web)")]
PoolOption = Annotated[Names, _names("--pool", "PATH", "VMs of this resource pool")]
ClusterOption = Annotated[Names, _names("--cluster", "NAME", "VMs of this cluster")]
DatacenterOption = Annotated[Names, _names("--datacenter", "NAME", "VMs of this datacenter")]
TagOption = Annotated[Names, _names("--tag", "TAG", "VMs with this tag")]
AllOption = Annotated[bool, typer.Option("--all", help="All VMs of the vCenter.", rich_help_panel=VMS)]
ExcludeVmOption = Annotated[Names, _names("--exclude-vm", "PATTERN", "Not the VMs of this name")]
ExcludeFolderOption = Annotated[
    Names, _names("--exclude-folder", "PATH", "Not the VMs below this folder")
]
ExcludePoolOption = Annotated[
    Names, _names("--exclude-pool", "PATH", "Not the VMs of this resource pool")
]
ExcludeClusterOption = Annotated[
    Names, _names("--exclude-cluster", "NAME", "Not the VMs of this cluster")
]
ExcludeDatacenterOption = Annotated[
    Names, _names("--exclude-datacenter", "NAME", "Not the VMs of this datacenter")
]
ExcludeTagOption = Annotated[Names, _names("--exclude-tag", "TAG", "Not the VMs with this tag")]
ExcludeDiskOption = Annotated[
    Names,
    _names(
        "--exclude-disk", "VM:DISK", "Not this disk: label, key, 'SCSI (0:1)' or *, of VMs of this name"
    ),
]

ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="CRON",
        help="When it runs by itself: minute hour day month weekday, as in '30 2 * * *'.",
        rich_help_panel=WHEN,
    ),
]
TimeZoneOption = Annotated[
    str | None,
    typer.Option(
        "--time-zone",
        metavar="ZONE",
        help="Time zone of the schedule, as in Europe/Berlin; UTC by default.",
        rich_help_panel=WHEN,
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="HOURS",
        help="Hours in which it may run, as in 'mon-fri 22:00-06:00, sat,sun 00:00-24:00'; 'not mon-fri "
        "08:00-18:00' for those in which it may not. What is not done when it closes goes on in the next.",
        rich_help_panel=WHEN,
    ),
]
WindowZoneOption = Annotated[
    str | None,
    typer.Option(
        "--window-zone",
        metavar="ZONE",
        help="Time zone of the window; the schedule's by default.",
        rich_help_panel=WHEN,
    ),
]
AfterOption = Annotated[
    str | None,
    typer.Option(
        "--after",
        metavar="JOB",
        help="Run when a session of that job has ended, its retries included.",
        rich_help_panel=WHEN,
    ),
]
AfterFailureOption = Annotated[
    bool | None,
    typer.Option(
        "--after-failure/--after-success",
        help="Follow that job after a failure too, or after success and warning only (the default).",
        show_default=False,
        rich_help_panel=WHEN,
    ),
]
MissedOption = Annotated[
    Missed | None,
    typer.Option(
        "--missed",
        metavar="run-once|skip",
        help="A run that was due while the server was down: run once at start, or skip it.",
        rich_help_panel=WHEN,
    ),
]
KeepOption = Annotated[
    int | None,
    typer.Option(
        "--keep",
        min=1,
        metavar="N",
        help="Keep the newest N restore points of a VM.",
        rich_help_panel=WHEN,
    ),
]
KeepDaysOption = Annotated[
    int | None,
    typer.Option(
        "--keep-days",
        min=1,
        metavar="N",
        help="Keep the restore points of N days.",
        rich_help_panel=WHEN,
    ),
]


def _periods(option: str, noun: str) -> Any:
    return typer.Option(
        option,
        min=0,
        metavar="N",
        help=f"Besides, the newest restore point of each of N {noun}; 0: none.",
        rich_help_panel=WHEN,
    )


WeeklyOption = Annotated[int | None, _periods("--weekly", "weeks")]
MonthlyOption = Annotated[int | None, _periods("--monthly", "months")]
YearlyOption = Annotated[int | None, _periods("--yearly", "years")]
WeekStartOption = Annotated[
    Weekday | None,
    typer.Option(
        "--week-start",
        metavar="DAY",
        help="The day on which a week begins; monday by default.",
        rich_help_panel=WHEN,
    ),
]
GoneDaysOption = Annotated[
    int | None,
    typer.Option(
        "--remove-gone-days",
        min=0,
        metavar="N",
        help="Remove all restore points of a VM that the job takes no more, N days after its newest; "
        "0: never.",
        rich_help_panel=WHEN,
    ),
]
FullEveryOption = Annotated[
    int | None,
    typer.Option(
        "--full-every-days",
        min=0,
        metavar="N",
        help="Read everything again every N days; 0: only when it is needed.",
        rich_help_panel=WHEN,
    ),
]
SampleOption = Annotated[
    int | None,
    typer.Option(
        "--sample-blocks",
        min=0,
        max=1024,
        metavar="N",
        help="Blocks of each disk that change tracking calls unchanged and that are compared all the same "
        "(16); 0: none.",
        rich_help_panel=HOW,
    ),
]
QuiesceOption = Annotated[
    Quiesce | None,
    typer.Option(
        "--quiesce", help="Ask the guest to bring its file systems to rest.", rich_help_panel=HOW
    ),
]
CompressionOption = Annotated[
    Compression | None,
    typer.Option(
        "--compression",
        metavar="none|fast|balanced|high",
        help="How hard to compress.",
        rich_help_panel=HOW,
    ),
]
RetriesOption = Annotated[
    int | None,
    typer.Option(
        "--retries", min=0, metavar="N", help="Run failed VMs again up to N times.", rich_help_panel=HOW
    ),
]
RetryWaitOption = Annotated[
    int | None,
    typer.Option(
        "--retry-wait", min=0, metavar="S", help="Seconds before such a retry.", rich_help_panel=HOW
    ),
]
ProxyOption = Annotated[
    Names,
    typer.Option(
        "--proxy", metavar="NAME", help="Only these proxies; repeat for more.", rich_help_panel=HOW
    ),
]
ModeOption = Annotated[
    list[Mode] | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="Only these transport modes (storage-snapshot, direct-san, direct-nfs, hotadd, nbdssl, nbd); "
        "repeat for more.",
        rich_help_panel=HOW,
    ),
]
FailoverOption = Annotated[
    bool | None,
    typer.Option(
        "--failover/--no-failover",
        help="Let network modes take over where another mode fails or is busy, or use them only for disks that "
        "no other mode can open.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
TrackingOption = Annotated[
    bool | None,
    typer.Option(
        "--change-tracking/--no-change-tracking",
        help="Use changed block tracking, or read and compare everything.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]

StorageSnapshotsOption = Annotated[
    bool | None,
    typer.Option(
        "--storage-snapshots/--no-storage-snapshots",
        help="Read from storage snapshots where a registered storage system has all disks of a VM.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
StorageFailoverOption = Annotated[
    bool | None,
    typer.Option(
        "--storage-failover/--no-storage-failover",
        help="When no storage snapshot can be made, read from the VM snapshot; else the VM fails.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]


_PERIODS: Final = ("weekly", "monthly", "yearly")
DEFAULT_RETENTION: Final = {"keep": 14}
"""What the server takes when a job says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Names for each type of selector."""

    vm: Sequence[str] = ()
    folder: Sequence[str] = ()
    resource_pool: Sequence[str] = ()
    cluster: Sequence[str] = ()
    datacenter: Sequence[str] = ()
    tag: Sequence[str] = ()
    everything: bool = False

    def selectors(self) -> list[dict[str, str]]:
        groups = (
            ("vm", self.vm),
            ("folder", self.folder),
            ("resource-pool", self.resource_pool),
            ("cluster", self.cluster),
            ("datacenter", self.datacenter),
            ("tag", self.tag),
        )
        found = [{"type": kind, "name": name} for kind, names in groups for name in names]
        return [*found, {"type": "all", "name": "*"}] if self.everything else found


def excluded_disks(texts: Sequence[str]) -> list[dict[str, str]]:
    """VM:DISK texts; the disk may hold colons, as in "db01:SCSI (0:1)"."""
    disks = []
    for text in texts:
        vm, separator, disk = text.partition(":")
        if not separator or not vm or not disk:
            raise CliError(
                f"--exclude-disk '{text}' is not VM:DISK, as in 'db01:Hard disk 2'", Exit.USAGE
            )
        disks.append({"vm": vm, "disk": disk})
    return disks


def selection(
    include: Chosen, exclude: Chosen, exclude_disks: Sequence[str], old: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The selection; a part for which no option was given stays as in `old`."""
    before = old or {"include": [], "exclude": [], "exclude_disks": []}
    return {
        "include": include.selectors() or before["include"],
        "exclude": exclude.selectors() or before["exclude"],
        "exclude_disks": excluded_disks(exclude_disks) or before["exclude_disks"],
    }


def schedule(
    cron: str | None,
    time_zone: str | None,
    missed: Missed | None,
    old: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The schedule, changed where an option was given."""
    if cron is None and old is None:
        if time_zone or missed:
            raise CliError("--time-zone and --missed need --schedule", Exit.USAGE)
        return None
    before = old or {"cron": "", "time_zone": "UTC", "missed": Missed.RUN_ONCE.value}
    return {
        "cron": cron or before["cron"],
        "time_zone": time_zone or before["time_zone"],
        "missed": missed.value if missed else before["missed"],
    }


def window(
    text: str | None, time_zone: str | None, old: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The window, changed where an option was given; None when none was."""
    if text is None and time_zone is None:
        return None
    if text is None and old is None:
        raise CliError("--window-zone needs --window", Exit.USAGE)
    value: dict[str, Any] = {"text": text if text is not None else (old or {})["text"]}
    zone = time_zone or (old or {}).get("time_zone")
    return value | ({"time_zone": zone} if zone else {})


def describe_window(value: dict[str, Any] | None) -> str:
    return f"{value['text']} ({value['time_zone']})" if value else "any time"


def after_result(after_failure: bool | None) -> str | None:
    if after_failure is None:
        return None
    return "any" if after_failure else "good"


def describe_after(job: dict[str, Any]) -> str | None:
    """Which job it follows."""
    if not job.get("after_job"):
        return None
    how = "also after a failure" if job.get("after_result") == "any" else "after success or warning"
    return f"{job['after_job']}, {how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the options say of retention; None: nothing."""

    keep: int | None = None
    keep_days: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    week_start: Weekday | None = None
    gone_days: int | None = None


def retention(given: Kept, old: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The retention, changed where an option was given; None when none was."""
    if given.keep is not None and given.keep_days is not None:
        raise CliError("--keep and --keep-days exclude each other", Exit.USAGE)
    if given == Kept():
        return None
    value = dict(old or DEFAULT_RETENTION)
    for name, count in (("keep", given.keep), ("days", given.keep_days)):
        if count is not None:
            value.pop("keep", None)
            value.pop("days", None)
            value[name] = count
    for name in _PERIODS:
        if getattr(given, name) is not None:
            value[name] = getattr(given, name)
    if given.week_start is not None:
        value["week_start"] = given.week_start.value
    if given.gone_days is not None:
        value["gone_days"] = given.gone_days or None
    return value


def describe_schedule(value: dict[str, Any] | None) -> str:
    return f"{value['cron']} ({value['time_zone']})" if value else "by hand"


def describe_start(job: dict[str, Any]) -> str:
    """What starts a job, and when only: "30 2 * * * (UTC) and after nightly, only daily 22:00-06:00 (UTC)"."""
    starts = [describe_schedule(job["schedule"])] if job.get("schedule") else []
    if job.get("after_job"):
        starts.append(f"after {job['after_job']}")
    window = job.get("window")
    hours = f", only {window['text']} ({window['time_zone']})" if window else ""
    return (" and ".join(starts) or "by hand") + hours


def describe_retention(value: dict[str, Any] | None) -> str:
    return formats.retention(value) if value else "-"


def describe_selectors(selectors: Sequence[dict[str, Any]]) -> str:
    return ", ".join(
        "all" if item["type"] == "all" else f"{item['type']} {item['name']}" for item in selectors
    )
