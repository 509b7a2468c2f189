"""What is measured, and what is written down of it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from backup_server.db.tables import DatastoreLoad, Task
from backup_server.scheduler.latency import LatencyMeter
from backup_server.services import datastore_loads
from backup_server.services.context import Context
from tests.support.history import Clock, Seeded
from transports.errors import TransientTransportError
from transports.vsphere.model import DatastoreLatency


class Scripted:
    def __init__(self) -> None:
        self.read_ms: float | None = 1.0
        self.away = False
        self.asked: list[set[str]] = []

    def datastore_latencies(self, names: Collection[str]) -> dict[str, DatastoreLatency]:
        self.asked.append(set(names))
        if self.away:
            raise TransientTransportError("vc.example.com does not answer")
        return {name: DatastoreLatency(read_ms=self.read_ms) for name in names}


class Meter:
    def __init__(self, ctx: Context) -> None:
        self.ctx, self.vcenter, self.wake = ctx, Scripted(), threading.Event()
        self.meter = LatencyMeter(
            ctx,
            lambda _: self.vcenter,  # type: ignore[arg-type, return-value]
            leading=lambda: True,
            wake_rates=self.wake,
        )

    def measure(self, read_ms: float | None) -> DatastoreLoad:
        self.vcenter.read_ms = read_ms
        self.meter.step()
        self.meter.wait()
        with self.ctx.db.read() as s:
            return s.query(DatastoreLoad).filter_by(datastore="ssd").one()


@pytest.fixture
def meter(ctx: Context, seeded: Seeded) -> Iterator[Meter]:
    del seeded
    with ctx.db() as s:
        s.execute(
            sa.update(Task)
            .where(Task.state == "running")
            .values(progress={"bytes_per_s": 60e6, "done_bytes": 1})
        )
    made = Meter(ctx)
    yield made
    made.meter.close()


def running(ctx: Context) -> int:
    with ctx.db.read() as s:
        return s.scalar(sa.select(sa.func.count()).where(Task.state == "running")) or 0


def test_only_datastores_with_tasks_are_measured(meter: Meter, ctx: Context) -> None:
    meter.measure(3)
    assert meter.vcenter.asked == [{"ssd"}]
    with ctx.db() as s:
        s.execute(sa.update(Task).values(state="done"))
    meter.meter.step()
    meter.meter.wait()
    assert len(meter.vcenter.asked) == 1


def test_a_slow_one_is_closed_and_its_tasks_are_slowed(
    meter: Meter, ctx: Context, clock: Clock
) -> None:
    row = meter.measure(55)
    moving = 60e6 * running(ctx)
    assert row.control["allowance_bytes_per_s"] == int(moving * 2 / 3)
    assert meter.wake.is_set()
    with ctx.db.read() as s:
        assert list(datastore_loads.closed(s, ctx.settings, clock())) == ["d:vc-1/ssd"]
        assert datastore_loads.allowances(s, ctx.settings, clock()) == {"vc-1/ssd": int(moving * 2 / 3)}
    clock.now += timedelta(seconds=20)
    assert "closed_since" not in meter.measure(5).control


def test_what_was_slow_long_ago_begins_anew(meter: Meter, clock: Clock) -> None:
    meter.measure(55)
    clock.now += timedelta(hours=1)
    since = meter.measure(55).control["closed_since"]
    assert since == clock().isoformat()


def test_a_vcenter_that_is_away_limits_nothing_and_is_told(meter: Meter) -> None:
    meter.measure(55)
    meter.vcenter.away = True
    row = meter.measure(55)
    assert (row.read_latency_ms, row.control) == (None, {})
    assert row.problem == "vc.example.com does not answer"


def test_what_nobody_foresaw_is_said_and_measured_again(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter.measure(3)
    monkeypatch.setattr(meter.vcenter, "datastore_latencies", lambda _: {}["counter"])
    with structlog.testing.capture_logs() as said:
        meter.measure(55)
    assert [line["event"] for line in said] == ["latency.not-measured"]
    monkeypatch.undo()
    assert meter.measure(55).read_latency_ms == 55


@pytest.mark.parametrize("own", [{"latency_control": False}, {"latency_control": True}])
def test_each_datastore_may_be_left_out(meter: Meter, ctx: Context, own: dict[str, Any]) -> None:
    with ctx.db() as s:
        datastore_loads.row_of(s, "vc-1", "ssd").settings = own
    meter.measure(55)
    assert meter.vcenter.asked == ([{"ssd"}] if own["latency_control"] else [])
