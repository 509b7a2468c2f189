"""Two transactions on PostgreSQL that meet on one row: what the first one wrote is not lost by the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result, SessionState, TaskState, VmState
from backup_server.db.tables import Session, SessionVm, Task, new_id
from backup_server.services import chains, jobs, repositories, results, session_end, tasks
from backup_server.services.results import Ended, RetryPolicy
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, TaskOutcome
from tests.fakes.server import Rig, running_task
from tests.integration.queue.rig import wait_for
from tests.support.postgres import create_database, somebody_waits
from transports.vsphere.model import Secret

POLICY = RetryPolicy(attempts=3, wait_s=10)
pytestmark = pytest.mark.postgres


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, postgres_template: str) -> Iterator[Rig]:
    url = create_database(postgres_url, f"t{uuid4().hex}", template=postgres_template)
    rig = Rig(tmp_path, url).site()
    yield rig
    rig.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def begin_and_wait(rig: Rig, pool: ThreadPoolExecutor, work: Callable[[], None]) -> Future[None]:
    """Begin `work` on a thread; answers once it waits for a lock that somebody else holds."""
    begun = pool.submit(work)
    wait_for(lambda: somebody_waits(rig.ctx.db), "the waiting for the other transaction")
    return begun


def test_a_job_that_ends_while_it_is_to_follow_follows(rig: Rig, pool: ThreadPoolExecutor) -> None:
    """The end of the one job finds the other one running, and that one ends in the same moment."""
    rig.job("first")
    rig.job("second", after_job="first")
    ended, other = (jobs.run(rig.ctx, name)["id"] for name in ("first", "second"))
    with rig.ctx.db() as s:
        s.execute(sa.update(Session).values(state=SessionState.RUNNING.value, started_at=rig.clock.now))
    with rig.ctx.db() as s:
        chains.start_followers(s, s.get_one(Session, ended), Result.SUCCESS, rig.clock.now)
        s.flush()
        end = begin_and_wait(rig, pool, lambda: session_end.finish(rig.ctx, other))
    end.result(60)
    [again] = rig.rows(Session, job_name="second", state=SessionState.QUEUED.value)
    assert again.options["after_session"] == other


def test_a_copy_that_ends_while_a_backup_does_copies_that_too(
    rig: Rig, pool: ThreadPoolExecutor
) -> None:
    """The end of the backup finds the copy running, and the copy ends in the same moment."""
    repositories.add(rig.ctx, name="r2", location="/backup/r2", password=Secret("offsite password"))
    rig.job("nightly")
    copying = {"kind": "copy", "source_repository": "r1", "repository": "r2", "after_backup": True}
    jobs.create(rig.ctx, {"name": "offsite", "retries": {"count": 0, "wait_s": 0}, **copying})
    backup, copy = (jobs.run(rig.ctx, name)["id"] for name in ("nightly", "offsite"))
    now = rig.clock.now
    with rig.ctx.db() as s:
        s.execute(sa.update(Session).values(state=SessionState.RUNNING.value, started_at=now))
        vm = SessionVm(id=new_id(), session_id=copy, position=0, moref="", instance_uuid=new_id())
        vm.name, vm.state, vm.result = "db01", VmState.DONE.value, Result.SUCCESS.value
        s.add(vm)
    with rig.ctx.db() as s:
        over = {"state": SessionState.FINISHED.value, "result": Result.SUCCESS.value}
        s.execute(sa.update(Session).where(Session.id == backup).values(finished_at=now, **over))
        session_end._copy_after(rig.ctx, s, s.get_one(Session, backup), made_points=True)
        s.flush()
        end = begin_and_wait(rig, pool, lambda: session_end.finish(rig.ctx, copy))
    end.result(60)
    assert rig.rows(Session, job_name="offsite", state=SessionState.QUEUED.value)


def test_a_result_that_comes_as_its_lease_ends_loses_nothing(
    rig: Rig, pool: ThreadPoolExecutor
) -> None:
    task = running_task(rig)
    rig.clock.advance(60)
    said = ResultReport(
        task_id=TaskId(task.id),
        attempt=Attempt(3),
        outcome=TaskOutcome.SUCCESS,
        reason="",
        map_root="ab" * 32,
        tracking_mismatch="block 7 had changed",
    )
    taken: list[Ended] = []

    def expire() -> None:
        with rig.ctx.db() as s:
            taken.extend(tasks.expire_leases(s, now=rig.clock.now, policy=POLICY))

    with rig.ctx.db() as s:
        results.apply_result(s, rig.default_proxy().id, said, policy=POLICY, now=rig.clock.now)
        s.flush()
        # It does not wait for who ends the task, and takes nothing back that is being ended.
        pool.submit(expire).result(60)
    expire()
    assert taken == []
    [row] = rig.rows(Task)
    assert (row.state, row.result) == (TaskState.DONE.value, Result.SUCCESS.value)
    assert row.facts["tracking_mismatch"] == "block 7 had changed"
    assert tasks.UNHEARD not in row.facts
