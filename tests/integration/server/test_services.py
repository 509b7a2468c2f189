"""Services as the doors use them."""

from __future__ import annotations

import json
import stat
import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState, change_state
from backup_server.db.tables import Base, Credential, Job, Proxy, Session, Task
from backup_server.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from backup_server.services import (
    about,
    doctor,
    jobs,
    proxies,
    repositories,
    sessions,
    task_secrets,
    vcenters,
)
from tests.fakes.server import LOCATION, REPOSITORY_PASSWORD, Rig
from tests.fakes.vsphere import PASSWORD, THUMBPRINT
from transports.errors import TransientTransportError
from transports.vsphere.model import Secret

KEYS = {"signing_key": "ab" * 32, "sealing_key": "cd" * 32}


# -- vCenters


def add_vcenter(rig: Rig, **values: Any) -> dict[str, Any]:
    return vcenters.add(
        rig.ctx,
        **{
            "name": "vc2",
            "host": "vc2.test",
            "username": "backup",
            "password": Secret(PASSWORD),
            "thumbprint_sha256": THUMBPRINT,
            **values,
        },
    )


def test_vcenter_is_checked_before_it_is_stored(rig: Rig) -> None:
    for values, field in (
        ({"password": Secret("wrong")}, "password"),
        ({"thumbprint_sha256": "00" * 32}, "thumbprint_sha256"),
        ({"thumbprint_sha256": "abc"}, "thumbprint"),
        ({"host": " "}, "host"),
        ({"port": 0}, "port"),
    ):
        with pytest.raises(InvalidError) as caught:
            add_vcenter(rig, **values)
        assert field in caught.value.details
    with pytest.raises(UnavailableError):
        add_vcenter(rig, host="nowhere")
    assert [row["name"] for row in vcenters.list_all(rig.ctx)] == ["vc1"]
    assert len(rig.rows(Credential, kind="vcenter")) == 1


def test_vcenter_names_are_single(rig: Rig) -> None:
    with pytest.raises(ConflictError):
        add_vcenter(rig, name="vc1")
    add_vcenter(rig)
    with pytest.raises(ConflictError):
        vcenters.edit(rig.ctx, "vc2", {"name": "vc1"})
    with pytest.raises(NotFoundError, match="vc1, vc2"):
        vcenters.get(rig.ctx, "vc3")


def test_vcenter_edit_checks_the_login(rig: Rig) -> None:
    rig.vcenter.password = "new"
    with pytest.raises(InvalidError):
        vcenters.edit(rig.ctx, "vc1", {"username": "other"})
    shown = vcenters.edit(rig.ctx, "vc1", {"username": "other", "password": Secret("new")})
    assert shown["username"] == "other"
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    with pytest.raises(InvalidError, match="no such field"):
        vcenters.edit(rig.ctx, "vc1", {"colour": "red"})


def test_vcenter_edit_refuses_another_server(rig: Rig) -> None:
    rig.vcenter.instance_uuid = "somebody else"
    with pytest.raises(InvalidError, match="another vCenter"):
        vcenters.edit(rig.ctx, "vc1", {"host": "vc9.test"})


def test_vcenter_remove(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    with pytest.raises(ConflictError, match="job1"):
        vcenters.remove(rig.ctx, "vc1")
    rig.run()
    jobs.remove(rig.ctx, "job1")
    vcenters.remove(rig.ctx, "vc1")
    assert vcenters.list_all(rig.ctx) == []
    assert rig.rows(Credential, kind="vcenter") == []
    # History stays.
    assert len(rig.rows(Session)) == 1
    assert len(rig.points()) == 1


def test_inventory_cache(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    first = vcenters.inventory(rig.ctx, "vc1")
    assert [vm["name"] for vm in first["vms"]] == ["db01"]
    rig.vcenter.add_vm("db02")
    assert len(vcenters.inventory(rig.ctx, "vc1")["vms"]) == 1
    assert len(vcenters.inventory(rig.ctx, "vc1", refresh=True)["vms"]) == 2
    rig.vcenter.add_vm("db03")
    rig.clock.advance(rig.settings.inventory_max_age_s + 1)
    assert len(vcenters.inventory(rig.ctx, "vc1")["vms"]) == 3
    rig.vcenter.fail("inventory", TransientTransportError("away"))
    with pytest.raises(UnavailableError):
        vcenters.inventory(rig.ctx, "vc1", refresh=True)


def test_probe(rig: Rig) -> None:
    assert vcenters.probe(rig.ctx, "vc1.test", 443)["thumbprint_sha256"] == THUMBPRINT
    with pytest.raises(UnavailableError):
        vcenters.probe(rig.ctx, "nowhere", 443)


def test_one_client_for_each_vcenter(rig: Rig) -> None:
    vcenter_id = vcenters.get(rig.ctx, "vc1")["id"]
    client = rig.ctx.vcenters.get(vcenter_id)
    assert rig.ctx.vcenters.get(vcenter_id) is client
    vcenters.edit(rig.ctx, "vc1", {"name": "renamed"})
    assert rig.ctx.vcenters.get(vcenter_id) is not client
    assert client.closed  # type: ignore[attr-defined]


# -- secrets


def test_no_secret_stands_in_the_database(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    proxy = proxies.add(rig.ctx, name="p2")
    forbidden = [PASSWORD, REPOSITORY_PASSWORD, rig.repository.master_key, proxy["join_token"]]
    with rig.ctx.db.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                for value in row:
                    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                    assert not any(secret in text for secret in forbidden), table.name


def running_task(rig: Rig) -> Task:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    [task] = rig.rows(Task)
    with rig.ctx.db() as s:
        change_state(
            s,
            Task,
            task.id,
            TaskState.PENDING,
            TaskState.RUNNING,
            proxy_id=rig.default_proxy().id,
            leased_until=rig.clock.now + timedelta(seconds=30),
        )
        s.execute(sa.update(Task).values(attempt=3))
    return task


def test_secrets_go_to_the_holder_of_the_lease_only(rig: Rig) -> None:
    task = running_task(rig)
    holder = rig.default_proxy().id
    secrets = task_secrets.redeem(rig.ctx, holder, task.id, 3)
    assert secrets.repository_key == rig.repository.master_key
    assert secrets.vsphere is not None
    assert secrets.vsphere.thumbprint_sha256 == THUMBPRINT
    assert rig.repository.master_key not in repr(secrets)
    again = task_secrets.redeem(rig.ctx, holder, task.id, 3)
    assert again.vsphere is not None
    assert again.vsphere.clone_ticket != secrets.vsphere.clone_ticket
    for proxy_id, task_id, attempt in (
        ("another", task.id, 3),
        (holder, task.id, 2),
        (holder, task.id, 4),
        (holder, "another", 3),
    ):
        with pytest.raises(ForbiddenError):
            task_secrets.redeem(rig.ctx, proxy_id, task_id, attempt)
    rig.clock.advance(31)
    with pytest.raises(ForbiddenError):
        task_secrets.redeem(rig.ctx, holder, task.id, 3)


def test_cancelled_tasks_get_no_secrets(rig: Rig) -> None:
    task = running_task(rig)
    sessions.cancel(rig.ctx, task.session_id)
    with pytest.raises(ForbiddenError):
        task_secrets.redeem(rig.ctx, rig.default_proxy().id, task.id, 3)


# -- repositories


def test_repository_add_refuses(rig: Rig) -> None:
    def add(**values: Any) -> dict[str, Any]:
        given = {"name": "r2", "location": "/backup/r2", "password": Secret("long enough"), **values}
        return repositories.add(rig.ctx, **given)

    for values, field in (
        ({"location": "relative"}, "location"),
        ({"location": LOCATION}, "location"),
        ({"password": Secret("short")}, "password"),
        ({"block_size_bytes": 1_000_000}, "block_size_bytes"),
        ({"max_tasks": -1}, "max_tasks"),
        ({"import_existing": True}, "location"),
        ({"import_existing": True, "location": LOCATION, "password": Secret("wrong")}, "location"),
    ):
        with pytest.raises(InvalidError) as caught:
            add(**values)
        assert field in caught.value.details, values
    with pytest.raises(ConflictError):
        add(name="r1")
    with pytest.raises(ConflictError, match="registered already"):
        add(import_existing=True, location=LOCATION, password=Secret(REPOSITORY_PASSWORD))
    assert [row["name"] for row in repositories.list_all(rig.ctx)] == ["r1"]


def test_repository_edit_and_remove(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    assert repositories.edit(rig.ctx, "r1", {"max_tasks": 3, "name": "main"})["max_tasks"] == 3
    with pytest.raises(InvalidError):
        repositories.edit(rig.ctx, "main", {"location": "/elsewhere"})
    with pytest.raises(ConflictError, match="job1"):
        repositories.remove(rig.ctx, "main")
    rig.run()
    jobs.remove(rig.ctx, "job1")
    repositories.remove(rig.ctx, "main")
    assert len(rig.repository.points) == 1  # data is not touched
    assert rig.points() == []


def test_another_repository_at_the_place_is_refused(rig: Rig) -> None:
    [row] = repositories.list_all(rig.ctx)
    rig.ctx.agents.forget(row["id"])
    rig.repository.repository_id = "another"
    with pytest.raises(ConflictError, match="not"):
        repositories.refresh_space(rig.ctx, row["id"])


def test_agent_that_died_is_started_again(rig: Rig) -> None:
    [row] = repositories.list_all(rig.ctx)
    started = rig.repositories.started
    rig.repositories.fail("space", "dead", "")
    with pytest.raises(UnavailableError):
        repositories.refresh_space(rig.ctx, row["id"])
    repositories.refresh_space(rig.ctx, row["id"])
    assert rig.repositories.started == started + 1


# -- proxies


def test_first_start_makes_the_default_proxy(rig: Rig) -> None:
    [shown] = proxies.list_all(rig.ctx)
    assert (shown["name"], shown["local"], shown["state"], shown["enrolled"]) == (
        "default", True, "never-seen", False,
    )  # fmt: skip
    token_file = rig.settings.proxies_dir / "default" / "join-token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert content == {
        "broker_url": about.broker_url(rig.ctx),
        "proxies": [{"name": "default", "id": shown["id"], "slots": rig.settings.default_proxy_slots}],
    }


def test_removed_default_proxy_does_not_come_back(rig: Rig) -> None:
    proxies.remove(rig.ctx, "default")
    told = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert told["proxies"] == []
    rig.restart()
    assert proxies.list_all(rig.ctx) == []


def test_lost_join_token_of_a_local_proxy_is_made_anew(rig: Rig) -> None:
    token_file = rig.settings.proxies_dir / "default" / "join-token"
    token_file.unlink()
    rig.restart()
    token = Secret(token_file.read_text().strip())
    proxies.enrol(rig.ctx, token=token, name="default", version="0.1.0", **KEYS)
    assert not token_file.exists()
    rig.restart()
    assert not token_file.exists()


def test_enrolment_works_once_and_in_time(rig: Rig) -> None:
    token = Secret(proxies.add(rig.ctx, name="p2", slots=4)["join_token"])
    for wrong in ({"token": Secret("vmhj_wrong")}, {"name": "p3"}):
        with pytest.raises(UnauthorizedError):
            proxies.enrol(rig.ctx, **{"token": token, "name": "p2", "version": "1", **KEYS, **wrong})
    with pytest.raises(InvalidError):
        proxies.enrol(rig.ctx, token=token, name="p2", version="1", signing_key="x", sealing_key="y")
    proxy_id = proxies.enrol(rig.ctx, token=token, name="p2", version="1", **KEYS)
    assert rig.rows(Proxy, id=proxy_id)[0].signing_key == KEYS["signing_key"]
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, token=token, name="p2", version="1", **KEYS)
    late = Secret(proxies.add(rig.ctx, name="p3")["join_token"])
    rig.clock.advance(rig.settings.join_token_ttl_s)
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, token=late, name="p3", version="1", **KEYS)


def test_new_token_ends_trust_in_old_keys(rig: Rig) -> None:
    token = Secret(proxies.add(rig.ctx, name="p2")["join_token"])
    proxies.enrol(rig.ctx, token=token, name="p2", version="1", **KEYS)
    shown = proxies.new_token(rig.ctx, "p2")
    assert (shown["enrolled"], shown["join_token"] != token.reveal()) == (False, True)


def test_proxy_add_edit_remove(rig: Rig) -> None:
    for name in ("", "a b", "../x", "x" * 64):
        with pytest.raises(InvalidError):
            proxies.add(rig.ctx, name=name)
    with pytest.raises(ConflictError):
        proxies.add(rig.ctx, name="default")
    with pytest.raises(InvalidError):
        proxies.add(rig.ctx, name="p2", slots=1000)
    proxies.add(rig.ctx, name="p2", local=True)
    shown = proxies.edit(rig.ctx, "p2", {"slots": 7, "modes": ["nbd", "nbdssl"], "description": "x"})
    assert (shown["slots"], shown["modes"]) == (7, ["nbdssl", "nbd"])
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert [entry["slots"] for entry in content["proxies"]] == [2, 7]
    proxies.edit(rig.ctx, "p2", {"enabled": False})
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    # Its worker goes on: what runs on it ends in peace, it only gets nothing new.
    assert [entry["name"] for entry in content["proxies"]] == ["default", "p2"]
    for changes in ({"modes": ["warp"]}, {"slots": "many"}, {"enabled": 1}, {"colour": "red"}):
        with pytest.raises(InvalidError):
            proxies.edit(rig.ctx, "p2", changes)
    rig.job(proxies=["p2"])
    with pytest.raises(ConflictError, match="job1"):
        proxies.remove(rig.ctx, "p2")
    jobs.edit(rig.ctx, "job1", {"proxies": []})
    proxies.remove(rig.ctx, "p2")
    assert [row["name"] for row in proxies.list_all(rig.ctx)] == ["default"]


def test_busy_proxy_is_not_removed(rig: Rig) -> None:
    running_task(rig)
    assert proxies.get(rig.ctx, "default")["running"] == 1
    with pytest.raises(ConflictError, match="1 tasks"):
        proxies.remove(rig.ctx, "default")


def test_proxy_states(rig: Rig) -> None:
    def seen(seconds_ago: float, enabled: bool = True) -> str:
        with rig.ctx.db() as s:
            row = s.scalars(sa.select(Proxy)).one()
            row.last_seen_at = rig.clock.now - timedelta(seconds=seconds_ago)
            row.enabled = enabled
        return str(proxies.get(rig.ctx, "default")["state"])

    assert [seen(1), seen(1, enabled=False), seen(1000)] == ["online", "draining", "offline"]


# -- jobs


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


# -- sessions


def test_session_shows_progress_and_keeps_its_figures(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    first = rig.rows(Task)[0]
    with rig.ctx.db() as s:
        change_state(s, Task, first.id, TaskState.PENDING, TaskState.RUNNING)
        s.execute(
            sa.update(Task)
            .where(Task.id == first.id)
            .values(
                progress={
                    "phase": "reading",
                    "total_bytes": 1000,
                    "done_bytes": 400,
                    "read_bytes": 300,
                    "stored_bytes": 100,
                    "bytes_per_s": 50.0,
                    "bottleneck": "source",
                }
            )
        )
    shown = sessions.get(rig.ctx, session["id"])["progress"]
    with rig.ctx.db() as s:
        opening = {"phase": "opening", "total_bytes": 0, "done_bytes": 0}
        s.execute(sa.update(Task).where(Task.id != first.id).values(progress=opening))
    # A disk that is being opened is not of size 0: the session would be at its end too early.
    assert sessions.get(rig.ctx, session["id"])["progress"]["total_bytes"] == shown["total_bytes"]
    other = rig.rows(Task)[1].capacity_bytes
    assert shown["total_bytes"] == 1000 + other
    assert (shown["done_bytes"], shown["bytes_per_s"], shown["bottleneck"]) == (400, 50.0, "source")
    assert shown["eta_s"] == (600 + other) / 50
    with rig.ctx.db() as s:
        change_state(s, Task, first.id, TaskState.RUNNING, TaskState.PENDING)
    done = rig.drive(session["id"])
    assert done["progress"]["read_bytes"] == 2000
    assert done["progress"]["stored_bytes"] == 600
    assert done["progress"]["bottleneck"] == "source"
    [listed] = sessions.list_all(rig.ctx)["items"]
    assert listed["progress"] == done["progress"]
    assert "vms" not in listed


def test_session_lists_filter(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    repositories.check(rig.ctx, "r1")
    kinds = lambda **values: [item["kind"] for item in sessions.list_all(rig.ctx, **values)["items"]]  # noqa: E731
    assert kinds() == ["repository-check", "backup"]
    assert kinds(job="job1") == ["backup"]
    assert kinds(kind="repository-check") == ["repository-check"]
    assert kinds(state="queued") == ["repository-check"]
    with pytest.raises(InvalidError):
        kinds(state="asleep")
    assert kinds(limit=1) == ["repository-check"]


def test_session_events_and_prefixes(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = rig.run()
    lines = sessions.events(rig.ctx, session["id"])
    names = [line["name"] for line in lines]
    assert names[0] == "session.started"
    assert names[-1] == "session.finished"
    assert names.index("snapshot.created") < names.index("snapshot.removed") < names.index("vm.done")
    assert sessions.events(rig.ctx, session["id"], after=lines[-2]["id"]) == lines[-1:]
    assert sessions.get(rig.ctx, session["id"][:8])["id"] == session["id"]
    for wrong in ("nope", "abcdefgh"):
        with pytest.raises(NotFoundError):
            sessions.get(rig.ctx, wrong)
    with pytest.raises(ConflictError):
        sessions.cancel(rig.ctx, session["id"])
    task = session["vms"][0]["tasks"][0]
    assert sessions.why(rig.ctx, task["id"])["title"] == "backup db01 / Hard disk 1"
    with pytest.raises(NotFoundError):
        sessions.why(rig.ctx, "nope")


# -- doctor, about


def test_doctor_finds_what_is_wrong(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    vm = rig.vcenter.add_vm("db02", disks=1)
    rig.vcenter.snapshot_by_hand(vm, "by hand")
    rig.job()
    rig.vcenter.missing = ["VirtualMachine.State.CreateSnapshot"]
    checks = {(check["name"], check["level"]): check for check in doctor.run_checks(rig.ctx)}
    assert ("database", "ok") in checks
    assert ("broker", "error") in checks
    assert "logged in as backup" in checks["vCenter vc1", "ok"]["text"]
    assert "CreateSnapshot" in checks["vCenter vc1 rights", "error"]["text"]
    assert "db02" in checks["vCenter vc1 change tracking", "warning"]["text"]
    assert "50.0 of 100.0 GiB" in checks["repository r1", "ok"]["text"]
    assert checks["proxy default", "error"]["advice"]
    assert ("leftovers", "ok") in checks
    for check in checks.values():
        assert set(check) == {"name", "level", "text", "advice"}
        assert check["level"] == "ok" or check["advice"], check
    rig.vcenter.thumbprint = "another"
    found = {check["name"]: check["level"] for check in doctor.run_checks(rig.ctx)}
    assert found["vCenter vc1 certificate"] == "error"


def test_doctor_does_not_wait_for_a_vcenter_that_is_silent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, asked = threading.Event(), threading.Event()

    def silent(*_: object) -> None:
        asked.set()
        ended.wait(60)
        raise TransientTransportError("silent")

    monkeypatch.setattr(doctor, "VCENTER_PATIENCE_S", 0.05)
    monkeypatch.setattr(rig.ctx.vcenters, "probe", silent)
    checks = {check["name"]: check for check in doctor.run_checks(rig.ctx)}
    ended.set()
    for thread in [one for one in threading.enumerate() if one.name == "doctor"]:
        thread.join(30)  # it uses the database, which ends with the test
    assert asked.is_set()
    assert "gave no answer" in checks["vCenter vc1"]["text"]
    assert checks["repository r1"]["level"] == "ok"


def test_about_and_health(rig: Rig) -> None:
    shown = about.about(rig.ctx)
    assert shown["server_id"] == rig.ctx.server_id
    assert shown["started_at"] == "2026-03-02T20:00:00Z"
    assert about.health(rig.ctx)["status"] == "unavailable"
    assert list(about.health(rig.ctx)["parts"]) == ["broker"]


def test_server_id_and_keys_stay(rig: Rig) -> None:
    before = rig.ctx.server_id
    rig.restart()
    assert rig.ctx.server_id == before
    for name in ("server.key", "server-signing.key"):
        file = rig.settings.data_dir / name
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_size == 32
    assert rig.settings.data_dir.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["a/b", ".", ".."])
def test_names_fit_into_a_path_of_the_api(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidError, match="slash"):
        repositories.edit(rig.ctx, "r1", {"name": name})


def test_a_repository_may_not_lie_among_the_servers_own_files(rig: Rig) -> None:
    for location in (rig.settings.data_dir, rig.settings.data_dir / "repository"):
        with pytest.raises(InvalidError, match="data directory"):
            repositories.add(
                rig.ctx, name="inside", location=str(location), password=Secret(REPOSITORY_PASSWORD)
            )
