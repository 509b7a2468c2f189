"""What the demo found out about each disk, and the table that says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vmhaul_lab import verify
from vmhaul_lab.errors import LabError
from vmhaul_lab.site import LARGEST_HASHED_BYTES, digest

_MIB = 1 << 20


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One disk of one session: how it was moved, and whether what came back is the source."""

    what: str
    vm: str
    disk: str
    mode: str
    proxy: str
    read_bytes: int
    transferred_bytes: int
    duration_s: float
    restored: bool
    compared: bool = False
    equal: bool = False
    by_data: bool = False
    """Compared by a digest of what is not zero, the disk being too large for a SHA-256."""
    checked: str = ""
    sound: bool = False

    @classmethod
    def of_task(cls, session: dict[str, Any], vm: str, task: dict[str, Any]) -> "Outcome":
        """From a session's task as the API tells it; a restore may tell its progress alone."""
        stats = task.get("stats") or {}
        progress = task.get("progress") or {}
        restored = session["kind"] == "restore"
        moved = int(stats.get("stored_bytes") or progress.get("stored_bytes") or 0)
        read = int(stats.get("read_bytes") or progress.get("read_bytes") or 0)
        return cls(
            what="restore VM" if restored else str(task.get("read_mode") or session["kind"]),
            vm=vm,
            disk=str(task.get("label") or task["disk_key"]),
            mode=str(task.get("mode") or "-"),
            proxy=str(task.get("proxy") or "-"),
            read_bytes=read,
            transferred_bytes=moved,
            duration_s=float(stats.get("duration_s") or _span_s(task)),
            restored=restored,
        )

    @property
    def good(self) -> bool:
        """Compared, equal, and every file system clean."""
        return self.compared and self.equal and self.sound

    @property
    def ratio(self) -> float:
        """How much smaller the data was in the repository than on the disk; 0 when nothing moved."""
        large, small = self.read_bytes, self.transferred_bytes
        if self.restored:
            large, small = small, large
        return large / small if small else 0

    @property
    def rate_mb_s(self) -> float:
        """Megabytes of the disk's data per second."""
        on_disk_bytes = self.transferred_bytes if self.restored else self.read_bytes
        return on_disk_bytes / self.duration_s / 1e6 if self.duration_s else 0

    def compare(self, image: Path, wanted: str) -> None:
        """Compare a restored file with the digest of its source and check its file systems."""
        self.equal = digest(image) == wanted
        self.by_data = image.stat().st_size > LARGEST_HASHED_BYTES
        try:
            self.checked, self.sound = _check_volumes(image, databases=self.equal)
        except LabError as error:
            self.checked, self.sound = str(error), False
        self.compared = True

    def complaint(self) -> str:
        """What is wrong with it, in one clause."""
        if not self.compared:
            return f"{self.vm} {self.disk} was not compared"
        if not self.equal:
            return f"{self.vm} {self.disk} ({self.what}) differs from its source"
        return f"{self.vm} {self.disk} ({self.what}): {self.checked[:300]}"


def _check_volumes(image: Path, *, databases: bool) -> tuple[str, bool]:
    """What the checkers say of an image, and whether all is well. Databases are only read on request:
    files of a damaged file system may not be readable at all.
    """
    results = verify.fsck(image)
    bad = [f"{result.volume}: {result.text}" for result in results if not result.clean]
    if databases:
        verdicts = verify.check_databases(image)
        bad += [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict != "ok"]
    if bad:
        return "; ".join(" ".join(text.split()) for text in bad), False
    return (", ".join(result.kind for result in results) + " clean" if results else "-"), True


def _span_s(task: dict[str, Any]) -> float:
    began, ended = task.get("started_at"), task.get("finished_at")
    if not began or not ended:
        return 0
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def totals(session: dict[str, Any]) -> tuple[int, int, int]:
    """(read, transferred, capacity) in bytes over all disks of a session."""
    stats = [task.get("stats") or {} for vm in session["vms"] for task in vm["tasks"]]
    return (
        sum(int(item.get("read_bytes") or 0) for item in stats),
        sum(int(item.get("stored_bytes") or 0) for item in stats),
        sum(int(item.get("capacity_bytes") or 0) for item in stats),
    )


def increment_sentence(full: dict[str, Any], increment: dict[str, Any]) -> str:
    """How much less the second run had to read."""
    full_read, full_stored, capacity = totals(full)
    read, stored, _ = totals(increment)
    share = 100 * read / full_read if full_read else 0
    return (
        f"the increment read {read / _MIB:,.0f} MiB of {capacity / _MIB:,.0f} MiB on the disks "
        f"({share:.1f} % of the {full_read / _MIB:,.0f} MiB of the first run) and transferred "
        f"{stored / _MIB:,.0f} MiB (first run: {full_stored / _MIB:,.0f} MiB)"
    )


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """The closing table."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("run", "VM", "disk", "mode", "proxy"):
        table.add_column(name, no_wrap=True)
    for name in ("read MiB", "transferred MiB", "ratio", "MB/s"):
        table.add_column(name, justify="right")
    table.add_column("SHA-256 equal")
    table.add_column("file systems")
    before = outcomes[0].what if outcomes else ""
    for outcome in outcomes:
        if outcome.what != before:
            table.add_section()
            before = outcome.what
        table.add_row(
            outcome.what,
            outcome.vm,
            outcome.disk,
            outcome.mode,
            outcome.proxy,
            f"{outcome.read_bytes / _MIB:,.1f}",
            f"{outcome.transferred_bytes / _MIB:,.1f}",
            f"{outcome.ratio:.2f}" if outcome.ratio else "-",
            f"{outcome.rate_mb_s:,.0f}" if outcome.rate_mb_s else "-",
            ("[green]yes[/]" if outcome.equal else "[bold red]NO[/]")
            + ("*" if outcome.by_data else ""),
            outcome.checked if outcome.sound else "[bold red]DAMAGED[/]",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    console.print(table)
    console.print(
        "full, increment: what the backup moved; SHA-256 of the disk restored to a raw file from that point.\n"
        "restore VM: read from the repository, written to the new VM's disk; SHA-256 of that disk."
    )
    if any(outcome.by_data for outcome in outcomes):
        console.print(
            "* size, places and content of all blocks that are not zero, in place of terabytes of zeros"
        )
