"""Long work on machines that a person asked for: a journal that can be followed, and that survives a restart.

An operation is a row of `settings`, "operation/<id>", with JSON; beside it "operating/<target>" holds its id while it
runs, so that two never work on one machine or proxy at a time. The newest of those that ended are kept.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Setting, new_id
from backup_server.errors import ConflictError, NotFoundError, VmhaulError
from backup_server.services import instances
from backup_server.services.context import Context
from backup_server.services.shapes import when

KEPT: Final = 50
_PREFIX: Final = "operation/"
_LOCK: Final = "operating/"
DATABASE_RETRY_S: Final = 2.0
RUNNING: Final = "running"
SUCCESS: Final = "success"
FAILED: Final = "failed"

Work = Callable[["Journal"], dict[str, Any]]
"""Does it; answers what it made, for `result`. VmhaulError ends it as failed."""


@dataclass(slots=True)
class Journal:
    """What an operation did so far. Written at each step, so that a restart finds how far it came."""

    ctx: Context
    row: dict[str, Any]
    locks: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.row["id"])

    def step(self, name: str, text: str) -> None:
        """A step begins. ConflictError when the server is about to stop: nothing new is begun then."""
        if self.ctx.stopping.is_set():
            raise ConflictError("the server is being stopped; start this again when it runs")
        self.row["steps"].append({"name": name, "text": text, "at": when(self.ctx.clock())})
        self.write()
        self.ctx.log.info("operation.step", operation=self.id, step=name, text=text)

    def note(self, **facts: Any) -> None:
        """Facts that undoing after a crash needs."""
        self.row["facts"].update(facts)
        self.write()

    def take(self, target: str) -> None:
        """Work on that alone. ConflictError when another operation does."""
        try:
            with self.ctx.db() as s:
                s.add(Setting(name=_LOCK + target, value=self.id))
        except DuplicateError:
            raise ConflictError(
                f"another operation works on {target} now; see `vmhaul operation list`, and try again later"
            ) from None
        self.locks.append(target)

    def give_back(self, target: str) -> None:
        with self.ctx.db() as s:
            s.execute(sa.delete(Setting).where(Setting.name == _LOCK + target))
        self.locks.remove(target)

    def write(self) -> None:
        with self.ctx.db() as s:
            s.merge(Setting(name=_PREFIX + self.id, value=json.dumps(self.row)))


def start(ctx: Context, kind: str, target: str, work: Work, *, takes: Sequence[str]) -> dict[str, Any]:
    """The operation, running on a thread of its own. ConflictError when one of `takes` is being worked on."""
    row: dict[str, Any] = {
        "id": new_id(),
        "kind": kind,
        "target": target,
        "state": RUNNING,
        "owner": _owner(ctx),
        "created_at": when(ctx.clock()),
        "finished_at": None,
        "steps": [],
        "error": "",
        "facts": {},
        "result": {},
    }
    journal = Journal(ctx, row)
    journal.write()
    try:
        for name in takes:
            journal.take(name)
    except ConflictError:
        _end(journal)
        with ctx.db() as s:
            s.execute(sa.delete(Setting).where(Setting.name == _PREFIX + journal.id))
        raise
    thread = threading.Thread(
        target=_carry_out, args=(journal, work), name=f"vmhaul-{kind}", daemon=True
    )
    ctx.at_work[:] = [one for one in ctx.at_work if one.is_alive()]
    ctx.at_work.append(thread)
    thread.start()
    return shape(row)


def _carry_out(journal: Journal, work: Work) -> None:
    row, log = journal.row, journal.ctx.log
    try:
        row["result"] = work(journal)
        row["state"] = SUCCESS
    except VmhaulError as error:
        row["error"] = error.message
    except sa.exc.DBAPIError as error:
        row["error"] = (
            f"the job database did not answer ({str(error.orig).strip()}); see that it runs, then {_the_way_on(row)}"
        )
    except Exception as error:
        log.exception("operation.broken", operation=journal.id, kind=row["kind"])
        row["error"] = f"a defect of vmhaul ({type(error).__name__}); the server's log has the details"
    finally:
        if row["state"] == RUNNING:
            row["state"] = FAILED
            log.warning("operation.failed", operation=journal.id, text=row["error"])
        row["finished_at"] = when(journal.ctx.clock())
        _write_end(journal)


def _write_end(journal: Journal) -> None:
    """However long the database is away: else it would run for ever, and nobody could work on its machine again."""
    ctx = journal.ctx
    while True:
        try:
            _end(journal)
            _forget_old(ctx)
            # Last: who follows it may go on once this is read.
            journal.write()
        except sa.exc.DBAPIError as error:
            ctx.log.warning("operation.not-written", operation=journal.id, error=str(error.orig))
            if ctx.stopping.wait(DATABASE_RETRY_S):
                return  # the next start finds it
        else:
            return


def _end(journal: Journal) -> None:
    with journal.ctx.db() as s:
        s.execute(sa.delete(Setting).where(Setting.name.startswith(_LOCK), Setting.value == journal.id))
    journal.locks.clear()


def get(ctx: Context, operation_id: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        row = s.get(Setting, _PREFIX + operation_id)
        if row is None:
            raise NotFoundError(
                f"there is no operation {operation_id!r}; only the newest {KEPT} are kept"
            )
        return shape(json.loads(row.value))


def list_all(ctx: Context) -> list[dict[str, Any]]:
    """Newest first."""
    with ctx.db.read() as s:
        return [shape(row) for row in reversed(_rows(s))]


def running_on(s: DbSession) -> dict[str, dict[str, Any]]:
    """Operations that run now, by what they work on ("proxy/<id>", "server/<id>")."""
    held = s.execute(sa.select(Setting.name, Setting.value).where(Setting.name.startswith(_LOCK))).all()
    if not held:
        return {}
    rows = {row["id"]: row for row in _rows(s)}
    return {name.removeprefix(_LOCK): shape(rows[held_by]) for name, held_by in held if held_by in rows}


def interrupted(ctx: Context) -> list[dict[str, Any]]:
    """At a server's start: operations that it carried out when it ended, marked as failed. Answers them whole."""
    # Release 0.5.0 wrote the machine's name and the directory instead.
    owners = {_owner(ctx), f"{socket.gethostname()}:{ctx.settings.data_dir}"}
    found = []
    with ctx.db() as s:
        for row in _rows(s):
            if row["state"] != RUNNING or row["owner"] not in owners:
                continue
            row["state"] = FAILED
            row["error"] = f"the server ended in the middle; {_the_way_on(row)}"
            row["finished_at"] = when(ctx.clock())
            s.merge(Setting(name=_PREFIX + row["id"], value=json.dumps(row)))
            s.execute(
                sa.delete(Setting).where(Setting.name.startswith(_LOCK), Setting.value == row["id"])
            )
            found.append(row)
    return found


def _the_way_on(row: dict[str, Any]) -> str:
    """After an operation that was cut off."""
    if row["kind"] == "add":
        return f"take away what is there already with `vmhaul proxy remove {row['target']}`, and add it again"
    return "start it again: what is done already is found"


def shape(row: dict[str, Any]) -> dict[str, Any]:
    """For people and programs."""
    hidden = {"owner", "facts"}
    return {name: value for name, value in row.items() if name not in hidden}


def _rows(s: DbSession) -> list[dict[str, Any]]:
    texts = s.scalars(sa.select(Setting.value).where(Setting.name.startswith(_PREFIX)))
    return sorted((json.loads(text) for text in texts), key=lambda row: (row["created_at"], row["id"]))


def _forget_old(ctx: Context) -> None:
    with ctx.db() as s:
        ended = [row["id"] for row in _rows(s) if row["state"] != RUNNING]
        for old in ended[:-KEPT]:
            s.execute(sa.delete(Setting).where(Setting.name == _PREFIX + old))


def _owner(ctx: Context) -> str:
    """This installation of the server: one of two on a database ends only its own. By its data directory, not by the
    machine's name: a container has another one each time it is made.
    """
    return instances.instance_id(ctx.settings)
