"""Live progress on a terminal: one bar for each running disk and one for the session."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from backup_server import formats
from backup_server.cli import output, summary
from backup_server.deploy.said import harmless


class _FieldColumn(ProgressColumn):
    """A field of the bar, right-aligned to a width that does not jump."""

    def __init__(self, name: str, width: int, style: str = "") -> None:
        super().__init__()
        self._name = name
        self._width = width
        self._style = style

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self._name, "")).rjust(self._width), style=self._style)


class Bars:
    """Context manager around rich's Progress, fed with sessions of the API."""

    def __init__(self) -> None:
        self._console = output.console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _FieldColumn("share", 5),
            _FieldColumn("rate", 12, "cyan"),
            _FieldColumn("eta", 10),
            _FieldColumn("note", 27, "dim"),
            console=self._console,
            expand=True,
            transient=True,
        )
        self._total: TaskID | None = None
        self._disks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, line: str, *, level: str) -> None:
        self._console.print(Text(harmless(line), style=output.STYLES.get(level, "")))

    def show(self, session: dict[str, Any]) -> None:
        """Bring the bars to what the session says."""
        self._show_total(session)
        running = {
            str(task["id"]): (vm, task)
            for vm, task in summary.disk_tasks(session)
            if task["state"] == "running"
        }
        for task_id in set(self._disks) - set(running):
            self._progress.remove_task(self._disks.pop(task_id))
        for task_id, (vm, task) in running.items():
            if task_id not in self._disks:
                name = harmless(f"{vm['name']} / {task.get('label') or task.get('disk_key')}")
                self._disks[task_id] = self._progress.add_task(name, total=None)
            where = (str(task.get("proxy") or ""), summary.mode_path(task))
            note = ", ".join(word for word in where if word)
            self._update(self._disks[task_id], task.get("progress") or {}, note)

    def _show_total(self, session: dict[str, Any]) -> None:
        if self._total is None:
            self._total = self._progress.add_task("", total=None)
        done = summary.disks_done(session) or _what_vms_do(session)
        words = [word for word in (summary.title(session), done) if word]
        self._progress.update(self._total, description=harmless(", ".join(words)))
        self._update(self._total, session.get("progress") or {}, "")

    def _update(self, bar: TaskID, progress: dict[str, Any], note: str) -> None:
        done, total = progress.get("done_bytes") or 0, progress.get("total_bytes") or 0
        bottleneck = progress.get("bottleneck")
        slow = f"bottleneck {bottleneck}" if bottleneck else progress.get("phase")
        words = [word for word in (slow, note) if word]
        self._progress.update(
            bar,
            completed=done,
            total=total or None,
            share=f"{100 * done / total:.0f} %" if total else "",
            rate=formats.rate(progress.get("bytes_per_s")) if total else "",
            eta=_eta(progress),
            note=harmless(", ".join(words)),
        )


def _eta(progress: dict[str, Any]) -> str:
    eta_s = progress.get("eta_s")
    rate = progress.get("bytes_per_s") or 0
    left = (progress.get("total_bytes") or 0) - (progress.get("done_bytes") or 0)
    if eta_s is None and rate > 0 and left > 0:
        eta_s = left / rate
    return f"ETA {formats.duration(eta_s)}" if eta_s is not None else ""


def _what_vms_do(session: dict[str, Any]) -> str:
    counts = session.get("counts") or {}
    return ", ".join(f"{counts[name]} {name}" for name in ("waiting", "active") if counts.get(name))
