"""Reports that cannot be stored: whose they are, and nobody else's, they stop."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from nacl.signing import SigningKey

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Task, new_id
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.main import Scheduler
from backup_server.scheduler.reports import ReportReader
from backup_server.services.surveys import NETWORK_RANK
from pipeline.model import ReadMode
from proxy_worker.contracts.envelope import SERVER, Sealer
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    HeartbeatReport,
    LeaseAnswer,
    LeasesHeld,
    LeaseVerdict,
    ProgressReport,
    ResultAck,
    ResultReport,
    RunningTask,
    TaskOutcome,
    UpReport,
)
from proxy_worker.contracts.names import STREAM_FIELD, up_stream
from tests.integration.queue.rig import TIMING, Rig, running, utc_now
from tests.integration.queue.test_placing import Down
from transports.base import TransportMode

BAD = "what the database does not take"


class Clock:
    """The machine's, moved on by the test."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> datetime:
        return utc_now() + timedelta(seconds=self.ahead_s)


class Reports:
    """Two proxies that speak for themselves, and the server's reader, stepped by the test."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.client = rig.broker.client()
        index = ClaimIndex(
            self.client,
            lambda: int(utc_now().timestamp() * 1000),
            spill_ms=1000,
            network_rank=NETWORK_RANK,
        )
        self.down = Down()
        down: Any = self.down
        self.reader = ReportReader(
            rig.ctx, self.client, index, down, leading=lambda: True, timing=TIMING
        )
        self._sealers: dict[str, Sealer] = {}

    def proxy(self, name: str) -> str:
        key, proxy_id = SigningKey.generate(), new_id()
        with self.rig.db() as s:
            s.add(
                Proxy(
                    id=proxy_id,
                    name=name,
                    local=True,
                    slots=4,
                    signing_key=bytes(key.verify_key).hex(),
                    boot_id="boot",
                    created_at=utc_now(),
                )
            )
        self._sealers[proxy_id] = Sealer(proxy_id, key, lambda: utc_now().timestamp())
        return proxy_id

    def task(self, proxy_id: str) -> str:
        """One that runs there."""
        [task_id] = self.rig.add_tasks(["backup db01"])
        with self.rig.db() as s:
            s.execute(
                sa.update(Task)
                .where(Task.id == task_id)
                .values(
                    state=TaskState.RUNNING.value,
                    proxy_id=proxy_id,
                    proxy_name="px",
                    proxy_boot_id="boot",
                    mode="nbdssl",
                    attempt=1,
                    leased_until=utc_now(),
                )
            )
        return task_id

    def send(self, proxy_id: str, message: UpReport) -> None:
        text = self._sealers[proxy_id].seal(message, to=SERVER)
        self.client.xadd(up_stream(ProxyId(proxy_id)), {STREAM_FIELD: text})

    def left(self, proxy_id: str) -> int:
        return int(self.client.xlen(up_stream(ProxyId(proxy_id))))


@pytest.fixture
def picky() -> Iterator[None]:
    """A database that refuses each statement with BAD among its values, as it would a number that does not fit."""

    def look(_conn: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if BAD in str(values):
            raise sa.exc.DataError(statement, None, Exception(f"it does not fit\n{values}"))

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    yield
    sa.event.remove(sa.Engine, "before_cursor_execute", look)


@pytest.fixture
def reports(migrated_url: str) -> Iterator[Reports]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    try:
        with running(Rig(directory, migrated_url)) as rig:
            made = Reports(rig)
            yield made
            made.client.close()
    finally:
        shutil.rmtree(directory)


def result(task_id: str, reason: str = "") -> ResultReport:
    return ResultReport(
        task_id=TaskId(task_id),
        attempt=Attempt(1),
        outcome=TaskOutcome.WARNING if reason else TaskOutcome.SUCCESS,
        reason=reason,
        read_mode=ReadMode.FULL,
        map_root="ab" * 32,
        mode=TransportMode.NBDSSL,
    )


def heartbeat(proxy_id: str, *task_ids: str, version: str = "0.4.0", **more: Any) -> HeartbeatReport:
    return HeartbeatReport(
        proxy_id=ProxyId(proxy_id),
        boot_id="boot",
        sequence=1,
        version=version,
        clock_s=utc_now().timestamp(),
        slots=4,
        running=_first_attempts(*task_ids),
        stopping=False,
        modes=(TransportMode.NBDSSL,),
        cpu_share=0.1,
        free_memory_bytes=1 << 30,
        **more,
    )


def _first_attempts(*task_ids: str) -> tuple[RunningTask, ...]:
    return tuple(RunningTask(task_id=TaskId(one), attempt=Attempt(1)) for one in task_ids)


def test_a_worker_is_told_of_all_that_it_keeps_in_one_message_where_it_takes_that(
    reports: Reports,
) -> None:
    new, old = reports.proxy("new"), reports.proxy("old")
    keeps = {proxy_id: [reports.task(proxy_id) for _ in range(3)] for proxy_id in (new, old)}
    lost = new_id()
    reports.send(new, heartbeat(new, *keeps[new], lost, takes_leases_held=True))
    reports.send(old, heartbeat(old, *keeps[old], version="0.5.0"))
    reports.reader.step()
    told = dict(reports.down.sent)
    assert told[new] == [
        LeaseAnswer(task_id=TaskId(lost), attempt=Attempt(1), verdict=LeaseVerdict.LOST, sequence=1),
        LeasesHeld(sequence=1, held=_first_attempts(*keeps[new])),
    ]
    assert told[old] == [
        LeaseAnswer(task_id=TaskId(one), attempt=Attempt(1), verdict=LeaseVerdict.HELD, sequence=1)
        for one in keeps[old]
    ]


@pytest.mark.usefixtures("picky")
def test_one_result_that_cannot_be_stored_stops_no_other_report(reports: Reports) -> None:
    good, bad = reports.proxy("good"), reports.proxy("bad")
    tasks = {proxy_id: reports.task(proxy_id) for proxy_id in (good, bad)}
    works = reports.task(good)
    reports.send(bad, result(tasks[bad], BAD))
    reports.send(good, result(tasks[good]))
    reports.send(good, heartbeat(good, works))
    reports.reader.step()
    done = reports.rig.task(tasks[good])
    assert (done.state, done.result) == (TaskState.DONE.value, "success")
    assert reports.rig.proxy(good).version == "0.4.0"
    leased_until = reports.rig.task(works).leased_until
    assert leased_until is not None
    assert leased_until > utc_now()
    # The attempt is over, with the reason, and the proxy need not send its result again and again.
    ended = reports.rig.task(tasks[bad])
    assert (ended.state, ended.failures) == (TaskState.PENDING.value, 1)
    assert "a report cannot be stored: " in ended.reason
    assert ResultAck(task_id=TaskId(tasks[bad]), attempt=Attempt(1)) in dict(reports.down.sent)[bad]
    assert (reports.left(good), reports.left(bad)) == (0, 0)


@pytest.mark.usefixtures("picky")
def test_neither_heartbeat_nor_look_nor_progress_holds_up_others(reports: Reports) -> None:
    good, bad = reports.proxy("good"), reports.proxy("bad")
    task_id = reports.task(good)
    reports.send(bad, heartbeat(bad, task_id, version=BAD))
    look = ConnectionsReport(
        proxy_id=ProxyId(bad), vm_uuid=BAD, addresses=(), connections=(), missing=()
    )
    reports.send(bad, look)
    for proxy_id, phase in ((bad, BAD), (good, "reading")):
        reports.send(
            proxy_id,
            ProgressReport(
                task_id=TaskId(task_id),
                attempt=Attempt(1),
                phase=phase,
                total_bytes=10,
                done_bytes=1,
                read_bytes=1,
                stored_bytes=1,
                bytes_per_s=1.0,
                bottleneck="",
            ),
        )
    reports.send(good, heartbeat(good, task_id))
    reports.reader.step()
    assert reports.rig.task(task_id).progress["phase"] == "reading"
    assert reports.rig.proxy(good).version == "0.4.0"
    assert reports.rig.proxy(bad).version is None
    assert (reports.left(good), reports.left(bad)) == (0, 0)


def test_a_database_that_is_away_refuses_nobody(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = reports.proxy("good")
    task_id = reports.task(good)
    reports.send(good, result(task_id))

    def away(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("the database is starting up"))

    with monkeypatch.context() as patch:
        patch.setattr("backup_server.services.results.apply_results", away)
        with pytest.raises(sa.exc.OperationalError):
            reports.reader.step()
    assert reports.left(good) == 1
    assert reports.rig.task(task_id).state == TaskState.RUNNING.value
    reports.send(good, result(task_id))
    reports.reader.step()
    assert reports.rig.task(task_id).result == "success"


def test_a_server_that_was_stopped_hears_its_proxies_before_it_takes_anything_back(
    reports: Reports,
) -> None:
    """Or whose clock was moved on: each proxy has a whole lease to be heard again."""
    clock, steady = Clock(), Clock()
    rig = reports.rig
    scheduler = Scheduler(
        replace(rig.ctx, clock=clock),
        rig.broker.how.celery_url,
        timing=replace(TIMING, leader_ttl_s=60.0),
        steady_s=lambda: steady().timestamp(),
    )
    step = {loop.health.name: loop._step for loop in scheduler._loops}
    task_id = reports.task(reports.proxy("px"))
    step["leader"]()
    step["reports"]()
    clock.ahead_s += 300
    step["leader"]()
    step["reaper"]()
    assert rig.task(task_id).state == TaskState.RUNNING.value
    step["reports"]()
    step["reaper"]()
    assert rig.task(task_id).state == TaskState.RUNNING.value
    for passing in (clock, steady):
        passing.ahead_s += 2 * rig.settings.lease_s
    step["reaper"]()
    assert rig.task(task_id).state == TaskState.PENDING.value, "this one is silent indeed"
    scheduler.stop()


def test_what_a_stop_in_the_middle_of_a_reading_took_counts_for_nobody_s_silence(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    reader = ReportReader(
        replace(reports.rig.ctx, clock=clock),
        reports.client,
        None,  # type: ignore[arg-type]
        reports.down,  # type: ignore[arg-type]
        leading=lambda: True,
        timing=TIMING,
    )
    reports.proxy("px")
    reader.step()

    def slept(*_: Any, **__: Any) -> list[Any]:
        clock.ahead_s += 300
        reader.listen_anew()
        return []

    monkeypatch.setattr(reports.client, "xread", slept)
    before = clock()
    reader.step()
    since = reader.listening_since()
    assert since is not None
    assert since >= before + timedelta(seconds=300)


def test_a_proxy_that_floods_us_keeps_nobody_else_s_leases_from_ending(reports: Reports) -> None:
    """More comes of it than one reading takes, reading after reading."""
    passing = Clock()
    rig = reports.rig
    scheduler = Scheduler(
        replace(rig.ctx, clock=passing),
        rig.broker.how.celery_url,
        timing=replace(TIMING, leader_ttl_s=3600.0),
        steady_s=lambda: passing().timestamp(),
    )
    step = {loop.health.name: loop._step for loop in scheduler._loops}
    evil = reports.proxy("evil")
    floods, silent = reports.task(evil), reports.task(reports.proxy("px"))

    def read_a_flood() -> None:
        with reports.client.pipeline(transaction=False) as pipe:
            for number in range(600):
                pipe.xadd(up_stream(ProxyId(evil)), {STREAM_FIELD: f"junk {number}"})
            pipe.execute()
        step["reports"]()
        assert reports.left(evil) > 0

    step["leader"]()
    read_a_flood()
    passing.ahead_s += 2 * rig.settings.lease_s
    read_a_flood()
    step["reaper"]()
    assert rig.task(silent).state == TaskState.PENDING.value
    assert rig.task(floods).state == TaskState.RUNNING.value, "nobody knows yet what it said"
    while reports.left(evil):
        step["reports"]()
    step["reports"]()
    step["reaper"]()
    assert rig.task(floods).state == TaskState.PENDING.value
    scheduler.stop()


def test_a_broker_that_is_full_is_emptied_of_what_was_read(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What proxies said while no server was there filled it: then it takes no answers either."""
    px = reports.proxy("px")
    task_id = reports.task(px)
    reports.send(px, result(task_id))

    def full(*_: Any) -> None:
        raise redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")

    monkeypatch.setattr(reports.down, "send", full)
    with pytest.raises(redis.OutOfMemoryError):
        reports.reader.step()
    assert reports.left(px) == 0
    assert reports.rig.task(task_id).state == TaskState.DONE.value


def test_a_heartbeat_tells_why_a_proxy_opens_no_directories(reports: Reports) -> None:
    windows, linux = reports.proxy("windows"), reports.proxy("linux")
    said = replace(heartbeat(windows, reports.task(windows)), no_directories="it runs Windows " * 40)
    reports.send(windows, said)
    reports.send(linux, heartbeat(linux, reports.task(linux)))
    reports.reader.step()
    told = {
        proxy_id: reports.rig.proxy(proxy_id).facts["no_directories"] for proxy_id in (windows, linux)
    }
    assert told[linux] == ""
    assert told[windows].startswith("it runs Windows")
    assert len(told[windows]) == 200
