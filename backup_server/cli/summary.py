"""What a session became, as a table of its disks and one sentence. Pure but for `print_summary`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from backup_server import formats
from backup_server.cli import output

RESTORE: Final = "restore"
BACKUP_COLUMNS: Final = (
    "VM",
    "disk",
    "mode",
    "proxy",
    "read as",
    "read",
    "transferred",
    "ratio",
    "rate",
    "result",
)
RESTORE_COLUMNS: Final = (
    "VM",
    "disk",
    "mode",
    "proxy",
    "capacity",
    "read",
    "written",
    "rate",
    "result",
)
FIGURES: Final = ("capacity", "read", "transferred", "written", "ratio", "rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the disks of a session."""

    vms: int
    disks: int
    read_bytes: int
    stored_bytes: int


def disk_tasks(session: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every (VM, task) of a session."""
    for vm in session.get("vms") or ():
        for task in vm.get("tasks") or ():
            yield vm, task


def disks_done(session: dict[str, Any]) -> str:
    """As in "3 of 5 disks"; empty while no disk is known."""
    counts = session.get("counts") or {}
    tasks = counts.get("tasks", 0)
    return f"{counts.get('tasks_done', 0)} of {formats.plural(tasks, 'disk')}" if tasks else ""


def disk_row(vm: dict[str, Any], task: dict[str, Any]) -> tuple[object, ...]:
    """One line of a backup's closing table."""
    read_bytes, stored_bytes, rate = _figures(task, "read_bytes")
    return (
        vm["name"],
        task.get("label") or task.get("disk_key"),
        mode_path(task) or None,
        task.get("proxy"),
        task.get("read_mode"),
        formats.size(read_bytes),
        formats.size(stored_bytes),
        formats.ratio(read_bytes, stored_bytes),
        formats.rate(rate),
        task.get("result") or task.get("state"),
    )


def restored_row(vm: dict[str, Any], task: dict[str, Any]) -> tuple[object, ...]:
    """One line of a restore's closing table: read from the repository, written to the target."""
    read_bytes, written_bytes, rate = _figures(task, "stored_bytes")
    return (
        vm["name"],
        task.get("label") or task.get("disk_key"),
        # A file is written without any of vSphere's transport modes.
        "file" if task.get("kind") == "restore-disk-to-file" else mode_path(task) or None,
        task.get("proxy"),
        formats.size(task.get("capacity_bytes")),
        formats.size(read_bytes),
        formats.size(written_bytes),
        formats.rate(rate),
        task.get("result") or task.get("state"),
    )


def _figures(task: dict[str, Any], of: str) -> tuple[int | None, int | None, float | None]:
    """Bytes read, bytes stored, and bytes `of` for each second."""
    stats = task.get("stats") or {}
    duration_s = stats.get("duration_s") or 0
    rate = stats[of] / duration_s if stats.get(of) is not None and duration_s > 0 else None
    return stats.get("read_bytes"), stats.get("stored_bytes"), rate


def totals(session: dict[str, Any]) -> Totals:
    """Of the disks that are shown, or of all where more are there than are shown."""
    counts = session.get("counts") or {}
    if counts.get("vms", 0) > len(session.get("vms") or ()):
        progress = session["progress"]
        return Totals(
            vms=counts["vms"],
            disks=counts["tasks"],
            read_bytes=progress["read_bytes"],
            stored_bytes=progress["stored_bytes"],
        )
    stats = [task.get("stats") or {} for _, task in disk_tasks(session)]
    return Totals(
        vms=len(session.get("vms") or ()),
        disks=len(stats),
        read_bytes=sum(item.get("read_bytes") or 0 for item in stats),
        stored_bytes=sum(item.get("stored_bytes") or 0 for item in stats),
    )


def title(session: dict[str, Any]) -> str:
    """As in "Backup nightly", "Restore", "Repository check"."""
    kind = str(session["kind"]).replace("-", " ").capitalize()
    job = session.get("job")
    return f"{kind} {job}" if job else kind


def sentence(session: dict[str, Any]) -> str:
    """How it ended and what it moved, in one sentence."""
    took = formats.span(session.get("started_at"), session.get("finished_at"))
    seconds = took.total_seconds() if took else None
    result = session.get("result")
    words = [
        f"{title(session)} ended: {result}" if result else f"{title(session)} is {session['state']}"
    ]
    sums = totals(session)
    if sums.disks:
        words.append(f"{formats.plural(sums.vms, 'VM')} with {formats.plural(sums.disks, 'disk')}")
        words.append(f"{formats.size(sums.read_bytes)} read")
        verb = "written" if session["kind"] == RESTORE else "transferred"
        words.append(f"{formats.size(sums.stored_bytes)} {verb}")
    if seconds is not None:
        words.append(f"{formats.duration(seconds)} in all")
        moved_bytes = sums.stored_bytes if session["kind"] == RESTORE else sums.read_bytes
        if moved_bytes and seconds > 0:
            words.append(formats.rate(moved_bytes / seconds))
    text = ", ".join(words)
    reason = str(session.get("reason") or "").rstrip(".")
    return f"{text}: {reason}." if reason else f"{text}."


def waiting(session: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Until when a queued session waits, and why a running one stops."""
    if session.get("waits_until"):
        yield "waits until", formats.moment(session["waits_until"])
    if session["state"] == "running" and session.get("stop_reason"):
        yield "stops", session["stop_reason"]


def remarks(session: dict[str, Any]) -> Iterator[str]:
    """Reasons that belong to a VM or a disk, one line each."""
    for vm in session.get("vms") or ():
        for text in [vm.get("reason"), *(vm.get("warnings") or ())]:
            if text:
                yield f"{vm['name']}: {text}"
        for task in vm.get("tasks") or ():
            label = f"{vm['name']} / {task.get('label') or task.get('disk_key')}"
            if task.get("waits"):
                yield f"{label} (task {task['id'][:8]}) waits: {task['waits']}"
            if task.get("reason"):
                yield f"{label}: {task['reason']}"
            yield from failover_lines(label, task)
            if task.get("read_mode") in {"full", "full-scan"} and task.get("read_mode_reason"):
                yield f"{label}: read in full: {task['read_mode_reason']}"


def mode_path(task: dict[str, Any]) -> str:
    """The modes of a disk in their order: "hotadd -> nbdssl"."""
    modes = [str(one["mode"]) for one in task.get("failovers") or ()]
    if task.get("mode") and (not modes or modes[-1] != task["mode"]):
        modes.append(str(task["mode"]))
    return " -> ".join(modes)


def failover_lines(label: str, task: dict[str, Any]) -> Iterator[str]:
    """Why modes were left."""
    for one in task.get("failovers") or ():
        yield f"{label}: {mode_path(task)}: {one['mode']} on {one['proxy']} was left: {one['reason']}"


def report_facts(session: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Figures of a session that has no VMs: a check, a prune, a rescan."""
    for name, value in (session.get("report") or {}).items():
        if isinstance(value, bool | int | float | str):
            label = name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")
            shown = formats.size(float(value)) if name.endswith("_bytes") else value
            yield label, formats.duration(float(value)) if name.endswith("_s") else shown


def report_lines(session: dict[str, Any]) -> Iterator[str]:
    """What the session as a whole has to say: problems, warnings, VMs left out."""
    report = session.get("report") or {}
    for name, mark in (("problems", "problem"), ("warnings", "warning"), ("skipped", "left out")):
        for item in report.get(name) or ():
            text = f"{item['name']}: {item['reason']}" if isinstance(item, dict) else item
            yield f"{mark}: {text}"


def not_shown(session: dict[str, Any]) -> Iterator[str]:
    """That there are more VMs than the table has, and how to see them."""
    shown, counts = len(session.get("vms") or ()), session.get("counts") or {}
    if session.get("vms_next") or shown < counts.get("vms", 0):
        groups = [
            f"{counts[name]} {name}"
            for name in ("waiting", "active", "success", "warning", "failed", "cancelled")
            if counts.get(name)
        ]
        yield (
            f"{shown} of {formats.plural(counts.get('vms', shown), 'VM')} shown ({', '.join(groups)}): "
            "`vmhaul session show` takes --only and --limit"
        )


def print_summary(session: dict[str, Any]) -> None:
    """The closing table, the remarks and the sentence."""
    restored = session["kind"] == RESTORE
    row = restored_row if restored else disk_row
    rows = [row(vm, task) for vm, task in disk_tasks(session)]
    if rows:
        output.table(RESTORE_COLUMNS if restored else BACKUP_COLUMNS, rows, right=FIGURES)
    output.facts(report_facts(session))
    for line in (*report_lines(session), *remarks(session), *not_shown(session)):
        output.say(line)
    output.say(sentence(session))
