from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from backup_server.services import datastore_loads
from backup_server.services.context import Context
from backup_server.services.latency import CLOSED_AT_MOST, Control
from tests.support.history import Clock, Seeded

VCENTER = "vc-1"


@pytest.fixture(autouse=True)
def _seeded(seeded: Seeded) -> None:
    """A vCenter is there."""


def put(ctx: Context, clock: Clock, name: str = "ds1", **values: Any) -> None:
    with ctx.db() as s:
        row = datastore_loads.row_of(s, VCENTER, name)
        row.measured_at = clock()
        for column, value in values.items():
            setattr(row, column, value)


def test_a_datastore_goes_by_its_own_settings_and_else_by_the_servers(
    ctx: Context, clock: Clock
) -> None:
    put(ctx, clock, settings={"max_tasks": 3, "max_snapshots": 1})
    one, other = f"{VCENTER}/ds1", f"{VCENTER}/ds2"
    with ctx.db.read() as s:
        loads = datastore_loads.read(s, ctx.settings, clock())
        assert datastore_loads.limits(s, ctx.settings, clock()) == {f"d:{one}": 3}
        assert datastore_loads.max_snapshots(s, ctx.settings, VCENTER, "ds1") == 1
        assert datastore_loads.max_snapshots(s, ctx.settings, VCENTER, "ds2") == 4
    assert loads.limits([one, other, ""]) == {f"d:{one}": 3, f"d:{other}": 0}
    assert (loads.max_snapshots(one), loads.max_snapshots(other)) == (1, 4)


def test_a_slow_datastore_is_closed_with_the_reason(ctx: Context, clock: Clock) -> None:
    since = Control(closed_since=clock()).to_json()
    put(ctx, clock, read_latency_ms=41.3, control=since)
    with ctx.db.read() as s:
        closed = datastore_loads.closed(s, ctx.settings, clock())
    (reason,) = closed.values()
    assert list(closed) == [f"d:{VCENTER}/ds1"]
    assert "datastore ds1 is slow: reading takes 41 ms there, and above 20 ms" in reason


def test_an_old_figure_closes_nothing(ctx: Context, clock: Clock) -> None:
    since = Control(closed_since=clock()).to_json()
    put(ctx, clock, read_latency_ms=41, control=since)
    later = clock() + datastore_loads.STALE_AFTER + timedelta(seconds=1)
    with ctx.db.read() as s:
        assert datastore_loads.closed(s, ctx.settings, later) == {}


def test_a_datastore_without_latency_control_is_never_closed(ctx: Context, clock: Clock) -> None:
    since = Control(closed_since=clock()).to_json()
    put(ctx, clock, read_latency_ms=41, control=since, settings={"latency_control": False})
    with ctx.db.read() as s:
        assert datastore_loads.closed(s, ctx.settings, clock()) == {}


def test_one_that_is_slow_without_end_takes_one_task_at_a_time(ctx: Context, clock: Clock) -> None:
    since = Control(closed_since=clock() - CLOSED_AT_MOST).to_json()
    put(ctx, clock, read_latency_ms=41, control=since, settings={"max_tasks": 8})
    with ctx.db.read() as s:
        loads = datastore_loads.read(s, ctx.settings, clock())
    assert loads.closed == {}
    assert loads.max_tasks(f"{VCENTER}/ds1") == 1
