"""Tasks that nobody takes: for how long they wait, whatever becomes of the server's clock, and what ends them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState
from backup_server.db.tables import Event, Proxy
from backup_server.scheduler import waiting
from backup_server.services import placement, proxy_troubles
from tests.integration.queue.rig import ON_SQLITE, TIMING, Rig, running, utc_now
from tests.integration.queue.test_placing import NBDSSL, SAN, Site

pytestmark = ON_SQLITE
HALF_AN_HOUR_S = 1800.0


class Steady:
    """A clock that nobody sets; it stands still but for the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def steady() -> Steady:
    return Steady()


@pytest.fixture
def site(migrated_url: str, steady: Steady) -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    timing = replace(TIMING, audit_s=300.0, no_proxy_timeout_s=HALF_AN_HOUR_S)
    try:
        with running(Rig(directory, migrated_url)) as rig:
            made = Site(rig, timing=timing, steady_s=steady)
            yield made
            made.close()
    finally:
        shutil.rmtree(directory)


def unreached(site: Site) -> str:
    """A task that waits for a proxy in another mode than there is."""
    site.proxy("px", NBDSSL)
    [task_id] = site.tasks(1)
    with site.rig.db() as s:
        s.execute(sa.text("UPDATE tasks SET allowed_modes = :san"), {"san": f'["{SAN.value}"]'})
    site.settle()
    return task_id


def state(site: Site, task_id: str) -> str:
    return site.rig.task(task_id).state


def test_a_clock_that_is_set_forward_ends_no_task_that_waits(site: Site, steady: Steady) -> None:
    task_id = unreached(site)
    site.dispatcher._ctx = replace(site.rig.ctx, clock=lambda: utc_now() + timedelta(days=1))
    for _ in range(2):
        site.settle()
        site.dispatcher._audit(utc_now() + timedelta(days=1))
    assert state(site, task_id) == TaskState.PENDING.value
    for _ in range(6):
        assert state(site, task_id) == TaskState.PENDING.value
        steady.now_s += 300
        site.dispatcher._audit(utc_now())
    ended = site.rig.task(task_id)
    assert (ended.state, ended.result) == (TaskState.DONE.value, "failed")
    assert ended.reason.startswith("no proxy could take this disk for 30 minutes: ")


def test_what_passes_while_the_server_is_stopped_is_no_waiting(site: Site, steady: Steady) -> None:
    task_id = unreached(site)
    steady.now_s += 8 * 3600
    site.settle()
    assert state(site, task_id) == TaskState.PENDING.value
    # So long at most may lie between two looks that count.
    steady.now_s += HALF_AN_HOUR_S - 4 * 300
    site.settle()
    site.settle()
    assert state(site, task_id) == TaskState.DONE.value


def test_a_proxy_in_trouble_is_nobody_who_could_take_a_disk(site: Site, steady: Steady) -> None:
    """It is heard all the time, and gets nothing."""
    px = site.proxy("px", NBDSSL)
    with site.rig.db() as s:
        row = s.get_one(Proxy, px)
        trouble = {proxy_troubles.CLOCK: proxy_troubles.clock_trouble(400.0)}
        proxy_troubles.note(s, row, trouble, utc_now())
    [task_id] = site.tasks(1)
    site.settle()
    with site.rig.db.read() as s:
        [said] = s.scalars(sa.select(Event.text).where(Event.name == "task.waits")).all()
    assert "its clock is 400 s ahead of" in said
    for _ in range(6):
        assert state(site, task_id) == TaskState.PENDING.value
        steady.now_s += 300
        site.settle()
    assert state(site, task_id) == TaskState.DONE.value


def test_of_a_fleet_that_is_away_each_look_explains_a_part(
    site: Site, steady: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all are warned of and ended, in their turn."""
    monkeypatch.setattr(waiting, "_LOST_PLACES", 3)
    monkeypatch.setattr(waiting, "_EXPLAINED_PLACES", 1)
    asked = 0
    real = placement.decide

    def decide(*args: Any, **options: Any) -> placement.Decision:
        nonlocal asked
        asked += 1
        return real(*args, **options)

    monkeypatch.setattr("backup_server.services.placement.decide", decide)
    site.proxy("px", NBDSSL, enabled=False)
    ids = [site.tasks(1, datastore=f"ds{number}")[0] for number in range(8)]
    site.settle()
    asked = 0
    site.dispatcher._audit(utc_now())
    assert 0 < asked <= 4
    for _ in range(9):
        steady.now_s += 300
        site.settle()
    assert {state(site, one) for one in ids} == {TaskState.DONE.value}
    with site.rig.db.read() as s:
        sessions = s.scalars(sa.select(Event.session_id).where(Event.name == "task.waits")).all()
    assert len(set(sessions)) == 8
