"""What proxies may fill at the broker is measured, and who fills it is cut off.

A proxy's own keys are known by name (`broker_rules.own_keys`), so their fill tells who did it: that proxy loses its
broker user, its connections and what it wrote, and gets no tasks until it joins again. What all workers share tells
nobody's name: it is emptied, and nobody may answer Flower for a while. Connections without a login, and too many
with one, are closed. Together with the broker's `maxmemory` that keeps it answering.

A look costs two questions; everything is measured when the broker grew, or a minute has passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import redis
import sqlalchemy as sa

from backup_server.db.tables import Proxy, Setting
from backup_server.services import broker_users, events, proxy_troubles
from backup_server.services.about import connect_broker
from backup_server.services.broker_rules import (
    PROXY_PREFIX,
    REPLIES,
    SHARED_TABLES,
    own_keys,
    proxy_user,
)
from backup_server.services.context import Context
from backup_server.services.proxy_settings import ENROLLED_AS
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import UP_ENTRIES, up_stream

_SCAN_COUNT: Final = 1000
_WRONG_KIND: Final = "WRONGTYPE"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """What no honest worker comes near."""

    key_entries: int = 2000
    """Of a queue and what belongs to it. A worker has as many orders as slots."""
    key_bytes: int = 16 << 20
    stream_entries: int = 4 * UP_ENTRIES
    stream_bytes: int = 128 << 20
    """Of reports: twice that at which a server that reads them empties the stream (`scheduler.reports`)."""
    shared_entries: int = 5000
    shared_bytes: int = 4 << 20
    reply_keys: int = 200
    reply_bytes: int = 16 << 20
    """Of all answers to Flower together."""
    withheld_s: float = 600.0
    """How long nobody may answer Flower after a flood of answers."""
    growth_bytes: int = 32 << 20
    """Of the broker since everything was measured: then it is measured again."""
    measure_s: float = 60.0
    scan_pages: int = 200
    """Of the broker's keys in one measurement; the next goes on from there."""
    user_connections: int = 200
    stranger_age_s: int = 5
    strangers_per_address: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    id: str
    name: str
    joined_as: str


class BrokerGuard:
    """For one thread. Keeps its connection: where all are taken, no new one can be had."""

    def __init__(self, ctx: Context, limits: GuardLimits | None = None) -> None:
        self._ctx = ctx
        self._limits = limits or GuardLimits()
        self._client: redis.Redis | None = None
        self._begun: tuple[Any, Any] = ("", 0)
        """With which run of the broker, and on which connection."""
        self._max_clients = 0
        self._measured_bytes = 0
        self._measured_at = ctx.clock() - timedelta(seconds=self._limits.measure_s)
        self._cursor = 0
        self._said_at = ctx.clock() - timedelta(seconds=self._limits.withheld_s)

    def step(self) -> bool:
        """Look once. Raises redis.ConnectionError while the broker is away."""
        if broker_users.separated(self._ctx) != broker_users.YES:
            return False  # nobody could be cut off; the doctor says so
        try:
            self._look(self._connected())
        except redis.ConnectionError:
            self.close()
            raise
        return False

    def close(self) -> None:
        """Give its connection back; the next step makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Any:
        if self._client is None:
            self._client = connect_broker(self._ctx)
        return self._client

    def _look(self, client: Any) -> None:
        info, connection = _pipelined(
            client, [("INFO", "server", "memory", "clients"), ("CLIENT", "ID")]
        )
        _raise_refusal(info)
        here = (info["run_id"], str(connection))
        if here != self._begun:
            self._begin(client, info)
            self._begun = here
        if self._max_clients and info["connected_clients"] > self._max_clients // 4:
            self._thin_out(client, info["connected_clients"])
        used = int(info["used_memory"])
        self._measured_bytes = min(self._measured_bytes, used)
        now = self._ctx.clock()
        grew = used - self._measured_bytes > self._limits.growth_bytes
        if grew or (now - self._measured_at).total_seconds() >= self._limits.measure_s:
            self._measured_bytes, self._measured_at = used, now
            self._measure(client)

    def _begin(self, client: Any, info: Any) -> None:
        """With a broker that started anew, or over another connection: it is a connection that is spared."""
        try:
            # Whoever talks most is closed first when buffers fill the memory; not who clears up.
            client.execute_command("CLIENT", "NO-EVICT", "ON")
            wanted = self._ctx.settings.broker_memory_bytes
            if wanted and broker_users.is_embedded(self._ctx):
                client.config_set("maxmemory", wanted)
            self._max_clients = int(info.get("maxclients") or 0)
        except redis.ResponseError as error:
            self._ctx.log.warning("broker.guard", text=f"the broker is not fully guarded: {error}")

    # -- memory

    def _measure(self, client: Any) -> None:
        owners = self._owners()
        try:
            for owner, what in self._filled(client, owners):
                self._cut_off(owner, what)
            self._shared(client)
            self._replies(client)
        except redis.exceptions.NoPermissionError as error:
            self._ctx.log.warning("broker.guard", text=f"the broker cannot be measured: {error}")

    def _owners(self) -> list[_Owner]:
        with self._ctx.db.read() as s:
            rows = s.execute(
                sa.select(Proxy.id, Proxy.name, Proxy.settings, Proxy.facts).where(
                    Proxy.broker_credential_id.is_not(None)
                )
            ).all()
        return [
            _Owner(id=row.id, name=row.name, joined_as=row.settings.get(ENROLLED_AS, row.name))
            for row in rows
            if not proxy_troubles.is_cut_off(row.facts)
        ]

    def _filled(self, client: Any, owners: Sequence[_Owner]) -> list[tuple[_Owner, str]]:
        """Who has more in a key of its own than any worker of ours, and what."""
        asked = [
            (owner, key, how) for owner in owners for key, how in own_keys(owner.id, owner.joined_as)
        ]
        counts = _pipelined(client, [(how, key) for _, key, how in asked])
        found: dict[str, tuple[_Owner, str]] = {}
        weigh: list[tuple[_Owner, str, int]] = []
        for (owner, key, how), count in zip(asked, counts, strict=True):
            entries, most_bytes = self._most(owner, key)
            if _is_of_another_kind(count):
                found[owner.id] = (owner, f"{key} is not what a worker makes of it")
            elif how != "STRLEN" and count > entries:
                found[owner.id] = (owner, f"{count} entries in {key}")
            elif count:
                weigh.append((owner, key, most_bytes))
        # All of its entries, not some: there are not many, and those that are looked at first may be short.
        weights = _pipelined(client, [("MEMORY", "USAGE", key, "SAMPLES", 0) for _, key, _ in weigh])
        for (owner, key, most_bytes), weight in zip(weigh, weights, strict=True):
            _raise_refusal(weight)
            if weight is not None and weight > most_bytes:
                found[owner.id] = (owner, f"{weight >> 20} MiB in {key}")
        return list(found.values())

    def _most(self, owner: _Owner, key: str) -> tuple[int, int]:
        limits = self._limits
        if key == up_stream(ProxyId(owner.id)):
            return limits.stream_entries, limits.stream_bytes
        return limits.key_entries, limits.key_bytes

    def _cut_off(self, owner: _Owner, what: str) -> None:
        ctx = self._ctx
        trouble = {proxy_troubles.FLOOD: proxy_troubles.flood_trouble(owner.name, what)}
        with ctx.db() as s:
            # With the row locked: a heartbeat of it may be written at this moment.
            row = s.get(Proxy, owner.id, with_for_update={"key_share": True}, populate_existing=True)
            if row is None:
                return
            proxy_troubles.note(s, row, trouble, ctx.clock())
        broker_users.sync(ctx)
        ctx.wake_dispatcher.set()

    def _shared(self, client: Any) -> None:
        """The tables that all workers write. Nothing needs them: control messages are published."""
        for key in SHARED_TABLES:
            [count] = _pipelined(client, [("SCARD", key)])
            many = _is_of_another_kind(count) or count > self._limits.shared_entries
            weight: Any = 0 if many else client.memory_usage(key, samples=0)
            if many or (weight or 0) > self._limits.shared_bytes:
                client.unlink(key)
                self._say(client, f"{key}, which all workers write, was flooded and emptied")

    def _replies(self, client: Any) -> None:
        """Answers that nobody fetches. Their lists have any name, so that they are found by going through all keys."""
        keys: list[Any] = []
        flooded = False
        for _ in range(self._limits.scan_pages):
            self._cursor, page = client.scan(self._cursor, match=f"{REPLIES}*", count=_SCAN_COUNT)
            keys.extend(page)
            flooded = flooded or self._too_much(client, keys)
            if flooded and keys:
                client.unlink(*keys)
                keys = []
            if self._cursor == 0:
                break
        if flooded:
            ctx = self._ctx
            until = ctx.clock() + timedelta(seconds=self._limits.withheld_s)
            with ctx.db() as s:
                s.merge(Setting(name=broker_users.REPLIES_WITHHELD, value=until.isoformat()))
            broker_users.sync(ctx)
            self._say(
                client,
                "lists of answers to Flower were flooded and deleted; until "
                f"{until:%H:%M} UTC no worker may answer it",
            )

    def _too_much(self, client: Any, keys: Sequence[Any]) -> bool:
        if len(keys) > self._limits.reply_keys:
            return True
        weights = _pipelined(client, [("MEMORY", "USAGE", key) for key in keys])
        return sum(one for one in weights if isinstance(one, int)) > self._limits.reply_bytes

    def _say(self, client: Any, text: str) -> None:
        """Once in a while, with those who write such things at this moment: nothing else tells who it was."""
        now = self._ctx.clock()
        if (now - self._said_at).total_seconds() < self._limits.withheld_s:
            return
        self._said_at = now
        writing = {
            str(one["user"])
            for one in client.client_list()
            if one.get("cmd") in {"lpush", "sadd", "exec"}
        }
        with self._ctx.db() as s:
            names = s.execute(sa.select(Proxy.id, Proxy.name)).all()
            seen = sorted(name for proxy_id, name in names if proxy_user(proxy_id) in writing)
            if seen:
                text += f"; look at these proxies first: {', '.join(seen)}"
            events.record(s, now, "broker.flood", text, level=events.WARNING)

    # -- connections

    def _thin_out(self, client: Any, connected: int) -> None:
        """Close connections that did not log in, and all of a proxy that has more than any worker."""
        clients = client.client_list()
        pressed = connected > self._max_clients // 2
        strangers = [one for one in clients if _user(one) == "default"]
        if self._default_is_ours(client):
            strangers = []  # they cannot be told from ourselves
        by_address = Counter(_address(one) for one in strangers)
        age_s = 1 if pressed else self._limits.stranger_age_s
        kill = [
            one["id"]
            for one in strangers
            if int(one["age"]) >= age_s
            or by_address[_address(one)] > self._limits.strangers_per_address
        ]
        _pipelined(client, [("CLIENT", "KILL", "ID", one) for one in kill])
        users = Counter(_user(one) for one in clients)
        by_user = {proxy_user(owner.id): owner for owner in self._owners()}
        for user, count in users.items():
            if user.startswith(PROXY_PREFIX) and count > self._limits.user_connections:
                client.client_kill_filter(user=user)
                if user in by_user:
                    self._cut_off(by_user[user], f"{count} connections")
        if kill:
            self._ctx.log.warning(
                "broker.strangers",
                text=f"{len(kill)} connections to the broker that did not log in were closed",
                addresses=len(by_address),
            )

    @staticmethod
    def _default_is_ours(client: Any) -> bool:
        return bool(client.acl_whoami() == "default")


def _user(client: Any) -> str:
    return str(client.get("user", ""))


def _address(client: Any) -> str:
    return str(client.get("addr", "")).rpartition(":")[0]


def _is_of_another_kind(count: Any) -> bool:
    """Whether a key holds what no worker puts there. What the broker refuses for another reason is nobody's fault,
    and raised.
    """
    if isinstance(count, redis.ResponseError) and str(count).startswith(_WRONG_KIND):
        return True
    _raise_refusal(count)
    return False


def _raise_refusal(answer: Any) -> None:
    if isinstance(answer, redis.RedisError):
        raise answer


def _pipelined(client: Any, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Answers in order; a refused command's is its error."""
    asked = list(commands)
    if not asked:
        return []
    with client.pipeline(transaction=False) as pipe:
        for command in asked:
            pipe.execute_command(*command)
        answers: list[Any] = pipe.execute(raise_on_error=False)
    return answers
