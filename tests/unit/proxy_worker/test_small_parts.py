"""Slots, outbox, reporter, heartbeat, progress, outcomes, settings, identity: without a broker."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from pipeline.errors import (
    CancelledError,
    IntegrityError,
    NewerEpochError,
    StorageFullError,
    StorageMissingError,
    StorageUnavailableError,
)
from pipeline.model import StageTimes
from pipeline.progress import MoverProgress
from proxy_worker import config, outcomes
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    HeartbeatReport,
    ProgressReport,
    RateLimit,
    RepositoryRef,
    ResultReport,
    RunningTask,
    TaskKind,
    TaskOutcome,
    TaskRequest,
)
from proxy_worker.errors import SetupError
from proxy_worker.heartbeat import Heartbeat
from proxy_worker.identity import load_or_create_identity
from proxy_worker.outbox import ResultOutbox
from proxy_worker.progress import ProgressMeter
from proxy_worker.reporter import Reporter
from proxy_worker.slots import NoSlotError, SeenBeforeError, Slots, StopReason
from proxy_worker.tasks import ProgressEvents
from proxy_worker.throttle import Side, Throttle
from transports.base import TransportMode
from transports.errors import (
    ObjectGoneError,
    PeerIdentityError,
    SessionExpiredError,
    TransportUnavailableError,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def order(task: str = "t1", attempt: int = 1) -> TaskRequest:
    return TaskRequest(
        kind=TaskKind.BACKUP_DISK,
        task_id=TaskId(task),
        session_id=SessionId("s"),
        attempt=Attempt(attempt),
        proxy_id=ProxyId("p"),
        expires_at_s=0.0,
        title="disk",
        mode=TransportMode.NBDSSL,
        repository=RepositoryRef(repository_id="r", location="/srv"),
    )


def result(task: str = "t1", attempt: int = 1) -> ResultReport:
    return ResultReport(
        task_id=TaskId(task), attempt=Attempt(attempt), outcome=TaskOutcome.SUCCESS, reason=""
    )


def progress(phase: str = "reading", done: int = 0, total: int = 100) -> ProgressReport:
    return ProgressReport(
        task_id=TaskId("t1"),
        attempt=Attempt(1),
        phase=phase,
        total_bytes=total,
        done_bytes=done,
        read_bytes=0,
        stored_bytes=0,
        bytes_per_s=2e6,
        bottleneck="source",
    )


class Link:
    """Stands in for the up stream; away while `away`."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.away = False

    def send(self, report: Any) -> None:
        if self.away:
            raise redis.ConnectionError("away")
        self.sent.append(report)


def reporter(link: Link, outbox: ResultOutbox, clock: Clock) -> Reporter:
    return Reporter(
        link,  # type: ignore[arg-type]
        outbox,
        clock,
        progress_s=1.0,
        resend_s=10.0,
        log=structlog.get_logger(),
    )


# -- slots


def test_an_attempt_begins_once_and_slots_end() -> None:
    slots = Slots(2)
    first = slots.begin(order("a"))
    with pytest.raises(SeenBeforeError):
        slots.begin(order("a"))
    slots.begin(order("b"))
    with pytest.raises(NoSlotError):
        slots.begin(order("c"))
    slots.end(first)
    assert slots.running() == [RunningTask(task_id=TaskId("b"), attempt=Attempt(1))]
    with pytest.raises(SeenBeforeError):
        slots.begin(order("a"))
    assert slots.begin(order("a", 2)) is slots.find(TaskId("a"), Attempt(2))
    slots.close()
    with pytest.raises(NoSlotError):
        slots.begin(order("d"))


def test_the_strongest_reason_to_stop_counts() -> None:
    handle = Slots(1).begin(order())
    handle.stop(StopReason.LOST)
    handle.stop(StopReason.SHUTDOWN)
    assert handle.reason is StopReason.LOST


def test_a_rate_reaches_the_mover_and_also_when_it_came_before_the_task() -> None:
    slow, slower = (RateLimit(bytes_per_s=n, source=True, target=True) for n in (9, 3))
    slots = Slots(2)
    slots.set_rate(TaskId("a"), Attempt(1), slow)
    handle = slots.begin(order("a"))
    told: list[RateLimit | None] = []
    handle.follow_rate(told.append)
    for rate in (slow, slower, slower, None):
        slots.set_rate(TaskId("a"), Attempt(1), rate)
    assert told == [slow, slow, slower, slower, None]
    handle.follow_rate(None)
    slots.set_rate(TaskId("a"), Attempt(1), slow)
    slots.end(handle)
    slots.set_rate(TaskId("a"), Attempt(1), slower)  # of an attempt that is over: kept nowhere
    assert len(told) == 5
    assert slots._early == {}


# -- outbox and reporter


def test_results_stay_until_they_are_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = ResultOutbox(path)
    for name in ("a", "b", "a"):
        outbox.add(result(name))
    outbox.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    outbox = ResultOutbox(path)
    assert outbox.waiting() == [result("a"), result("b")]
    outbox.acknowledge(TaskId("a"), Attempt(1))
    outbox.acknowledge(TaskId("a"), Attempt(1))
    assert [task.task_id for task in outbox.attempts()] == ["b"]
    outbox.close()


def test_what_cannot_be_read_does_not_stay_for_ever(tmp_path: Path) -> None:
    outbox = ResultOutbox(tmp_path / "outbox.db")
    outbox.add(result("a"))
    outbox._db.execute("UPDATE results SET body = '{}'")
    assert outbox.waiting() == []
    assert outbox.attempts() == []
    outbox.close()
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises(SetupError, match="move it away"):
        ResultOutbox(broken)


def test_results_are_sent_again_in_time_and_not_too_often(tmp_path: Path) -> None:
    link, clock = Link(), Clock()
    outbox = ResultOutbox(tmp_path / "outbox.db")
    sender = reporter(link, outbox, clock)
    link.away = True
    sender.result(result("a"))
    assert outbox.waiting() == [result("a")]
    link.away = False
    sender.resend()
    sender.resend()
    assert link.sent == [result("a")]
    clock.now += 10
    sender.resend()
    sender.resend(all_of_them=True)
    assert len(link.sent) == 3
    sender.acknowledged(TaskId("a"), Attempt(1))
    clock.now += 10
    sender.resend(all_of_them=True)
    assert len(link.sent) == 3
    assert sender.unacknowledged() == []
    outbox.close()


def test_progress_is_sent_once_in_a_second_and_with_each_phase(tmp_path: Path) -> None:
    link, clock = Link(), Clock()
    outbox = ResultOutbox(tmp_path / "outbox.db")
    sender = reporter(link, outbox, clock)
    for phase in ("opening", "reading", "reading"):
        sender.progress(progress(phase))
    assert [report.phase for report in link.sent] == ["opening", "reading"]
    clock.now += 1
    sender.progress(progress())
    link.away = True
    clock.now += 1
    sender.progress(progress())
    assert len(link.sent) == 3
    outbox.close()


# -- heartbeat


def test_heartbeats_come_at_once_on_change_and_say_goodbye() -> None:
    link = Link()
    beats = threading.Semaphore(0)

    def beat(after: Callable[[], None]) -> Heartbeat:
        return Heartbeat(
            link,  # type: ignore[arg-type]
            proxy_id=ProxyId("p"),
            boot_id="b",
            version="1",
            max_tasks=4,
            modes=(TransportMode.NBDSSL,),
            no_directories="it runs Windows",
            running=list,
            every_s=3600,
            clock=Clock(),
            after_each=after,
            log=structlog.get_logger(),
        )

    heartbeat = beat(beats.release)
    heartbeat.start()
    assert beats.acquire(timeout=30)
    heartbeat.changed()
    assert beats.acquire(timeout=30)
    heartbeat.announce_stop()
    assert beats.acquire(timeout=30)
    heartbeat.stop(30)
    sent: list[HeartbeatReport] = link.sent
    assert [report.sequence for report in sent] == list(range(1, len(sent) + 1))
    assert [report.stopping for report in sent][:3] == [False, False, True]
    assert sent[-1].stopping
    assert sent[0].free_memory_bytes > 0
    assert sent[0].no_directories == "it runs Windows"


def test_a_broker_that_is_away_does_not_end_the_heartbeat() -> None:
    link = Link()
    link.away = True
    beaten = threading.Event()
    heartbeat = Heartbeat(
        link,  # type: ignore[arg-type]
        proxy_id=ProxyId("p"),
        boot_id="b",
        version="1",
        max_tasks=4,
        modes=(),
        running=list,
        every_s=0.01,
        clock=Clock(),
        after_each=beaten.set,
        log=structlog.get_logger(),
    )
    heartbeat.start()
    assert not beaten.wait(0.1)
    link.away = False
    assert beaten.wait(30)
    heartbeat.stop(30)


# -- progress


def figures(done: int, elapsed_s: float, total: int = 1000) -> MoverProgress:
    return MoverProgress(
        total_bytes=total,
        done_bytes=done,
        read_bytes=done,
        stored_bytes=done // 2,
        elapsed_s=elapsed_s,
        stages=StageTimes(source=0.1, proxy=0.9, network=0.0, target=0.2),
    )


def test_the_rate_is_of_the_last_seconds_and_of_this_attempt() -> None:
    reports: list[ProgressReport] = []
    meter = ProgressMeter(order(), "reading", reports.append)
    meter(figures(500, 0.0))  # an earlier attempt did these
    for second in range(1, 5):
        meter(figures(500 + 10 * second, float(second)))
    meter(figures(545, 4.1))
    meter(figures(1000, 4.2))
    assert [report.bytes_per_s for report in reports[:5]] == [0, 10, 10, 10, 10]
    assert len(reports) == 6
    assert [report.phase for report in reports[-2:]] == ["reading", "finishing"]
    assert reports[1].bottleneck == "proxy"


def test_what_passed_under_a_rate_and_how_long_it_was_waited_for_are_told() -> None:
    reports: list[ProgressReport] = []
    throttle = Throttle()
    meter = ProgressMeter(order(), "reading", reports.append, throttle=throttle)
    meter(figures(0, 0.0))
    meter(figures(10, 1.0))
    assert (reports[-1].passed_bytes_per_s, reports[-1].held_share) == (-1.0, 0.0)
    throttle.set(RateLimit(bytes_per_s=100, source=True, target=False))
    throttle.charge(Side.SOURCE, 60)
    throttle.waited_s += 1.0
    meter(figures(20, 2.0))
    assert (reports[-1].passed_bytes_per_s, reports[-1].held_share) == (30.0, 0.5)
    assert reports[-1].bottleneck == "rate limit"


def test_flower_hears_of_every_fifth_percent_or_half_minute() -> None:
    class Task:
        sent: list[dict[str, Any]] = []  # noqa: RUF012 - one test, one list

        def send_event(self, kind: str, **fields: Any) -> None:
            self.sent.append({"kind": kind, **fields})

    clock, task = Clock(), Task()
    events = ProgressEvents(task, clock)
    events(progress(total=0))
    for done in range(11):
        clock.now += 5
        events(progress(done=done))
    assert [event["pct"] for event in task.sent] == [0, 5, 10]
    clock.now += 30
    events(progress(done=11))
    assert task.sent[-1]["result"] == "11% 2 MB/s reading"


def test_flower_hears_of_a_fast_disk_every_few_seconds_only() -> None:
    class Task:
        sent = 0

        def send_event(self, *_: Any, **__: Any) -> None:
            self.sent += 1

    clock, task = Clock(), Task()
    events = ProgressEvents(task, clock)
    for done in range(0, 100, 5):
        events(progress(done=done))
        clock.now += 0.5
    assert task.sent == 2


# -- outcomes


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CancelledError("x"), TaskOutcome.CANCELLED),
        (IntegrityError("x"), TaskOutcome.FAILED),
        (NewerEpochError("x"), TaskOutcome.RETRY),
        (StorageFullError("x"), TaskOutcome.FAILED),
        (StorageMissingError("x"), TaskOutcome.RETRY),
        (StorageUnavailableError("x"), TaskOutcome.RETRY),
        (SessionExpiredError("x"), TaskOutcome.RETRY),
        (TransportUnavailableError("x"), TaskOutcome.RETRY),
        (PeerIdentityError("x"), TaskOutcome.FAILED),
        (ObjectGoneError("x"), TaskOutcome.FAILED),
        (OSError(5, "x"), TaskOutcome.RETRY),
        (MemoryError(), TaskOutcome.RETRY),
        (ZeroDivisionError("x"), TaskOutcome.RETRY),
    ],
)
def test_what_errors_mean(error: Exception, outcome: TaskOutcome) -> None:
    assert outcomes.outcome_of(error) is outcome
    assert outcomes.is_expected(error) == (not isinstance(error, ZeroDivisionError))


def test_reasons_are_for_people() -> None:
    assert outcomes.reason_of(StorageFullError("the disk is full")) == "the disk is full"
    assert outcomes.reason_of(ZeroDivisionError("x")) == "ZeroDivisionError: x"
    assert outcomes.reason_of(MemoryError()) == "MemoryError"


# -- settings, identity


def test_settings_file(tmp_path: Path) -> None:
    assert config.load_settings(tmp_path) == config.ProxySettings()
    (tmp_path / "proxy.toml").write_text("heartbeat_s = 1\nmax_tasks = 3\nlog_level = 'debug'\n")
    assert config.load_settings(tmp_path) == config.ProxySettings(
        heartbeat_s=1, max_tasks=3, log_level="debug"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("=", "not valid TOML"),
        ("colour = 1", "no setting 'colour'"),
        ("max_tasks = 0", "above 0"),
        ("max_tasks = 1.5", "must be a int"),
        ("heartbeat_s = true", "must be a float"),
        ("log_level = 5", "must be a str"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "proxy.toml").write_text(text)
    with pytest.raises(SetupError, match=words):
        config.load_settings(tmp_path)


def test_enrolment_file(tmp_path: Path) -> None:
    assert config.load_enrolment(tmp_path) is None
    values = {
        "proxy_id": "p",
        "name": "px1",
        "server_url": "http://h",
        "server_key": "00",
        "broker_url": "redis://h",
    }
    (tmp_path / "enrolment.json").write_text(json.dumps(values))
    found = config.load_enrolment(tmp_path)
    assert found is not None
    assert found.broker_url == "redis://h"
    for broken in ("{", "[]", json.dumps({"name": "px1"})):
        (tmp_path / "enrolment.json").write_text(broken)
        with pytest.raises(SetupError, match="enrol this proxy again"):
            config.load_enrolment(tmp_path)


def test_a_local_proxy_finds_its_server(tmp_path: Path) -> None:
    directory = tmp_path / "proxies" / "px1"
    directory.mkdir(parents=True)
    assert config.local_server_url(directory) is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text('{"url": "http://127.0.0.1:1", "token": "x"}')
    assert config.local_server_url(directory) == "http://127.0.0.1:1"


def test_a_local_proxy_asks_where_the_broker_is_today(tmp_path: Path) -> None:
    directory = tmp_path / "proxies" / "px1"
    directory.mkdir(parents=True)
    old = config.Enrolment(
        proxy_id=ProxyId("p1"),
        name="px1",
        server_url="http://127.0.0.1:1",
        server_key="ab" * 32,
        broker_url="redis+socket:///elsewhere/run/broker.sock",
    )
    assert config.local_enrolment(directory, old) == old
    (tmp_path / "run").mkdir()
    told = tmp_path / "run" / "local-proxies.json"
    told.write_text('{"proxies": [{"name": "px1", "id": "p1", "slots": 1}]}')
    assert config.local_enrolment(directory, old) == old
    told.write_text('{"broker_url": "redis+socket:///here", "proxies": [{"name": "px1", "id": "p1"}]}')
    assert config.local_enrolment(directory, old).broker_url == "redis+socket:///here"
    # a proxy of another server that happens to lie in such a directory
    told.write_text('{"broker_url": "redis+socket:///here", "proxies": [{"name": "px1", "id": "p2"}]}')
    assert config.local_enrolment(directory, old) == old


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path)
    again = load_or_create_identity(tmp_path)
    assert (first.signing_public, first.sealing_public) == (
        again.signing_public,
        again.sealing_public,
    )
    files = [tmp_path / "signing.key", tmp_path / "sealing.key"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sealing.key", "signing.key"]
    assert first.signing.encode().hex() not in repr(first)
    files[0].chmod(0o640)
    with pytest.raises(SetupError, match="others may have read it"):
        load_or_create_identity(tmp_path)
    files[0].chmod(0o600)
    files[0].write_bytes(b"short")
    with pytest.raises(SetupError, match="damaged"):
        load_or_create_identity(tmp_path)
