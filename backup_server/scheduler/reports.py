"""What proxies report: read from their up streams, believed only when signed, written in batches.

An entry is deleted from its stream after the transaction that holds its effect, so reading always begins
at the start of a stream and a crash repeats entries: results are guarded by attempt and state, the rest
is refused as seen before or merely the latest value again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import redis
import sqlalchemy as sa
from nacl.signing import VerifyKey

from backup_server import instruments
from backup_server.db.tables import Proxy
from backup_server.scheduler.applying import Batch, Effect, Heard, ReportWriter
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.needs import SchedulerContext, Timing
from proxy_worker.contracts.codec import MessageError
from proxy_worker.contracts.envelope import SERVER, Opener, StaleMessageError
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    HeartbeatReport,
    ProgressReport,
    ResultReport,
)
from proxy_worker.contracts.names import STREAM_FIELD, UP_ENTRIES, up_stream
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
        self._writer = ReportWriter(ctx, self._refuse)
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
        self._tell(batch, self._writer.write(batch))
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

    def _open(self, found: Any) -> Batch:
        batch = Batch()
        prefix = up_stream(ProxyId(""))
        for stream, entries in found:
            proxy_id = stream.removeprefix(prefix)
            for entry_id, fields in entries:
                batch.entries.setdefault(stream, []).append(entry_id)
                # An entry that trimming or deletion has emptied comes with None.
                self._open_one(batch, proxy_id, entry_id, (fields or {}).get(STREAM_FIELD, ""))
        return batch

    def _open_one(self, batch: Batch, proxy_id: str, entry_id: str, text: str) -> None:
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

    def _sort_in(self, batch: Batch, proxy_id: str, entry_id: str, message: Any) -> None:
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
            heard = Heard(report=message, skew_s=self._skew_s(entry_id, message.clock_s))
            batch.heartbeats.setdefault(proxy_id, []).append(heard)

    def _refuse_in(self, batch: Batch, proxy_id: str, error: MessageError) -> None:
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

    def _note_clock(self, batch: Batch, proxy_id: str, entry_id: str, age_s: float) -> None:
        """A message that is old although the broker took it just now tells of a wrong clock."""
        waited_s = self._ctx.clock().timestamp() - int(str(entry_id).partition("-")[0]) / 1000
        if abs(waited_s) < _FRESH_ENTRY_S:
            batch.clock_offsets[proxy_id] = -age_s

    # -- telling

    def _tell(self, batch: Batch, effect: Effect) -> None:
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
        answers = {ProxyId(proxy_id): told for proxy_id, told in effect.answers.items()}
        self._down.send_all(answers)
