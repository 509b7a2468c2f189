"""What each broker user may do, as access rules of Redis 7: values without a connection.

A proxy's user reaches its own queue, its own two streams and its own mailbox, each key by its name. Of what all workers share it may
read the table that routes answers, add to the tables of mailboxes, and add answers; it publishes events and hears control messages, but
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


SHARED_TABLES: Final = (f"{_ROUTES}.celery.pidbox", f"{_ROUTES}_permanent.celery.pidbox")
"""Sets into which every worker writes where its mailbox is. Control messages are published and do not need them."""
REPLIES: Final = "*.reply.celery.pidbox"
"""Lists in which workers put what Flower asked them."""
_UNACKED: Final = ("unacked", "unacked_index", "unacked_mutex")


def own_keys(proxy_id: str, name: str) -> tuple[tuple[str, str], ...]:
    """Every key that a proxy alone may write, with the command that counts what is in it. `name`: with which it
    joined.
    """
    own = ProxyId(proxy_id)
    queue = task_queue(own)
    return (
        (queue, "LLEN"),
        *zip((f"{queue}.{one}" for one in _UNACKED), ("HLEN", "ZCARD", "STRLEN"), strict=True),
        (f"{_ROUTES}.{queue}", "SCARD"),
        (f"{_ROUTES}_permanent.{queue}", "SCARD"),
        (f"{worker_host(name)}.celery.pidbox", "LLEN"),
        (up_stream(own), "XLEN"),
    )


def proxy_rules(proxy_id: str, name: str, db: int, *, replies: bool = True) -> tuple[str, ...]:
    """Rules of a proxy's user, without its password. `db`: of the broker's URL. `replies`: whether it may answer
    Flower.
    """
    own = ProxyId(proxy_id)
    return (
        *("-@all", *_CONNECTION, *_TRANSACTIONS, *_QUEUES, "+xadd", "+xread", "+xrevrange", "+publish"),
        # its own: each by its name, so that what it may fill can be counted
        *(f"~{key}" for key, _ in own_keys(proxy_id, name) if key != up_stream(own)),
        f"%W~{up_stream(own)}",
        f"%R~{down_stream(own)}",
        # everybody's
        f"%R~{_ROUTES}.reply.celery.pidbox",
        f"(+sadd +srem {' '.join(f'%W~{key}' for key in SHARED_TABLES)})",
        *((f"(+lpush %W~{REPLIES})",) if replies else ()),
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
        ("SET", f"{task_queue(own)}.unacked_more", "x"),
        ("SET", REPLIES.replace("*", "x"), "x"),
        ("DEL", SHARED_TABLES[0]),
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
