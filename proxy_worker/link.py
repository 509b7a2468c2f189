"""The proxy's own two streams on the broker: reports up, verdicts and acknowledgements down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy_worker.contracts.codec import MessageError
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    DownMessage,
    LeaseAnswer,
    LeasesHeld,
    RateOrder,
    RescanOrder,
    ResultAck,
    UpReport,
)
from proxy_worker.contracts.names import (
    STREAM_FIELD,
    UP_ENTRIES,
    down_stream,
    redis_client_url,
    up_stream,
)

_BLOCK_MS: Final = 1000
_LONGEST_PAUSE_S: Final = 5.0
_EXPECTED: Final = frozenset({LeaseAnswer, LeasesHeld, ResultAck, RescanOrder, RateOrder})


def broker_client(broker_url: str) -> redis.Redis:
    client: redis.Redis = redis.Redis.from_url(
        redis_client_url(broker_url),
        decode_responses=True,
        protocol=2,  # XREAD answers pairs of name and entries
        socket_timeout=15,
        socket_connect_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 0),
    )
    return client


class UpLink:
    """Sends reports. Safe for threads."""

    def __init__(self, client: redis.Redis, proxy_id: ProxyId, sealer: Sealer) -> None:
        self._client = client
        self._stream = up_stream(proxy_id)
        self._sealer = sealer

    def send(self, report: UpReport) -> None:
        """Raises redis.RedisError when the broker did not take it."""
        self._client.xadd(
            self._stream,
            {STREAM_FIELD: self._sealer.seal(report, to=SERVER)},
            maxlen=UP_ENTRIES,
            approximate=True,
        )


class DownListener:
    """A thread that reads the down stream for as long as the worker lives."""

    def __init__(
        self,
        client: redis.Redis,
        proxy_id: ProxyId,
        opener: Opener,
        *,
        on_message: Callable[[DownMessage], None],
        on_connect: Callable[[], None],
        log: Any,
    ) -> None:
        """`on_connect` is called whenever the broker can be read again."""
        self._client = client
        self._stream = down_stream(proxy_id)
        self._opener = opener
        self._on_message = on_message
        self._on_connect = on_connect
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmhaul-down", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        last_id: str | None = None
        failures = 0
        while not self._stop.is_set():
            try:
                if last_id is None:
                    # What was said before is said again while it matters.
                    last_id = self._newest()
                    self._on_connect()
                last_id = self._read(last_id)
                failures = 0
            except Exception as error:  # noqa: BLE001 - the worker must go on listening
                last_id = None
                failures += 1
                if failures == 1:
                    self._log.warning(
                        EventName.BROKER_AWAY, text="the broker does not answer", error=str(error)
                    )
                self._stop.wait(min(_LONGEST_PAUSE_S, 0.2 * 2 ** min(failures, 10)))

    def _newest(self) -> str:
        newest: Any = self._client.xrevrange(self._stream, count=1)
        return str(newest[0][0]) if newest else "0-0"

    def _read(self, last_id: str) -> str:
        found: Any = self._client.xread({self._stream: last_id}, count=200, block=_BLOCK_MS)
        for entry_id, fields in found[0][1] if found else ():
            self._handle((fields or {}).get(STREAM_FIELD, ""))
            last_id = str(entry_id)
        return last_id

    def _handle(self, text: str) -> None:
        try:
            message = self._opener.open(text, expect=_EXPECTED).message
        except MessageError as error:
            self._log.warning(EventName.MESSAGE_REFUSED, text=str(error))
            return
        if isinstance(message, DownMessage):
            self._on_message(message)
