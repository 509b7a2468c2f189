"""Addresses of names and hosts, looked up beside the caller and kept for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from backup_server.services.networks import Address, parse_address

Addresses = frozenset[Address]
NONE: Final[Addresses] = frozenset()
KEPT: Final = timedelta(minutes=10)
FAILED_KEPT: Final = timedelta(minutes=1)
_THREADS: Final = 2
"""For each that is asked."""


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: Addresses
    until: datetime


class Lookups:
    """What is not known yet is asked on threads of its own: a name server or a vCenter that does not answer holds
    nobody up. Safe for threads.
    """

    def __init__(self, clock: Callable[[], datetime], log: Any) -> None:
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._found: dict[str, _Found] = {}
        self._asked: dict[str, Future[Addresses]] = {}
        self._answered = 0
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def get(
        self, key: str, ask: Callable[[], Addresses], *, wait_s: float, of: str = ""
    ) -> Addresses | None:
        """What `ask` answers, from the cache or after `wait_s` at most; None: not known yet. `of`: who is asked; one
        that does not answer holds up nobody else's answers. What fails is asked again after a minute, with a line in
        the log, and until then as it was known before.
        """
        now = self._clock()
        with self._lock:
            found = self._found.get(key)
            if found is not None and now < found.until:
                return found.addresses
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = self._pool_of(of).submit(self._ask, key, ask)
        if wait_s > 0:
            try:
                return asked.result(wait_s)
            except TooLateError:
                pass
        # What was known before is better than nothing while it is asked again.
        return None if found is None else found.addresses

    @property
    def answered(self) -> int:
        """Raised by each answer: who was told that something is not known yet asks again when this changed."""
        return self._answered

    def _ask(self, key: str, ask: Callable[[], Addresses]) -> Addresses:
        before = self._found.get(key)
        addresses, kept = NONE if before is None else before.addresses, FAILED_KEPT
        try:
            addresses = ask()
            kept = KEPT if addresses else FAILED_KEPT
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being known
            self._log.warning("lookup.failed", of=key, reason=f"{type(error).__name__}: {error}")
        with self._lock:
            self._found[key] = _Found(addresses, self._clock() + kept)
            self._asked.pop(key, None)
            self._answered += 1
        return addresses

    def _pool_of(self, of: str) -> ThreadPoolExecutor:
        """With the lock held."""
        if of not in self._pools:
            self._pools[of] = ThreadPoolExecutor(_THREADS, thread_name_prefix="vmhaul-lookup")
        return self._pools[of]

    def close(self) -> None:
        with self._lock:
            pools = list(self._pools.values())
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def addresses_of_name(name: str) -> Addresses:
    """Of a host name or an address; OSError where nobody knows it."""
    try:
        return frozenset({parse_address(name)})
    except ValueError:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    return frozenset(parse_address(str(one[4][0])) for one in found)
