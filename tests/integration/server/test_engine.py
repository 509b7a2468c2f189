"""Who drives sessions, and that one session does not hold up the others."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from backup_server.db.states import SessionState, VmState
from backup_server.db.tables import Session, SessionVm, new_id
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


def test_a_restore_does_not_wait_for_the_vms_of_a_backup_that_came_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the few VMs that are prepared at once, the next one is the restore's."""
    sessions_of: dict[str, str] = {}
    with rig.ctx.db() as s:
        for hours, (kind, count) in enumerate((("backup", 9), ("restore", 1))):
            made = rig.clock.now + timedelta(hours=hours)
            session = Session(
                id=new_id(),
                kind=kind,
                state=SessionState.RUNNING.value,
                created_at=made,
                vcenter_id=None,
            )
            sessions_of[kind] = session.id
            s.add(session)
            s.flush()
            for position in range(count):
                s.add(
                    SessionVm(
                        id=new_id(),
                        session_id=session.id,
                        position=position,
                        moref="vm-1",
                        instance_uuid=new_id(),
                        name=f"{kind}{position}",
                        state=VmState.PENDING.value,
                    )
                )
    monkeypatch.setattr(rig.engine, "_submit", lambda *_: None)
    rig.engine.look()
    begun = rig.rows(SessionVm, state=VmState.PREPARING.value)
    assert len(begun) == rig.settings.preparing_vms
    assert [vm.name for vm in begun if vm.session_id == sessions_of["restore"]] == ["restore0"]
