from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import (
    ARROWS,
    IntentState,
    SessionState,
    StaleStateError,
    TaskState,
    VmState,
    change_state,
)
from backup_server.db.tables import Base, Session, Setting, UtcDateTime

NOW = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.fixture
def db() -> Iterator[DbSession]:
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with DbSession(engine) as session:
        yield session
    engine.dispose()


def test_change_happens_once(db: DbSession) -> None:
    db.add(Session(id="s", kind="backup", state="queued", created_at=NOW))
    db.flush()
    change_state(db, Session, "s", SessionState.QUEUED, SessionState.RUNNING, started_at=NOW)
    with pytest.raises(StaleStateError):
        change_state(db, Session, "s", SessionState.QUEUED, SessionState.RUNNING)
    db.expire_all()
    row = db.get_one(Session, "s")
    assert (row.state, row.started_at) == ("running", NOW)


def test_arrows_that_do_not_exist_are_bugs(db: DbSession) -> None:
    with pytest.raises(ValueError, match="no way"):
        change_state(db, Session, "s", SessionState.FINISHED, SessionState.RUNNING)


def test_every_state_has_an_end() -> None:
    ends = {SessionState.FINISHED, VmState.DONE, TaskState.DONE, IntentState.DONE}
    for states, arrows in ARROWS.items():
        for state in states:
            seen, todo = set(), [state]
            while todo:
                at = todo.pop()
                if at not in seen:
                    seen.add(at)
                    todo += [states(target) for target in arrows.get(at, ())]
            assert ends & seen, f"{states.__name__}.{state} leads nowhere"


def test_times_without_a_zone_are_refused(db: DbSession) -> None:
    with pytest.raises(ValueError, match="time zone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), db.get_bind().dialect)  # noqa: DTZ001 - the point


def test_one_open_session_for_a_job(db: DbSession) -> None:
    # The invariant that everything which starts a session rests on.
    for name, kind, state, job_id, fits in (
        ("a", "backup", "running", "j", True),
        ("b", "backup", "queued", "j", False),
        ("c", "copy", "running", "j", False),
        ("d", "backup", "finished", "j", True),
        ("e", "restore", "running", None, True),
        ("f", "restore", "running", None, True),
    ):
        row = Session(id=name, kind=kind, state=state, job_id=job_id, created_at=NOW)
        try:
            with db.begin_nested():
                db.add(row)
            stored = True
        except sa.exc.IntegrityError:
            stored = False
        assert stored is fits, name
    db.add(Setting(name="x", value="y"))
    db.flush()
