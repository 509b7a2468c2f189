"""Who drives sessions, and that one session does not hold up the others."""

from __future__ import annotations

import sqlalchemy as sa

from backup_server.db.states import SessionState
from backup_server.db.tables import Session
from backup_server.services import jobs, repositories, sessions
from backup_server.services.engine import SessionEngine
from tests.fakes.server import Rig


def state(rig: Rig, session_id: str) -> str:
    return str(sessions.get(rig.ctx, session_id)["state"])


def test_engine_of_a_server_that_does_not_lead_does_nothing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = str(jobs.run(rig.ctx, "job1")["id"])
    leads = False
    engine = SessionEngine(rig.ctx, leading=lambda: leads)
    engine.run_once()
    assert state(rig, session_id) == "queued"
    leads = True
    engine.run_once()
    assert state(rig, session_id) == "running"
    engine.stop()


def test_session_with_an_odd_row_does_not_hold_up_the_others(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    odd = str(repositories.check(rig.ctx, "r1")["id"])
    with rig.ctx.db() as s:
        s.execute(sa.update(Session).where(Session.id == odd).values(options={"not_before": "no time"}))
    rig.clock.advance(1)
    assert rig.run()["result"] == "success"
    assert state(rig, odd) == "queued"


def test_check_waits_for_a_prune_of_its_repository(rig: Rig) -> None:
    prune = str(repositories.prune(rig.ctx, "r1")["id"])
    rig.clock.advance(1)
    check = str(repositories.check(rig.ctx, "r1")["id"])
    rig.engine.look()  # begins the prune; the same look must not begin the check beside it
    with rig.ctx.db.read() as s:
        states = {row.id: row.state for row in s.scalars(sa.select(Session))}
    assert states == {prune: SessionState.RUNNING.value, check: SessionState.QUEUED.value}
    rig.drive(prune)
    assert rig.drive(check)["result"] == "success"
