"""What proxies report: read from their up streams, believed only when signed, written in batches.

An entry is deleted from its stream after the transaction that holds its effect, so reading always begins
at the start of a stream and a crash repeats entries: results are guarded by attempt and state, the rest
is refused as seen before or merely the latest value again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import redis
import sqlalchemy as sa
from nacl.signing import VerifyKey
from sqlalchemy.orm import Session as DbSession

from backup_server import instruments
from backup_server.db.fenced import NotLeadingError
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.needs import SchedulerContext, Timing, retry_policy
from backup_server.services import leases, proxy_troubles, proxy_vms, results, tasks
from backup_server.services.results import Applied, Ended
from proxy_worker.contracts.codec import MessageError, to_json
from proxy_worker.contracts.envelope import SERVER, Opener, StaleMessageError
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    DownMessage,
    HeartbeatReport,
    ProgressReport,
    ResultAck,
    ResultReport,
    TaskOutcome,
)
from proxy_worker.contracts.names import STREAM_FIELD, UP_ENTRIES, up_stream
from proxy_worker.contracts.older import down_for
from transports.rules import same_uuid
from transports.system import uptime_s

_ENTRIES: Final = 500
_FIRST_ENTRIES: Final = 50
"""Of a stream, before anybody asked how long its entries are."""
_MOST_STREAM_ENTRIES: Final = 2 * UP_ENTRIES
_MOST_STREAM_BYTES: Final = 64 << 20
"""What an honest proxy leaves while nobody reads is below a half of either."""
_REFUSALS_SAID: Final = 3
"""Of one proxy and reading, in the log; the others are counted."""
_WORD_CHARS: Final = 64
"""Of a release or a boot id. Ours have half of that at most."""
_FRESH_ENTRY_S: Final = 60.0
_CLOCK_SET_S: Final = 5.0
"""More than a clock that is kept by a time server moves in one step of ours."""
_OUTAGES: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.TimeoutError,
    sa.exc.DisconnectionError,
    NotLeadingError,
)
"""The database is away or busy, or another server leads: nothing is wrong with what was to be stored."""
_REASON_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A heartbeat, and how far its clock is from ours, the time left out for which it waited."""

    report: HeartbeatReport
    skew_s: float


@dataclass(slots=True)
class _Batch:
    """What one reading brought, coalesced."""

    entries: dict[str, list[Any]] = field(default_factory=dict)
    heartbeats: dict[str, list[_Heard]] = field(default_factory=dict)
    """In the order of their coming."""
    refused: dict[str, int] = field(default_factory=dict)
    """How many messages of each proxy."""
    progress: dict[str, tuple[str, ProgressReport]] = field(default_factory=dict)
    results: list[tuple[str, ResultReport]] = field(default_factory=list)
    clock_offsets: dict[str, float] = field(default_factory=dict)
    connections: dict[str, ConnectionsReport] = field(default_factory=dict)

    def apart(self) -> Iterator[tuple[str, _Batch]]:
        """Each message alone, with its sender, in the order in which they are written."""
        for proxy_id, result in self.results:
            yield proxy_id, _Batch(results=[(proxy_id, result)])
        for proxy_id, heartbeat in self.heartbeats.items():
            yield proxy_id, _Batch(heartbeats={proxy_id: heartbeat})
        for proxy_id, found in self.connections.items():
            yield proxy_id, _Batch(connections={proxy_id: found})
        for key, (proxy_id, report) in self.progress.items():
            yield proxy_id, _Batch(progress={key: (proxy_id, report)})
        for proxy_id, offset_s in self.clock_offsets.items():
            yield proxy_id, _Batch(clock_offsets={proxy_id: offset_s})


@dataclass(slots=True)
class _Effect:
    """What is to be told after the commit."""

    ended: list[Ended] = field(default_factory=list)
    answers: dict[str, list[DownMessage]] = field(default_factory=dict)
    changed_proxies: bool = False


class ReportReader:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self,
        ctx: SchedulerContext,
        client: redis.Redis,
        index: ClaimIndex,
        down: DownLink,
        *,
        leading: Callable[[], bool],
        timing: Timing,
        steady_s: Callable[[], float] = uptime_s,
    ) -> None:
        """`steady_s`: a clock that nobody sets."""
        self._ctx = ctx
        self._client = client
        self._index = index
        self._down = down
        self._leading = leading
        self._timing = timing
        self._keys: dict[str, VerifyKey] = {}
        self._steady_s = steady_s
        self._ahead_s: float | None = None  # how far the clock was ahead of the steady one
        self._listening_since: datetime | None = None
        self._heard: tuple[datetime, frozenset[str]] | None = None  # until when, but of whom
        self._pause = threading.Event()
        self._opener = Opener(SERVER, self._keys.get, lambda: ctx.clock().timestamp())

    def listening_since(self) -> datetime | None:
        """Since when reports have been read without a break; None: they are not being read."""
        return None if self._clock_was_set() else self._listening_since

    def heard_until(self) -> datetime | None:
        """All that came before this moment was applied, but for proxies that are `behind`; None: nothing was read yet.
        Behind the clock for as long as one reading and its writing take: what is said in that time is not silence.
        """
        heard = self._heard
        return None if heard is None or self._clock_was_set() else heard[0]

    def behind(self) -> frozenset[str]:
        """Proxies of which more came than one reading takes. One that floods us keeps nobody else's leases from ending.
        Ask after `heard_until`.
        """
        heard = self._heard
        return frozenset() if heard is None else heard[1]

    def _mind_the_clock(self) -> None:
        if self._clock_was_set():
            self.listen_anew()
        self._ahead_s = self._ahead_now_s()

    def _ahead_now_s(self) -> float:
        return self._ctx.clock().timestamp() - self._steady_s()

    def _clock_was_set(self) -> bool:
        """Since the last step: then leases are over by the clock of which nobody had the time to tell."""
        return self._ahead_s is not None and abs(self._ahead_now_s() - self._ahead_s) > _CLOCK_SET_S

    def listen_anew(self) -> None:
        """Nobody's silence of before counts: this server did nothing for a while, or its clock was moved on."""
        self._listening_since = None
        self._heard = None

    def stop(self) -> None:
        self._pause.set()

    def step(self) -> bool:
        """Read what came, apply it, answer it. True: call again at once."""
        if not self._leading():
            self.listen_anew()
            return False
        self._mind_the_clock()
        try:
            asked_at = self._ctx.clock()
            self._load_keys()
            behind = self._read_and_apply()
        except Exception:
            self.listen_anew()
            raise
        self._heard = asked_at, behind
        return bool(self._keys)

    def _read_and_apply(self) -> frozenset[str]:
        """Answers of whom not all was read."""
        if not self._keys:
            self._listening_since = self._listening_since or self._ctx.clock()
            return frozenset()
        streams: Any = {up_stream(ProxyId(proxy_id)): "0-0" for proxy_id in self._keys}
        block_ms = int(self._timing.report_block_s * 1000)
        found: Any = self._client.xread(streams, count=_FIRST_ENTRIES, block=block_ms)
        # After the read, which may have lasted for as long as this process was stopped.
        heard_at = self._ctx.clock()
        self._mind_the_clock()
        if self._listening_since is None or self._listening_since > heard_at:
            # Later than now: the clock went back, and a lease's time counts from here.
            self._listening_since = heard_at
        if not found:
            return frozenset()
        whole = [(stream, self._more(stream, entries)) for stream, entries in found]
        prefix = up_stream(ProxyId(""))
        behind = {
            stream.removeprefix(prefix)
            for stream, entries in whole
            if len(entries) >= _FIRST_ENTRIES + _ENTRIES
        }
        batch = self._open(whole)
        for proxy_id, count in batch.refused.items():
            if count > _REFUSALS_SAID:
                text = f"{count - _REFUSALS_SAID} further messages were refused"
                self._ctx.log.warning(EventName.MESSAGE_REFUSED, text=text, proxy_id=proxy_id)
        self._tell(batch, self._write(batch))
        if not batch.results:
            # Heartbeats and progress may gather; a result frees a slot and must not wait.
            self._pause.wait(self._timing.report_batch_s)
        return frozenset(behind)

    def _more(self, stream: str, entries: list[Any]) -> list[Any]:
        """These entries and the next ones of a stream that has many. A stream that no honest proxy fills so is
        emptied instead: what was in it is sent again while it matters.
        """
        if len(entries) < _FIRST_ENTRIES:
            return entries
        client: Any = self._client
        length, used_bytes = client.xlen(stream), client.memory_usage(stream, samples=0) or 0
        if length <= _MOST_STREAM_ENTRIES and used_bytes <= _MOST_STREAM_BYTES:
            return [*entries, *client.xrange(stream, min=f"({entries[-1][0]}", count=_ENTRIES)]
        client.delete(stream)
        proxy_id = stream.removeprefix(up_stream(ProxyId("")))
        text = (
            f"its stream of reports was emptied: {length} entries, {used_bytes >> 20} MiB; it floods us"
        )
        self._ctx.log.warning("proxy.flood", text=text, proxy_id=proxy_id)
        return entries

    def _load_keys(self) -> None:
        with self._ctx.db.read() as s:
            rows = s.execute(
                sa.select(Proxy.id, Proxy.signing_key).where(Proxy.signing_key.is_not(None))
            ).all()
        fresh = {row.id: self._key_of(row.id, row.signing_key) for row in rows}
        # In place: the opener looks into this very dictionary.
        for gone in self._keys.keys() - fresh.keys():
            del self._keys[gone]
        self._keys.update(fresh)

    def _key_of(self, proxy_id: str, text: str) -> VerifyKey:
        known = self._keys.get(proxy_id)
        raw = bytes.fromhex(text)
        return known if known is not None and bytes(known) == raw else VerifyKey(raw)

    # -- believing

    def _open(self, found: Any) -> _Batch:
        batch = _Batch()
        prefix = up_stream(ProxyId(""))
        for stream, entries in found:
            proxy_id = stream.removeprefix(prefix)
            for entry_id, fields in entries:
                batch.entries.setdefault(stream, []).append(entry_id)
                # An entry that trimming or deletion has emptied comes with None.
                self._open_one(batch, proxy_id, entry_id, (fields or {}).get(STREAM_FIELD, ""))
        return batch

    def _open_one(self, batch: _Batch, proxy_id: str, entry_id: str, text: str) -> None:
        expect = {HeartbeatReport, ProgressReport, ResultReport, ConnectionsReport}
        try:
            envelope = self._opener.open(text, expect=expect)
            if envelope.sender != proxy_id:
                raise MessageError(f"{envelope.sender!r} wrote to the stream of proxy {proxy_id}")
            self._sort_in(batch, proxy_id, entry_id, envelope.message)
        except StaleMessageError as error:
            self._note_clock(batch, proxy_id, entry_id, error.age_s)
            self._refuse_in(batch, proxy_id, error)
        except MessageError as error:
            self._refuse_in(batch, proxy_id, error)

    def _sort_in(self, batch: _Batch, proxy_id: str, entry_id: str, message: Any) -> None:
        if isinstance(message, ResultReport):
            batch.results.append((proxy_id, message))
        elif isinstance(message, ProgressReport):
            batch.progress[f"{proxy_id} {message.task_id}"] = (proxy_id, message)
        elif message.proxy_id != proxy_id:
            raise MessageError(f"a report of proxy {message.proxy_id} signed by {proxy_id}")
        elif isinstance(message, ConnectionsReport):
            batch.connections[proxy_id] = message
        elif max(len(message.version), len(message.boot_id)) > _WORD_CHARS:
            # They are kept and said again: in facts of every heartbeat, in events.
            raise MessageError("a heartbeat has words that are longer than any worker's")
        else:
            heard = _Heard(report=message, skew_s=self._skew_s(entry_id, message.clock_s))
            batch.heartbeats.setdefault(proxy_id, []).append(heard)

    def _refuse_in(self, batch: _Batch, proxy_id: str, error: MessageError) -> None:
        """As `_refuse`; of many in one reading the first few are said."""
        batch.refused[proxy_id] = batch.refused.get(proxy_id, 0) + 1
        if batch.refused[proxy_id] <= _REFUSALS_SAID:
            self._refuse(proxy_id, error)
        else:
            instruments.PROXY_MESSAGES_REFUSED.inc()

    def _refuse(self, proxy_id: str, error: MessageError) -> None:
        instruments.PROXY_MESSAGES_REFUSED.inc()
        self._ctx.log.warning(EventName.MESSAGE_REFUSED, text=str(error), proxy_id=proxy_id)

    def _skew_s(self, entry_id: str, clock_s: float) -> float:
        """A heartbeat that waited in its stream (we were away) is old by our clock, not by the broker's."""
        came_s = int(str(entry_id).partition("-")[0]) / 1000
        return min(clock_s - self._ctx.clock().timestamp(), clock_s - came_s, key=abs)

    def _note_clock(self, batch: _Batch, proxy_id: str, entry_id: str, age_s: float) -> None:
        """A message that is old although the broker took it just now tells of a wrong clock."""
        waited_s = self._ctx.clock().timestamp() - int(str(entry_id).partition("-")[0]) / 1000
        if abs(waited_s) < _FRESH_ENTRY_S:
            batch.clock_offsets[proxy_id] = -age_s

    # -- writing

    def _write(self, batch: _Batch) -> _Effect:
        """All in one transaction; each message in one of its own when that does not work, so that one which cannot be
        stored stops nobody else's. Raises when the database is away.
        """
        try:
            with self._ctx.db() as s:
                return self._apply(s, batch)
        except _OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - which one it was is found out below, and said
            self._ctx.log.warning(
                "reports.apart", text=f"reports are stored one by one: {_short(error)}"
            )
        effect = _Effect()
        for proxy_id, part in batch.apart():
            found = self._write_one(proxy_id, part)
            effect.ended += found.ended
            effect.changed_proxies |= found.changed_proxies
            for receiver, answers in found.answers.items():
                effect.answers.setdefault(receiver, []).extend(answers)
        return effect

    def _write_one(self, proxy_id: str, part: _Batch) -> _Effect:
        try:
            with self._ctx.db() as s:
                return self._apply(s, part)
        except _OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"a report cannot be stored: {_short(error)}"
            self._refuse(proxy_id, MessageError(reason))
        if not part.results:
            return _Effect()
        # Sent until it is acknowledged, and its task kept alive by heartbeats until then: so the attempt ends here.
        [(_, bad)] = part.results
        plain = ResultReport(
            task_id=bad.task_id, attempt=bad.attempt, outcome=TaskOutcome.RETRY, reason=reason
        )
        return (
            self._write_one(proxy_id, _Batch(results=[(proxy_id, plain)]))
            if bad != plain
            else _Effect()
        )

    def _apply(self, s: DbSession, batch: _Batch) -> _Effect:
        now = self._ctx.clock()
        policy = retry_policy(self._ctx.settings)
        effect = _Effect()
        self._lock_proxies(s, batch)
        results.lock_running(s, list(_speakers(batch)), _named_in(batch))
        # Results first: a worker that was started anew sends what its earlier self had finished and
        # only then its first heartbeat, which ends that self's leases.
        answers = results.apply_results(s, batch.results, policy=policy, now=now)
        self._log_stale(s, batch.results, answers)
        for (proxy_id, result), applied in zip(batch.results, answers, strict=True):
            ack = ResultAck(task_id=result.task_id, attempt=result.attempt)
            effect.answers.setdefault(proxy_id, []).append(ack)
            if applied is Applied.STALE:
                continue
            effect.ended.append(
                Ended(
                    task_id=result.task_id,
                    attempt=result.attempt,
                    terminal=applied is Applied.ENDED,
                )
            )
        self._apply_heartbeats(s, batch.heartbeats, now, effect)
        for proxy_id, found in batch.connections.items():
            self._apply_connections(s, proxy_id, found, now)
            effect.changed_proxies = True
        leases.record_progress(s, batch.progress.values())
        for proxy_id, offset_s in batch.clock_offsets.items():
            row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
            if row is not None:
                row.clock_offset_s = offset_s
                trouble = {proxy_troubles.CLOCK: proxy_troubles.clock_trouble(offset_s)}
                effect.changed_proxies |= proxy_troubles.note(s, row, trouble, now)
        return effect

    @staticmethod
    def _lock_proxies(s: DbSession, batch: _Batch) -> None:
        """Before their tasks, as who revokes one does, and in one order."""
        ids = batch.heartbeats.keys() | batch.connections.keys() | batch.clock_offsets.keys()
        if ids:
            asked = sa.select(Proxy.id).where(Proxy.id.in_(ids)).order_by(Proxy.id)
            s.execute(asked.with_for_update(key_share=True)).all()

    @staticmethod
    def _apply_connections(
        s: DbSession, proxy_id: str, found: ConnectionsReport, now: datetime
    ) -> None:
        # With the row locked: an administrator may be changing its settings.
        row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
        if row is None:
            return
        before = proxy_vms.uuid_of(row)
        is_new = before != found.vm_uuid
        row.connections, row.connections_at = to_json(found), now
        if before and not same_uuid(before, found.vm_uuid):
            proxy_vms.unconfirm(row)
        s.flush()
        if is_new:
            proxy_vms.follow_uuid(s, proxy_id, found.vm_uuid)

    def _log_stale(
        self, s: DbSession, told: list[tuple[str, ResultReport]], answers: list[Applied]
    ) -> None:
        """Often the same once more, as our acknowledgement was on its way."""
        stale = [one for one, applied in zip(told, answers, strict=True) if applied is Applied.STALE]
        if not stale:
            return
        ids = [result.task_id for _, result in stale]
        sessions = {row.id: row.session_id for row in _of(s, Task.id, Task.session_id, ids)}
        names = {row.id: row.name for row in _of(s, Proxy.id, Proxy.name, [one for one, _ in stale])}
        for proxy_id, result in stale:
            self._ctx.log.info(
                EventName.RESULT_STALE,
                text="a result of an attempt that is over changes nothing",
                proxy_id=proxy_id,
                proxy=names.get(proxy_id, ""),
                session_id=sessions.get(result.task_id),
                task_id=result.task_id,
                attempt=result.attempt,
                outcome=result.outcome.value,
            )

    def _apply_heartbeats(
        self, s: DbSession, beats: dict[str, list[_Heard]], now: datetime, effect: _Effect
    ) -> None:
        if not beats:
            return
        # With the rows locked: what is known of a proxy's VM stands in the same column. All in one order, and all with
        # few statements: every proxy of a fleet says something every few seconds.
        rows = s.scalars(
            sa.select(Proxy)
            .where(Proxy.id.in_(beats))
            .order_by(Proxy.id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        ).all()
        for row in rows:
            self._apply_heartbeat(s, row, beats[row.id], now, effect)
        s.flush()
        # Results that were read just now are acknowledged, which says all there is to say.
        heard = {(task.task_id, task.attempt) for task in effect.ended}
        # Of two machines with one identity each says what it runs.
        latest = [(row.id, report) for row in rows for report in _latest(beats[row.id])]
        renewed = leases.renew_all(
            s,
            [
                leases.Beat(
                    proxy_id=proxy_id,
                    boot_id=report.boot_id,
                    running=[
                        task for task in report.running if (task.task_id, task.attempt) not in heard
                    ],
                    sequence=report.sequence,
                )
                for proxy_id, report in latest
            ],
            now=now,
            lease_s=self._ctx.settings.lease_s,
        )
        for (proxy_id, report), answers in zip(latest, renewed, strict=True):
            effect.answers.setdefault(proxy_id, []).extend(down_for(answers, report.version))

    def _apply_heartbeat(
        self, s: DbSession, row: Proxy, beats: list[_Heard], now: datetime, effect: _Effect
    ) -> None:
        """`beats`: what was heard of that proxy, the last of them is what holds."""
        settings = self._ctx.settings
        proxy_id, report = row.id, beats[-1].report
        boots = proxy_troubles.follow_boots(
            row.facts.get(proxy_troubles.BOOTS) or {},
            [(one.report.boot_id, one.report.clock_s) for one in beats],
        )
        # A self that was replaced ends nothing: it is late, or a twin, and then both go on with what they have.
        replaced = proxy_troubles.is_replaced(boots, report.boot_id)
        if not replaced and row.boot_id != report.boot_id:
            effect.ended += tasks.end_leases_of_other_boots(
                s, proxy_id, report.boot_id, now=now, policy=retry_policy(settings)
            )
            self._ctx.log.info(
                EventName.PROXY_RESTARTED, text=f"worker of {row.name} started", proxy_id=proxy_id
            )
        seen = row.last_seen_at
        back = seen is None or (now - seen).total_seconds() > settings.proxy_offline_after_s
        new_facts = {
            **row.facts,
            "slots": report.slots,
            "running": len(report.running),
            "stopping": report.stopping,
            "modes": [mode.value for mode in report.modes],
            "cpu_share": report.cpu_share,
            "free_memory_bytes": report.free_memory_bytes,
            proxy_troubles.BOOTS: boots,
        }
        if back or any(row.facts.get(key) != new_facts[key] for key in ("slots", "stopping", "modes")):
            effect.changed_proxies = True
        row.facts = new_facts
        if not replaced:
            row.boot_id = report.boot_id
        row.version = report.version
        row.last_seen_at = now
        row.clock_offset_s = beats[-1].skew_s
        effect.changed_proxies |= proxy_troubles.note(s, row, _troubles(row, boots), now)

    # -- telling

    def _tell(self, batch: _Batch, effect: _Effect) -> None:
        if any(ended.terminal for ended in effect.ended):
            self._ctx.wake_engine.set()
        if any(not ended.terminal for ended in effect.ended):
            self._ctx.wake_janitor.set()
        # First of all: a broker that is full takes nothing new, and this is what makes room. What is not told below
        # is asked for again, and a claim that is not released is found by an audit.
        with self._client.pipeline(transaction=False) as pipe:
            for stream, ids in batch.entries.items():
                pipe.xdel(stream, *ids)
            pipe.execute()
        if effect.ended or effect.changed_proxies:
            self._ctx.wake_dispatcher.set()
        self._index.release_all((ended.task_id, ended.attempt) for ended in effect.ended)
        for proxy_id, answers in effect.answers.items():
            self._down.send(ProxyId(proxy_id), answers)


def _speakers(batch: _Batch) -> set[str]:
    told = {proxy_id for proxy_id, _ in (*batch.results, *batch.progress.values())}
    return told | batch.heartbeats.keys()


def _named_in(batch: _Batch) -> Iterator[str]:
    """The tasks that it may change."""
    yield from (result.task_id for _, result in batch.results)
    yield from (report.task_id for _, report in batch.progress.values())
    for beats in batch.heartbeats.values():
        yield from (task.task_id for report in _latest(beats) for task in report.running)


def _of(s: DbSession, key: Any, value: Any, ids: list[Any]) -> Any:
    return s.execute(sa.select(key, value).where(key.in_(ids)))


def _short(error: Exception) -> str:
    """Of the database's complaint the first line: what follows repeats statement and values."""
    text = str(getattr(error, "orig", None) or error).partition("\n")[0]
    # What cannot be stored must not stand in the reason that is.
    return f"{type(error).__name__}: {text}".replace("\0", "")[:_REASON_CHARS]


def _latest(beats: list[_Heard]) -> list[HeartbeatReport]:
    """The last heartbeat of each self of the worker."""
    return list({one.report.boot_id: one.report for one in beats}.values())


def _troubles(row: Proxy, boots: dict[str, Any]) -> dict[str, str]:
    found = {
        proxy_troubles.CLOCK: proxy_troubles.clock_trouble(row.clock_offset_s or 0.0),
        proxy_troubles.VERSION: proxy_troubles.version_trouble(row.name, row.version or ""),
    }
    if proxy_troubles.has_twin(boots):
        found[proxy_troubles.IDENTITY] = proxy_troubles.identity_trouble(row.name)
    return found
