"""What a broker lacks that keeps a hostile proxy, or a stranger, from doing harm. The embedded one has it all; another
Redis is its administrator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from backup_server.broker import LEAST_MEMORY_BYTES, MAX_VALUE_BYTES

MOST_VALUE_BYTES: Final = 16 << 20
FULL_SHARE: Final = 0.8
_WORDS: Final = 2


def hardness(client: Any) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do. redis.RedisError when the account may not ask."""
    settings: Any = client.config_get("proto-max-bulk-len", "maxmemory", "maxmemory-policy")
    if int(settings.get("proto-max-bulk-len", 0)) > MOST_VALUE_BYTES:
        yield (
            "the broker takes single values of any length, so a hostile proxy could fill its memory",
            f"set proto-max-bulk-len {MAX_VALUE_BYTES} in its configuration",
        )
    yield from _memory(client, int(settings.get("maxmemory", 0)), settings.get("maxmemory-policy"))
    if default_is_open(client.acl_list()):
        yield (
            "whoever reaches the broker may use it without a password: its default user is open",
            "set `user default off` or requirepass in the broker's configuration, and name a user of its own in --broker",
        )


def _memory(client: Any, most_bytes: int, policy: Any) -> Iterator[tuple[str, str]]:
    if not most_bytes:
        yield (
            "the broker has no limit of memory: a hostile proxy could fill the machine until something is killed",
            f"set maxmemory ({LEAST_MEMORY_BYTES >> 20}mb at least) and maxmemory-policy noeviction in its configuration",
        )
        return
    if policy != "noeviction":
        yield (
            f"the broker forgets keys when its memory is full (maxmemory-policy {policy}): tasks and leases among them",
            "set maxmemory-policy noeviction in its configuration",
        )
    used_bytes = int(client.info("memory")["used_memory"])
    if used_bytes > most_bytes * FULL_SHARE:
        yield (
            f"the broker holds {used_bytes >> 20} of {most_bytes >> 20} MiB: above that nothing new is queued",
            "give it more (broker_memory_bytes, or maxmemory elsewhere), and see `vmhaul proxy list` for one that floods it",
        )


def default_is_open(users: Any) -> bool:
    """`users`: lines of ACL LIST."""
    for line in users:
        words = (line.decode() if isinstance(line, bytes) else str(line)).split()
        if len(words) > _WORDS and words[1] == "default":
            # One that may give no command at all harms nobody.
            allowed = any(word.startswith("+") for word in words)
            return "on" in words and "nopass" in words and allowed
    return False
