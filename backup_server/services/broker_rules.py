"""What each broker user may do, as access rules of Redis 7: values without a connection.

A proxy's user reaches its own queue, its own two streams and its own mailbox. Of what all workers share it may
read the tables that route answers, and write answers; it publishes events and hears control messages, but
cannot publish those. Whatever another proxy has, it can neither read nor write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import down_stream, task_queue, up_stream, worker_host

PROXY_PREFIX: Final = "vmhaul-px-"
FLOWER_USER: Final = "vmhaul-flower"
OLDEST_REDIS: Final = (7, 0)
"""The first that tells reading from writing of a key."""

SETINFO: Final = ("+client|setinfo",)
"""Clients say what they are, to a broker that knows the command: Redis 7.2 and newer."""
SETINFO_SINCE: Final = (7, 2)
_CONNECTION: Final = ("+ping", "+hello", "+client|setname", "+client|id", "+select")
_TRANSACTIONS: Final = ("+multi", "+exec", "+discard", "+watch", "+unwatch")
_QUEUES: Final = (
    "+brpop", "+rpop", "+lpush", "+rpush", "+llen", "+lrem",
    "+sadd", "+smembers", "+srem", "+scard", "+sismember",
    "+zadd", "+zrem", "+zrange", "+zrevrangebyscore", "+zrangebyscore", "+zcard", "+zscore",
    "+hset", "+hget", "+hdel", "+hlen", "+hmget",
    "+set", "+get", "+del", "+exists", "+expire", "+pexpire", "+persist", "+time",
    # The lock that a restored message is guarded by. The server loads its script: one of a proxy's own might never
    # end, and a broker that runs it answers nobody.
    "+evalsha", "+script|exists",
)  # fmt: skip
_ROUTES: Final = "_kombu.binding"
"""Sets in which kombu keeps who gets what of an exchange. `_permanent` is the same for those that do not expire;
`_deadlines`, of those that do, is one key for all: only Flower, which nobody answers to, may write it."""


def proxy_user(proxy_id: str) -> str:
    return f"{PROXY_PREFIX}{proxy_id}"


def proxy_rules(proxy_id: str, name: str, db: int) -> tuple[str, ...]:
    """Rules of a proxy's user, without its password. `db`: of the broker's URL."""
    own = ProxyId(proxy_id)
    queue = task_queue(own)
    return (
        *("-@all", *_CONNECTION, *_TRANSACTIONS, *_QUEUES, "+xadd", "+xread", "+xrevrange", "+publish"),
        # its own
        f"~{queue}",
        f"~{queue}.unacked*",
        f"~{_ROUTES}.{queue}",
        f"~{_ROUTES}_permanent.{queue}",
        f"~{worker_host(name)}.celery.pidbox",
        f"%W~{up_stream(own)}",
        f"%R~{down_stream(own)}",
        # everybody's
        f"%W~{_ROUTES}.celery.pidbox",
        f"%W~{_ROUTES}_permanent.celery.pidbox",
        f"%R~{_ROUTES}.reply.celery.pidbox",
        "%W~*.reply.celery.pidbox",
        f"&/{db}.celeryev/*",
        # Heard, not said: what is published there tells workers what to do.
        f"(+psubscribe +punsubscribe +subscribe +unsubscribe &/{db}.celery.pidbox)",
    )


def flower_rules(db: int) -> tuple[str, ...]:
    """Rules of Flower's user: it hears events, asks workers how they are, and counts what waits in queues."""
    return (
        *(
            "-@all",
            *_CONNECTION,
            *_TRANSACTIONS,
            *_QUEUES,
            "+script|load",
            "+publish",
            "+type",
            "+info",
        ),
        *("+psubscribe", "+punsubscribe", "+subscribe", "+unsubscribe"),
        # Behind the names stand the priorities' marks.
        "~*.reply.celery.pidbox*",
        "~celeryev.*",
        f"~{_ROUTES}_deadlines",
        *(
            f"~{_ROUTES}{kind}.{exchange}"
            for kind in ("", "_permanent")
            for exchange in ("celery.pidbox", "reply.celery.pidbox", "celeryev")
        ),
        "~unacked*",
        f"&/{db}.celeryev/*",
        f"&/{db}.celeryev",
        f"&/{db}.celery.pidbox",
        "(+llen +lrange %R~vmhaul.px.*)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A command that a proxy's user must be able to give, or must not."""

    command: tuple[str, ...]
    allowed: bool


def trials(proxy_id: str, other_id: str, db: int) -> tuple[Trial, ...]:
    """What the broker is asked about a user before it is trusted to keep proxies apart."""
    own, other = ProxyId(proxy_id), ProxyId(other_id)
    yes = (
        ("BRPOP", task_queue(own), "1"),
        ("XADD", up_stream(own), "*", "m", "x"),
        ("XREAD", "STREAMS", down_stream(own), "0"),
        ("PUBLISH", f"/{db}.celeryev/worker.heartbeat", "x"),
        ("PSUBSCRIBE", f"/{db}.celery.pidbox"),
    )
    no = (
        ("BRPOP", task_queue(other), "1"),
        ("LPUSH", task_queue(other), "x"),
        ("LRANGE", task_queue(other), "0", "-1"),
        ("HGETALL", f"{task_queue(other)}.unacked"),
        ("XADD", up_stream(other), "*", "m", "x"),
        ("XREAD", "STREAMS", up_stream(own), "0"),
        ("XREAD", "STREAMS", down_stream(other), "0"),
        ("XADD", down_stream(own), "*", "m", "x"),
        ("XADD", down_stream(other), "*", "m", "x"),
        ("HSET", "vmhaul:px:1", "max", "0"),
        ("GET", "vmhaul:epoch"),
        ("PUBLISH", f"/{db}.celery.pidbox", "x"),
        ("PSUBSCRIBE", f"/{db}.celeryev/*"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("EVAL", "return 1", "0"),
        ("SCRIPT", "LOAD", "return 1"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("SHUTDOWN",),
    )
    return (
        *(Trial(command=command, allowed=True) for command in yes),
        *(Trial(command=command, allowed=False) for command in no),
    )
