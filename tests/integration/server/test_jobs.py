"""Jobs as the doors use them."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.db.tables import Job, Session
from backup_server.errors import (
    ConflictError,
    InvalidError,
)
from backup_server.services import (
    jobs,
    sessions,
)
from tests.fakes.server import Rig

BAD_JOB_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"vcenter": "nowhere"}, "vcenter"),
    ({"repository": "nowhere"}, "repository"),
    ({"selection": {"include": []}}, "selection"),
    ({"selection": {"include": [{"type": "planet", "name": "x"}]}}, "selection"),
    ({"selection": {"include": [{"type": "vm"}]}}, "selection"),
    ({"selection": {"include": [{"type": "all"}], "only": 1}}, "selection"),
    ({"selection": {"include": [{"type": "all"}], "exclude_disks": [{"vm": "x"}]}}, "selection"),
    ({"schedule": {"cron": "whenever"}}, "schedule"),
    ({"schedule": {"cron": "* * * * * *"}}, "schedule"),
    ({"schedule": {"cron": "0 1 * * *", "time_zone": "Mars/Olympus"}}, "schedule"),
    ({"schedule": {"cron": "0 1 * * *", "missed": "maybe"}}, "schedule"),
    ({"retention": {"keep": 0}}, "retention"),
    ({"retention": {"keep": 1, "days": 1}}, "retention"),
    ({"quiesce": "always"}, "quiesce"),
    ({"compression": "best"}, "compression"),
    ({"change_tracking": "yes"}, "change_tracking"),
    ({"full_every_days": 0}, "full_every_days"),
    ({"retries": {"count": -1}}, "retries"),
    ({"retries": {"count": 1, "wait_s": 1, "x": 1}}, "retries"),
    ({"proxies": ["nobody"]}, "proxies"),
    ({"modes": ["warp"]}, "modes"),
    ({"colour": "red"}, "colour"),
]


def test_job_names_every_bad_field(rig: Rig) -> None:
    for values, field in BAD_JOB_FIELDS:
        with pytest.raises(InvalidError) as caught:
            rig.job(**values)
        assert list(caught.value.details) == [field], values
    assert jobs.list_all(rig.ctx) == []


def test_job_names_all_bad_fields_at_once(rig: Rig) -> None:
    with pytest.raises(InvalidError) as caught:
        rig.job(name="", quiesce="x", retention={"keep": 0})
    assert set(caught.value.details) == {"name", "quiesce", "retention"}


def test_job_lives(rig: Rig) -> None:
    job = rig.job(schedule={"cron": "0 22 * * *", "time_zone": "Europe/Berlin"}, proxies=["default"])
    assert job["next_run_at"] == "2026-03-02T21:00:00Z"
    assert job["schedule"]["missed"] == "run-once"
    assert job["proxies"] == ["default"]
    assert jobs.get(rig.ctx, job["id"]) == jobs.get(rig.ctx, "job1")
    assert jobs.set_enabled(rig.ctx, "job1", False)["next_run_at"] is None
    assert jobs.set_enabled(rig.ctx, "job1", True)["next_run_at"] == "2026-03-02T21:00:00Z"
    edited = jobs.edit(rig.ctx, "job1", {"schedule": {"cron": "30 5 * * 0"}, "quiesce": "off"})
    assert (edited["next_run_at"], edited["quiesce"]) == ("2026-03-08T05:30:00Z", "off")
    assert edited["proxies"] == ["default"]
    assert jobs.edit(rig.ctx, "job1", {"schedule": None})["next_run_at"] is None
    with pytest.raises(ConflictError):
        rig.job()
    rig.job("job2")
    with pytest.raises(ConflictError):
        jobs.edit(rig.ctx, "job2", {"name": "job1"})


def test_job_in_the_form_that_it_is_shown_is_accepted(rig: Rig) -> None:
    shown = rig.job(full_every_days=7, modes=["nbd"])
    again = jobs.edit(rig.ctx, "job1", shown)
    assert {**again, "updated_at": 0} == {**shown, "updated_at": 0}


def test_running_job_is_neither_run_nor_removed(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    with pytest.raises(ConflictError, match="running already") as caught:
        jobs.run(rig.ctx, "job1")
    assert caught.value.details == {"session": session["id"]}
    with pytest.raises(ConflictError):
        jobs.remove(rig.ctx, "job1")
    rig.drive(session["id"])
    jobs.remove(rig.ctx, "job1")
    assert rig.rows(Job) == []
    assert sessions.get(rig.ctx, session["id"])["job"] == "job1"
    assert len(rig.points()) == 1


def test_plan_shows_the_run_and_changes_nothing(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01")
    rig.vcenter.add_vm("tmpl", template=True)
    rig.job(
        selection={
            "include": [{"type": "all"}, {"type": "vm", "name": "gone"}],
            "exclude_disks": [{"vm": "db01", "disk": "SCSI (0:1)"}],
        }
    )
    plan = jobs.plan(rig.ctx, "job1")
    [shown] = plan["vms"]
    assert [disk["key"] for disk in shown["disks"]] == [2000]
    assert shown["disks"][0]["read"] == "full"
    assert [disk["key"] for disk in shown["skipped_disks"]] == [2001]
    assert [skipped["name"] for skipped in plan["skipped"]] == ["tmpl"]
    assert "gone" in plan["warnings"][0]
    assert not vm.tracking
    assert rig.rows(Session) == []
    assert rig.vcenter.all_snapshots() == []
    jobs.edit(rig.ctx, "job1", {"selection": {"include": [{"type": "all"}]}})
    rig.run()
    [shown] = jobs.plan(rig.ctx, "job1")["vms"]
    assert {disk["read"] for disk in shown["disks"]} == {"increment"}
