"""What becomes of sessions that are so old that nobody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from backup_server.config import Settings
from backup_server.db.tables import (
    Event,
    Intent,
    JobRun,
    RestorePointRow,
    Session,
    SessionVm,
    Task,
)
from backup_server.errors import SettingsError
from backup_server.services import events, history, jobs, retention, sessions
from tests.fakes.server import Rig
from transports.errors import TransientTransportError

DAY_S = 86_400


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, migrated_url, history_days=30).site()
    rig.vcenter.add_vm("db01", disks=2)
    yield rig
    rig.close()


def pass_days(rig: Rig, days: int) -> None:
    """The daily pass looks at the clock each day."""
    for _ in range(days):
        rig.clock.advance(DAY_S)
        retention.daily(rig.ctx)


def ids(rig: Rig) -> set[str]:
    return {row.id for row in rig.rows(Session)}


def test_old_sessions_go_with_their_rows_and_their_points_stay(rig: Rig) -> None:
    rig.job(retention={"keep": 30})
    old = [rig.run()["id"] for _ in range(3)]
    with rig.ctx.db() as s:
        events.record(s, rig.clock.now, "server.started", "of no session")
        job = s.scalars(sa.select(Session.job_id)).first()
        s.add(JobRun(job_id=job, due_at=rig.clock.now, outcome="started"))
    pass_days(rig, 20)
    young = rig.run()["id"]
    assert history.forget(rig.ctx) == 0, "none is thirty days old"
    pass_days(rig, 11)
    before = rig.clock.now - timedelta(days=30)
    assert history.forget(rig.ctx) == 3
    assert ids(rig) >= {young}
    assert not ids(rig) & set(old)
    for table in (SessionVm, Task, Intent):
        assert {row.session_id for row in rig.rows(table)} == {young}
    assert {row.session_id for row in rig.rows(Event)} <= {None, *ids(rig)}
    assert all(row.at >= before for row in rig.rows(Event, session_id=None))
    assert rig.rows(JobRun) == []
    # The points are those of before, and do not name what is no more.
    assert [row.session_id for row in rig.points()] == [None, None, None, young]
    assert sessions.list_all(rig.ctx)["items"][-1]["id"] == young
    assert rig.run()["result"] == "success", "and the chain goes on"


def test_what_is_said_of_a_job_as_it_is_now_stays_however_old(rig: Rig) -> None:
    rig.job()
    good = rig.run()["id"]
    rig.run()
    rig.vcenter.fail("create_snapshot", *[TransientTransportError("busy")] * 60)
    failed = rig.run()["id"]
    pass_days(rig, 90)
    history.forget(rig.ctx)
    kept = {row.id for row in rig.rows(Session, kind="backup")}
    assert failed in kept, "its last session"
    assert good not in kept, "there is a newer good one"
    assert len(kept) == 2
    assert jobs.get(rig.ctx, "job1")["last_session"]["id"] == failed


def test_a_session_that_left_something_in_vsphere_stays(rig: Rig) -> None:
    rig.job()
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * 3)
    left = rig.run()["id"]
    assert rig.open_intents()
    rig.vcenter.add_vm("other", disks=1)
    jobs.edit(rig.ctx, "job1", {"selection": {"include": [{"type": "vm", "name": "other"}]}})
    rig.run()
    pass_days(rig, 90)
    history.forget(rig.ctx)
    assert left in ids(rig)
    rig.janitor.run_once()
    assert rig.open_intents() == []
    history.forget(rig.ctx)
    assert left not in ids(rig)


def test_a_clock_that_was_set_forward_deletes_nothing(rig: Rig) -> None:
    rig.job()
    rig.run()
    rig.run()
    pass_days(rig, 1)
    before = ids(rig)
    rig.clock.advance(400 * DAY_S)
    assert history.forget(rig.ctx) == 0
    assert ids(rig) == before
    pass_days(rig, 1)
    assert history.forget(rig.ctx) == 0, "for a day somebody may look at the clock"
    assert ids(rig) >= before


def test_a_visit_deletes_a_bounded_number_of_rows_and_the_next_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.job(retention={"keep": 30})
    old = {rig.run()["id"] for _ in range(4)}
    pass_days(rig, 40)
    young = rig.run()["id"]
    monkeypatch.setattr(history, "MOST_BATCHES", 6)
    seen = [len(ids(rig) & old)]
    while seen[-1]:
        history.forget(rig.ctx)
        seen.append(len(ids(rig) & old))
        assert len(seen) < 20
    assert len(seen) > 3, "not all at once"
    assert young in ids(rig)
    assert len(rig.rows(RestorePointRow)) == 5


def test_zero_keeps_everything_and_less_than_a_month_is_refused(
    tmp_path: Path, migrated_url: str
) -> None:
    rig = Rig(tmp_path, migrated_url, history_days=0).site()
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    rig.run()
    before = ids(rig)
    pass_days(rig, 800)
    assert history.forget(rig.ctx) == 0
    assert ids(rig) >= before
    rig.close()
    with pytest.raises((SettingsError, ValueError), match="at least 30"):
        Settings(data_dir=tmp_path, history_days=7)


def test_the_janitor_sees_to_it(rig: Rig) -> None:
    rig.job()
    old = rig.run()["id"]
    rig.run()
    pass_days(rig, 40)
    rig.janitor.run_once()
    assert old not in ids(rig)
