"""Views of sessions with very many VMs: right to the byte, and as cheap as those of small ones."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result, SessionKind, SessionState, TaskState, VmState
from backup_server.db.tables import Event, Repository, RestorePointRow, Session, SessionVm, Task, new_id
from backup_server.errors import InvalidError, NotFoundError
from backup_server.services import sessions
from backup_server.services.session_shapes import task_progress
from backup_server.services.session_sums import figures_of
from tests.fakes.server import Rig
from tests.support.statements import Cost, counted

PHASES = ("opening", "querying-changes", "reading", "hashing")
STAGES = ("source", "proxy", "network", "target")


def _task(rng: random.Random, vm: dict[str, Any], number: int, repository: str) -> dict[str, Any]:
    """In any state, with figures of more than four gigabytes, as a proxy reports them."""
    state = rng.choice(list(TaskState)).value
    result = rng.choice([*Result]).value if state == TaskState.DONE.value else None
    progress: dict[str, Any] = {}
    if rng.random() < 0.7:
        progress = {
            "phase": rng.choice(PHASES),
            "total_bytes": rng.randrange(1 << 40),
            "done_bytes": rng.randrange(1 << 40),
            "read_bytes": rng.choice([0, rng.randrange(1 << 40)]),
            "stored_bytes": rng.randrange(1 << 40),
            "bytes_per_s": rng.random() * 1e9,
            "bottleneck": rng.choice(["", None, *STAGES]),
        }
    stats = None
    if state == TaskState.DONE.value and rng.random() < 0.8:
        stats = {
            "changed_bytes": rng.randrange(1 << 40),
            "read_bytes": rng.choice([0, rng.randrange(1 << 40)]),
            "stored_bytes": rng.randrange(1 << 40),
            "duration_s": 3.5,
            # Small whole numbers are often alike: the first of two counts.
            "stages": {name: float(rng.randrange(3)) for name in STAGES},
        }
    return {
        "id": new_id(),
        "session_id": vm["session_id"],
        "session_vm_id": vm["id"],
        "kind": "backup-disk",
        "title": f"{vm['name']} / {number}",
        "position": number,
        "disk_key": 2000 + number,
        "disk_label": f"Hard disk {number}",
        "disk_path": "",
        "capacity_bytes": 1 << 41,
        "datastore": "",
        "repository_id": repository,
        "order": {},
        "priority": 1,
        "state": state,
        "result": result,
        "progress": progress,
        "stats": stats,
        "created_at": None,
    }


def _make(rig: Rig, vms: int, *, seed: int = 1, state: SessionState = SessionState.RUNNING) -> str:
    """A session of so many VMs with two disks each."""
    rng = random.Random(seed)
    now = rig.clock()
    session_id = new_id()
    vm_rows: list[dict[str, Any]] = []
    tasks = []
    with rig.ctx.db() as s:
        repository = s.scalars(sa.select(Repository.id)).one()
        s.add(
            Session(
                id=session_id,
                kind=SessionKind.BACKUP.value,
                job_name="big",
                state=state.value,
                created_at=now,
                started_at=now - timedelta(seconds=100),
            )
        )
        s.flush()
        for position in range(vms):
            at = rng.choice(list(VmState)).value
            done = at == VmState.DONE.value
            vm = {
                "id": new_id(),
                "session_id": session_id,
                "position": position,
                "moref": f"vm-{position}",
                "instance_uuid": new_id(),
                "name": f"vm-{position:04}",
                "state": at,
                "result": rng.choice([*Result]).value if done else None,
            }
            vm_rows.append(vm)
            tasks += [{**_task(rng, vm, number, repository), "created_at": now} for number in range(2)]
        s.execute(sa.insert(SessionVm), vm_rows)
        s.execute(sa.insert(Task), tasks)
    return session_id


def _expected(rig: Rig, session_id: str) -> dict[str, Any]:
    """By the rows, one after the other."""
    sums: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    speed = 0.0
    with rig.ctx.db.read() as s:
        rows = s.scalars(sa.select(Task).where(Task.session_id == session_id)).all()
        vms = s.scalars(sa.select(SessionVm).where(SessionVm.session_id == session_id)).all()
    for row in rows:
        own = task_progress(row)
        for name in ("total_bytes", "done_bytes", "read_bytes", "stored_bytes"):
            sums[name] += own[name]
        speed += own["bytes_per_s"] if row.state == TaskState.RUNNING.value else 0
        if own["bottleneck"]:
            busy[own["bottleneck"]] += max(1, own["read_bytes"])
    states = Counter(vm.state for vm in vms)
    return {
        "sums": dict(sums),
        "speed": speed,
        "bottleneck": busy.most_common(1)[0][0],
        "tasks_done": sum(row.state == TaskState.DONE.value for row in rows),
        "results": Counter(vm.result for vm in vms if vm.result),
        "waiting": states[VmState.PENDING.value],
        "done": states[VmState.DONE.value],
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_database_adds_up_what_the_rows_say(rig: Rig, seed: int) -> None:
    session_id = _make(rig, 30, seed=seed)
    other = _make(rig, 1, seed=seed + 100)
    expected = _expected(rig, session_id)
    with rig.ctx.db.read() as s:
        rows = [s.get_one(Session, one) for one in (session_id, other)]
        found = figures_of(s, rows, rig.clock())[session_id]
    progress, counts = found["progress"], found["counts"]
    assert {name: progress[name] for name in expected["sums"]} == expected["sums"]
    assert progress["bytes_per_s"] == pytest.approx(expected["speed"])
    assert progress["bottleneck"] == expected["bottleneck"]
    assert (counts["vms"], counts["tasks"]) == (30, 60)
    assert counts["tasks_done"] == expected["tasks_done"]
    assert counts["waiting"] == expected["waiting"]
    assert counts["active"] == 30 - expected["waiting"] - expected["done"]
    results = ("success", "warning", "failed", "cancelled")
    assert {name: counts[name] for name in results} == {
        name: expected["results"][name] for name in results
    }


def _cost_of_views(rig: Rig, session_id: str) -> dict[str, Cost]:
    views: dict[str, Any] = {
        "show": lambda: sessions.get(rig.ctx, session_id),
        "active": lambda: sessions.get(rig.ctx, session_id, only="active", limit=5),
        "list": lambda: sessions.list_all(rig.ctx),
        "events": lambda: sessions.newest_events(rig.ctx, session_id, 20),
    }
    found = {}
    for name, ask in views.items():
        with counted(rig.ctx.db.engine, Task, SessionVm, Event, RestorePointRow) as cost:
            ask()
        found[name] = cost
    return found


def test_a_view_of_500_vms_costs_what_one_of_5_costs(rig: Rig) -> None:
    small = _cost_of_views(rig, _make(rig, 5))
    big_id = _make(rig, 500)
    with rig.ctx.db() as s:
        at = rig.clock()
        lines = [
            {"session_id": big_id, "at": at, "level": "info", "name": "x", "text": f"line {number}"}
            for number in range(300)
        ]
        s.execute(sa.insert(Event), lines)
    big = _cost_of_views(rig, big_id)
    assert {name: one.statements for name, one in big.items()} == {
        name: one.statements for name, one in small.items()
    }
    assert big["list"].rows == 0
    assert big["events"].rows == 20
    assert big["active"].rows == 5 * 3 + 1  # one more tells that there is a next page
    assert big["show"].rows == 100 * 3 + 1
    newest, left_out = sessions.newest_events(rig.ctx, big_id, 20)
    assert ([line["text"] for line in newest][-1], left_out) == ("line 299", 280)


def test_the_list_costs_the_same_with_more_sessions_that_run(rig: Rig) -> None:
    _make(rig, 2)
    with counted(rig.ctx.db.engine) as one:
        sessions.list_all(rig.ctx)
    for seed in range(5):
        _make(rig, 2, seed=seed, state=SessionState.QUEUED if seed % 2 else SessionState.RUNNING)
    with counted(rig.ctx.db.engine) as six:
        assert len(sessions.list_all(rig.ctx)["items"]) == 6
    assert six.statements == one.statements


def test_pages_have_every_vm_once_and_in_order(rig: Rig) -> None:
    session_id = _make(rig, 23)
    names: list[str] = []
    cursor = None
    while True:
        page = sessions.get(rig.ctx, session_id, limit=10, after=cursor)
        names += [vm["name"] for vm in page["vms"]]
        assert all(len(vm["tasks"]) == 2 for vm in page["vms"])
        cursor = page["vms_next"]
        if cursor is None:
            break
    assert names == [f"vm-{number:04}" for number in range(23)]
    counts = page["counts"]
    for only in ("waiting", "active", "success", "warning", "failed", "cancelled"):
        found = sessions.get(rig.ctx, session_id, only=only)["vms"]
        assert len(found) == counts[only]
    assert sessions.get(rig.ctx, session_id, limit=0)["vms"] == []
    with pytest.raises(InvalidError, match="only must be one of waiting"):
        sessions.get(rig.ctx, session_id, only="red")
    for wrong in ("x", "-1", "9" * 19, "9" * 5000):
        with pytest.raises(InvalidError, match="cursor"):
            sessions.get(rig.ctx, session_id, after=wrong)


def test_the_beginning_of_an_id_is_enough_where_it_names_one(rig: Rig) -> None:
    with pytest.raises(NotFoundError, match="no sessions yet"):
        sessions.get(rig.ctx, "latest")
    session_id = _make(rig, 1)
    assert sessions.get(rig.ctx, session_id[:4].upper())["id"] == session_id
    assert sessions.get(rig.ctx, "latest")["id"] == session_id
    with rig.ctx.db() as s:
        for end in ("1", "2"):
            s.add(
                Session(
                    id=f"abcd0000-0000-4000-8000-00000000000{end}",
                    kind=SessionKind.PRUNE.value,
                    state=SessionState.FINISHED.value,
                    created_at=rig.clock(),
                )
            )
    with pytest.raises(NotFoundError, match=r"several sessions .*0001, .*0002"):
        sessions.get(rig.ctx, "abcd0000-")
    assert sessions.get(rig.ctx, "abcd0000-0000-4000-8000-000000000002")["kind"] == "prune"
    for wrong in ("abc", "%%%%", "a' OR"):
        with pytest.raises(NotFoundError, match="there is no session"):
            sessions.get(rig.ctx, wrong)
