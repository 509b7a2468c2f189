"""One round, from an empty directory to its findings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos.inject import Injector
from tests.chaos.judge import USER_SNAPSHOT, Database, Judge, log_findings
from tests.chaos.oracle import SnapshotWatcher
from tests.chaos.patience import PATIENCE
from tests.chaos.plan import VMS, RoundPlan
from tests.chaos.stand import Stand, wait_for
from tests.chaos.workload import Workload
from tests.e2e import operator

SETTLE_S: Final = 150.0
"""Within this everything has ended and nothing is left, once the last fault is healed."""
LAST_BACKUP_S: Final = 90.0
_DONE: Final = ("success", "warning")


@dataclass
class Outcome:
    """What a round found, and what it was about."""

    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    """Transport mode -> tasks."""
    points: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Round:
    def __init__(self, plan: RoundPlan, directory: Path, template: Path) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._directory = directory
        self._template = template
        self._began = time.monotonic()
        self._log = (directory / "round.log").open("a", buffering=1)

    def say(self, text: str) -> None:
        self._log.write(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._began:6.1f}  {text}\n")

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self.say(f"-- {name}")
        try:
            yield
        finally:
            self.outcome.seconds[name] = round(time.monotonic() - began, 1)

    def run(self) -> Outcome:
        """Never raises for what the product does."""
        for line in self.plan.lines():
            self.say(line)
        stand = Stand(self._directory, self.plan, self._template)
        found = self.outcome.findings
        try:
            self._all(stand)
        except Exception as error:  # noqa: BLE001 - a round that breaks off is a finding
            found.append(f"the round broke off: {error!r}")
        finally:
            with self._timed("stop"):
                found += stand.stop()
        for part in stand.parts.values():
            if part.ends:
                self.outcome.remarks.append(f"{part.name} ended by itself: {part.ends}")
        self.outcome.remarks += log_findings(sorted(self._directory.glob("*.log")))
        for line in found:
            self.say(f"FINDING {line}")
        for line in self.outcome.remarks:
            self.say(f"remark {line}")
        self._log.close()
        return self.outcome

    def _all(self, stand: Stand) -> None:
        with self._timed("start"):
            stand.start()
            stand.set_up()
            database = Database(stand.database_url)
            database.watch_ends()
        watcher = SnapshotWatcher(stand.site.control)
        watcher.start()
        try:
            self._with_watcher(stand, database, watcher)
        finally:
            watcher.stop()

    def _with_watcher(self, stand: Stand, database: Database, watcher: SnapshotWatcher) -> None:
        workload = Workload(stand, self.say)
        judge = Judge(stand, database, watcher.frozen)
        found = self.outcome.findings
        if self.plan.baseline:
            with self._timed("baseline"):
                found += self._backup_of_all(workload, "before the faults")
        if self.plan.user_snapshot:
            operator.take_snapshot(stand.site, VMS[0], USER_SNAPSHOT)
        stand.site.control.fault("nfc-delay", 1_000_000, delay_s=self.plan.read_delay_s)
        injector = Injector(stand, self.say)
        with self._timed("faults"):
            workload.start()
            injector.start()
            time.sleep(self.plan.lasts_s)
            workload.stop()
            injector.heal()
        found += [f"a fault could not be made: {text}" for text in injector.errors]
        with self._timed("settle"):
            workload.join()
            self._settle(judge)
        found += [f"the work broke off: {text}" for text in workload.errors]
        with self._timed("last backup"):
            found += self._backup_of_all(workload, "after the faults")
            self._settle(judge)
        with self._timed("verdict"):
            watcher.settle()
            found += judge.verdict(workload.restores)
            found += judge.checks(workload.checks)
            found += self._check(workload, "main")
            if self.plan.copies:
                found += self._check(workload, "second")
        self._figures(database, judge)

    def _settle(self, judge: Judge) -> None:
        """Findings for what is not as it must be in time."""
        until = PATIENCE.now_s() + SETTLE_S
        for look in (judge.unfinished, judge.leftovers, judge.counters):
            try:
                wait_for("rest", lambda look=look: not look(), max(5.0, until - PATIENCE.now_s()), 0.3)
            except TimeoutError:
                self.outcome.findings += [
                    f"{text}, {SETTLE_S:.0f} s after the faults" for text in look()
                ]

    def _backup_of_all(self, workload: Workload, when: str) -> Iterator[str]:
        sessions = [workload.run_job(f"nightly-{vm}") for vm in VMS]
        for session in sessions:
            done = workload.wait_for(session, LAST_BACKUP_S)
            if done["result"] not in _DONE:
                yield f"the backup {when} ended with {done['result']}: {done['reason']} {_tasks(done)}"

    def _check(self, workload: Workload, repository: str) -> Iterator[str]:
        session = workload.post(f"/repositories/{repository}/check", {"read_data": True})
        done = workload.wait_for(str(session["id"]), LAST_BACKUP_S)
        if done["result"] != "success" or done["report"].get("problems"):
            yield f"check of {repository}: {done['result']} {done['reason']} {done['report']}"

    def _figures(self, database: Database, judge: Judge) -> None:
        rows = database.rows(
            "SELECT kind, result, count(*) AS times FROM sessions GROUP BY kind, result"
        )
        self.outcome.sessions = {f"{row.kind} {row.result}": row.times for row in rows}
        attempts = database.rows("SELECT coalesce(sum(attempt), 0) AS n FROM tasks")
        self.outcome.attempts = int(attempts[0].n)
        self.outcome.points = judge.points
        rows = database.rows("SELECT mode, count(*) AS times FROM tasks GROUP BY mode")
        self.outcome.modes = {str(row.mode): row.times for row in rows}


def _tasks(session: dict[str, Any]) -> list[str]:
    return [
        f"{vm['name']}: {vm['reason']} / {task['label']} {task['result']} {task['reason']}"
        for vm in session["vms"]
        for task in vm["tasks"]
    ]
