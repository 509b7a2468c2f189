"""Jobs that follow other jobs."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.db.states import Result, SessionState
from backup_server.db.tables import Session, Task
from backup_server.errors import InvalidError
from backup_server.services import chains, jobs, sessions
from tests.fakes.server import Rig
from transports.errors import TransientTransportError


def chained(rig: Rig, **values: Any) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job("first", **values)
    rig.job("second", after_job="first")


def of(rig: Rig, job: str) -> list[Session]:
    return rig.rows(Session, job_name=job)


def fail(_task: Task) -> tuple[Result, str]:
    return Result.FAILED, "broken"


def test_a_job_runs_when_a_session_of_the_other_has_ended(rig: Rig) -> None:
    chained(rig)
    first = rig.run("first")
    [second] = of(rig, "second")
    assert second.options["trigger"] == "chain"
    assert second.options["after_session"] == first["id"]
    assert rig.drive(second.id)["result"] == "success"
    assert len(of(rig, "first")) == len(of(rig, "second")) == 1


@pytest.mark.parametrize(("after", "runs"), [("good", 0), ("any", 1)])
def test_after_a_failure_it_runs_only_where_that_is_wanted(rig: Rig, after: str, runs: int) -> None:
    chained(rig)
    jobs.edit(rig.ctx, "second", {"after_result": after})
    rig.proxies.outcome = fail
    assert rig.run("first")["result"] == "failed"
    assert len(of(rig, "second")) == runs


def test_nothing_follows_what_a_person_cancelled(rig: Rig) -> None:
    chained(rig)
    jobs.edit(rig.ctx, "second", {"after_result": "any"})
    session = jobs.run(rig.ctx, "first")
    sessions.cancel(rig.ctx, session["id"])
    assert rig.drive(session["id"])["result"] == "cancelled"
    assert of(rig, "second") == []


@pytest.mark.parametrize(("after", "runs"), [("good", 0), ("any", 1)])
def test_a_session_that_could_not_begin_has_ended_too(rig: Rig, after: str, runs: int) -> None:
    chained(rig, retries={"count": 1, "wait_s": 60})
    jobs.edit(rig.ctx, "second", {"after_result": after})
    rig.vcenter.fail("inventory", *[TransientTransportError("away")] * 2 * rig.settings.step_tries)
    assert rig.run("first")["result"] == "failed"
    assert of(rig, "second") == [], "it is tried again"
    [retry] = rig.rows(Session, state=SessionState.QUEUED.value)
    rig.clock.advance(120)
    assert rig.drive(retry.id)["result"] == "failed"
    assert [row.options["after_session"] for row in of(rig, "second")] == [retry.id] * runs


def test_the_retries_of_the_first_end_before_the_second_begins(rig: Rig) -> None:
    chained(rig, retries={"count": 1, "wait_s": 60})
    rig.proxies.outcome = fail
    rig.run("first")
    assert of(rig, "second") == []
    rig.proxies.outcome = lambda task: (Result.SUCCESS, "")
    [retry] = rig.rows(Session, state=SessionState.QUEUED.value)
    rig.clock.advance(120)
    assert rig.drive(retry.id)["result"] == "success"
    [second] = of(rig, "second")
    assert second.options["after_session"] == retry.id


def test_what_ends_while_the_second_runs_makes_it_run_once_more(rig: Rig) -> None:
    chained(rig)
    rig.run("first")
    [second] = of(rig, "second")
    rig.engine.run_once()  # it runs now
    third = jobs.run(rig.ctx, "first")
    # Both jobs have the same VM: the second's run has it, so the first waits until that has ended.
    rig.drive(second.id)
    rig.drive(third["id"])
    rows = of(rig, "second")
    assert {row.options["after_session"] for row in rows} >= {third["id"]}


def test_a_run_that_is_under_way_is_followed_by_another(rig: Rig) -> None:
    chained(rig)
    second = jobs.run(rig.ctx, "second")
    rig.engine.run_once()
    for _ in range(2):
        rig.engine.run_once()
    # An empty selection ends at once, while the second still reads.
    jobs.edit(rig.ctx, "second", {"after_result": "any"})
    rig.vcenter.add_vm("web01", disks=1)
    jobs.edit(rig.ctx, "first", {"selection": {"include": [{"type": "vm", "name": "web01"}]}})
    ended = jobs.run(rig.ctx, "first")
    for _ in range(3):
        rig.engine.run_once()
    [own] = [t for t in rig.rows(Task) if t.session_id == ended["id"]]
    with rig.ctx.db() as s:
        stored = s.get_one(Task, own.id)
        stored.state, stored.result, stored.map_root = "done", "success", "ab" * 32
    for _ in range(4):
        rig.engine.run_once()
    assert sessions.get(rig.ctx, ended["id"])["state"] == "finished"
    assert len(of(rig, "second")) == 1
    rig.drive(second["id"])
    again = [row for row in of(rig, "second") if row.id != second["id"]]
    assert [row.options["after_session"] for row in again] == [second["id"]]
    rig.drive(again[0].id)
    assert len(of(rig, "second")) == 2


def under_way(rig: Rig) -> tuple[Session, Session]:
    """A session of the first that has ended, and one of the second that runs."""
    chained(rig)
    ended = rig.run("first")
    [second] = of(rig, "second")
    rig.engine.run_once()
    rig.engine.run_once()
    assert of(rig, "second")[0].state == SessionState.RUNNING.value
    [first] = rig.rows(Session, id=ended["id"])
    return first, second


def ends_again(rig: Rig, first: Session) -> None:
    with rig.ctx.db() as s:
        assert chains.start_followers(s, first, Result.SUCCESS, rig.clock.now) == []


def test_all_that_ended_meanwhile_is_one_more_run(rig: Rig) -> None:
    first, second = under_way(rig)
    for _ in range(3):
        ends_again(rig, first)
    assert rig.drive(second.id)["result"] == "success"
    [again] = [row for row in of(rig, "second") if row.id != second.id]
    assert rig.drive(again.id)["result"] == "success"
    assert len(of(rig, "second")) == 2


def test_what_a_person_cancels_does_not_begin_again_for_what_ended_meanwhile(rig: Rig) -> None:
    first, second = under_way(rig)
    ends_again(rig, first)
    sessions.cancel(rig.ctx, second.id)
    assert rig.drive(second.id)["result"] == "cancelled"
    assert len(of(rig, "second")) == 1
    said = [event["text"] for event in sessions.events(rig.ctx, second.id)]
    assert any("starts it no more" in text for text in said), said


def test_a_disabled_job_follows_nobody(rig: Rig) -> None:
    chained(rig)
    jobs.edit(rig.ctx, "second", {"enabled": False})
    rig.run("first")
    assert of(rig, "second") == []


def test_the_window_of_the_second_is_kept(rig: Rig) -> None:
    chained(rig)
    jobs.edit(rig.ctx, "second", {"window": {"text": "daily 23:00-23:30"}})
    rig.run("first")
    [second] = of(rig, "second")
    assert sessions.get(rig.ctx, second.id)["waits_until"] == "2026-03-02T23:00:00Z"
    for _ in range(3):
        rig.engine.run_once()
    assert of(rig, "second")[0].state == "queued"


def test_circles_are_refused(rig: Rig) -> None:
    chained(rig)
    with pytest.raises(InvalidError, match="start each other for ever"):
        jobs.edit(rig.ctx, "first", {"after_job": "second"})
    with pytest.raises(InvalidError, match="start each other for ever"):
        jobs.edit(rig.ctx, "first", {"after_job": "first"})


def test_a_circle_by_way_of_a_copy_after_each_backup_is_refused(rig: Rig) -> None:
    from backup_server.services import repositories
    from transports.vsphere.model import Secret

    repositories.add(rig.ctx, name="r2", location="/backup/r2", password=Secret("correct horse"))
    rig.job("nightly")
    copy = {
        "name": "off-site",
        "kind": "copy",
        "source_repository": "r1",
        "repository": "r2",
        "selection": {"include": [{"type": "all"}]},
        "after_backup": True,
    }
    jobs.create(rig.ctx, copy)
    with pytest.raises(InvalidError, match="start each other for ever"):
        jobs.edit(rig.ctx, "nightly", {"after_job": "off-site"})


def test_a_job_that_is_deleted_is_followed_no_more(rig: Rig) -> None:
    chained(rig)
    jobs.remove(rig.ctx, "first")
    assert jobs.get(rig.ctx, "second")["after_job"] is None


def test_a_job_is_told_by_name_and_taken_away_by_null(rig: Rig) -> None:
    chained(rig)
    assert jobs.get(rig.ctx, "second")["after_job"] == "first"
    assert jobs.edit(rig.ctx, "second", {"after_job": None})["after_job"] is None
