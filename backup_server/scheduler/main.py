"""The scheduler: its loops, put together.

| loop | what |
|---|---|
| leader | holds the leader row; the others do nothing without it |
| reports | heartbeats, progress and results of the proxies into SQL |
| dispatcher | pending tasks to free slots |
| outbox | committed messages to the broker |
| reaper | expired leases, cancelled sessions |
| due-jobs | runs that schedules ask for |
| due-checks | verifications that schedules of repositories ask for |
| rates | how fast each running task may move data |
| encryption | running tasks whose data must not cross in the clear any more: out of their way |
| latency | read latency of datastores that have tasks |

The broker may be away at any time: each loop goes on trying, and what it did not do is still in SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

import redis
from nacl.signing import SigningKey
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.orm import Session as DbSession

from backup_server.credentials import load_or_create_key
from backup_server.db.fenced import FencedDatabase
from backup_server.db.tables import Job
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.dispatcher import Dispatcher
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.due_checks import DueChecks
from backup_server.scheduler.due_jobs import DueJobs, StartBackup
from backup_server.scheduler.encryption import EncryptionKeeper
from backup_server.scheduler.latency import GetVcenter, LatencyMeter
from backup_server.scheduler.leader import Leadership
from backup_server.scheduler.loops import Loop, LoopHealth
from backup_server.scheduler.needs import SchedulerContext, Timing
from backup_server.scheduler.outbox import OutboxSender, celery_sender
from backup_server.scheduler.rates import RateKeeper
from backup_server.scheduler.reaper import Reaper
from backup_server.scheduler.reports import ReportReader
from backup_server.services.lookups import Lookups
from backup_server.services.surveys import HOTADD_RANKS, NETWORK_RANK
from backup_server.services.task_ends import Ends
from proxy_worker.contracts.envelope import SERVER, Sealer
from proxy_worker.contracts.names import redis_client_url
from transports.system import uptime_s

_JOIN_S: Final = 10.0


def broker_client(broker_url: str) -> redis.Redis:
    """A client that tries once: a script that ran although its answer was lost must not run again
    unseen, and every loop has its own way of trying later.
    """
    client: redis.Redis = redis.Redis.from_url(
        redis_client_url(broker_url),
        decode_responses=True,
        # What is no text is refused like every other junk, and must not end the reading of what follows.
        encoding_errors="replace",
        protocol=2,  # XREAD answers pairs of name and entries
        socket_timeout=15,
        socket_connect_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 0),
    )
    return client


def start_job(s: DbSession, job: Job, now: datetime) -> str:
    """The run of a job whose time has come."""
    from backup_server.services import sessions

    return str(sessions.start_backup(s, job, now=now).id)


def _never_set(clock: Callable[[], datetime], steady_s: Callable[[], float]) -> Callable[[], datetime]:
    """`clock` as it would show if nobody had set it since."""
    began, began_s = clock(), steady_s()
    return lambda: began + timedelta(seconds=steady_s() - began_s)


class Scheduler:
    """`start()` once, `stop()` once. `broker_url` in Celery's form (`redis+socket://...`)."""

    def __init__(
        self,
        ctx: SchedulerContext,
        broker_url: str,
        *,
        timing: Timing | None = None,
        vcenter: GetVcenter | None = None,
        ends: Ends | None = None,
        start_backup: StartBackup = start_job,
        steady_s: Callable[[], float] = uptime_s,
    ) -> None:
        """`vcenter` gives the client of a vCenter by its id; None: nothing is asked of vSphere. `ends` finds out
        between which machines data move; None: it is found out here, without vSphere. `steady_s`: a clock that
        nobody sets.
        """
        timing = timing or Timing()
        self.leadership = Leadership(
            ctx.db,
            uuid4().hex,
            ttl_s=timing.leader_ttl_s,
            clock=ctx.clock,
            log=ctx.log,
            on_gain=self._lead,
            steady_s=steady_s,
        )
        # Whatever the loops write is refused once another server leads.
        ctx = replace(ctx, db=FencedDatabase(ctx.db, self.leadership.confirm))  # type: ignore[type-var]
        self._ctx = ctx
        self._outbox_wake = threading.Event()
        self._client = broker_client(broker_url)
        self._app = celery_sender(broker_url)
        key = SigningKey(load_or_create_key(ctx.settings.signing_key_file))
        sealer = Sealer(SERVER, key, lambda: ctx.clock().timestamp())
        index = ClaimIndex(
            self._client,
            lambda: int(steady_s() * 1000),
            spill_ms=int(timing.spill_s * 1000),
            network_rank=NETWORK_RANK,
            hotadd_ranks=HOTADD_RANKS,
        )
        down = DownLink(self._client, sealer)
        self._lookups = None if ends is not None else Lookups(ctx.clock, ctx.log)
        if self._lookups is not None:
            ends = Ends(vcenter, self._lookups)
        assert ends is not None
        rates_wake = threading.Event()
        rates = RateKeeper(
            ctx,
            down,
            ends,
            leading=self._leading,
            wake=rates_wake,
            steady=_never_set(ctx.clock, steady_s),
        )
        encryption = EncryptionKeeper(ctx, down, ends, leading=self._leading)
        self._reports = ReportReader(
            ctx,
            self._client,
            index,
            down,
            leading=self._leading,
            timing=timing,
            steady_s=steady_s,
        )
        self._dispatcher = Dispatcher(
            ctx,
            index,
            leading=self._leading,
            outbox_wake=self._outbox_wake,
            timing=timing,
            at_start=rates.at_start,
            ends=ends,
            heard_until=self._reports.heard_until,
            steady_s=steady_s,
        )
        reaper = Reaper(
            ctx,
            index,
            leading=self._leading,
            listening_since=self._reports.listening_since,
            heard_until=self._reports.heard_until,
            behind=self._reports.behind,
            outbox_wake=self._outbox_wake,
        )
        outbox = OutboxSender(ctx, self._app, sealer, down, self._leading)
        due_jobs = DueJobs(ctx, start_backup, self._leading)
        due_checks = DueChecks(ctx, self._leading)
        settings = ctx.settings
        self._latency = None
        if vcenter is not None:
            self._latency = LatencyMeter(ctx, vcenter, leading=self._leading, wake_rates=rates_wake)

        def loop(
            name: str, step: object, interval_s: float, wake: threading.Event | None = None
        ) -> Loop:
            assert callable(step)
            return Loop(name, step, interval_s=interval_s, clock=ctx.clock, log=ctx.log, wake=wake)

        self._loops = [
            loop("leader", self.leadership.step, timing.leader_ttl_s / 3),
            loop("reports", self._reports.step, timing.report_batch_s),
            loop(
                "dispatcher", self._dispatcher.step, settings.dispatch_interval_s, ctx.wake_dispatcher
            ),
            loop("outbox", outbox.step, timing.outbox_idle_s, self._outbox_wake),
            loop("reaper", reaper.step, settings.reaper_interval_s),
            loop("due-jobs", due_jobs.step, timing.due_jobs_s),
            loop("due-checks", due_checks.step, timing.due_jobs_s),
            loop("rates", rates.step, timing.rates_s, rates_wake),
            loop("encryption", encryption.step, timing.rates_s),
        ]

        if self._latency is not None:
            self._loops.append(loop("latency", self._latency.step, timing.latency_s))

    def _leading(self) -> bool:
        return self.leadership.leading

    def _lead(self) -> None:
        # What proxies said meanwhile was not read yet, whoever led before.
        self._reports.listen_anew()
        self._dispatcher.forget_index()

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """End the loops, give up the lead, close connections. Running tasks go on at their proxies."""
        self._reports.stop()
        for loop in self._loops:
            loop.stop()
        ended = [loop.join(_JOIN_S) for loop in self._loops]
        if not all(ended):
            self._ctx.log.warning("scheduler.slow-stop", text="some loops are still in a step")
        if self._lookups is not None:
            self._lookups.close()
        if self._latency is not None:
            self._latency.close()
        self.leadership.release()
        self._app.close()
        self._client.close()

    def health(self) -> list[LoopHealth]:
        """One entry for each loop."""
        return [loop.health for loop in self._loops]
