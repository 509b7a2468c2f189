"""Messages to proxies besides orders: verdicts on leases and acknowledgements of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import redis

from proxy_worker.contracts.envelope import Sealer
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import DownMessage
from proxy_worker.contracts.names import STREAM_FIELD, down_stream

MAX_ENTRIES: Final = 2000
"""About what a down stream keeps. Everything in it is said again while it matters, so nothing is lost
with what a long absent proxy did not read."""


class DownLink:
    """Safe for threads."""

    def __init__(self, client: redis.Redis, sealer: Sealer) -> None:
        self._client = client
        self._sealer = sealer

    def send(self, proxy_id: ProxyId, messages: Iterable[DownMessage]) -> None:
        """Raises redis.RedisError when the broker is away."""
        self.send_all({proxy_id: messages})

    def send_all(self, messages: Mapping[ProxyId, Iterable[DownMessage]]) -> None:
        """As `send` to many, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            for proxy_id, its_own in messages.items():
                for message in its_own:
                    pipe.xadd(
                        down_stream(proxy_id),
                        {STREAM_FIELD: self._sealer.seal(message, to=proxy_id)},
                        maxlen=MAX_ENTRIES,
                        approximate=True,
                    )
            pipe.execute()
