"""Says regularly that this worker lives and what it runs: that renews the leases of its tasks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import psutil

from proxy_worker.clocks import uptime_s
from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import HeartbeatReport, RunningTask
from proxy_worker.link import UpLink
from transports.base import TransportMode

_REMEMBERED: Final = 256


class Heartbeat:
    """A thread. `changed()` sends the next report at once."""

    def __init__(
        self,
        link: UpLink,
        *,
        proxy_id: ProxyId,
        boot_id: str,
        version: str,
        max_tasks: int,
        modes: tuple[TransportMode, ...],
        no_directories: str = "",
        running: Callable[[], list[RunningTask]],
        every_s: float,
        clock: Clock,
        after_each: Callable[[], None],
        log: Any,
    ) -> None:
        """`running` names what runs or waits to be heard of; `after_each` is called on this thread. `no_directories`: as
        in the report.
        """
        self._link = link
        self._proxy_id = proxy_id
        self._boot_id = boot_id
        self._version = version
        self._max_tasks = max_tasks
        self._modes = modes
        self._no_directories = no_directories
        self._running = running
        self._every_s = every_s
        self._clock = clock
        self._after_each = after_each
        self._log = log
        self._sequence = 0
        self._sent_at_s: OrderedDict[int, float] = OrderedDict()
        self._stopping = False
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmhaul-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def changed(self) -> None:
        self._wake.set()

    def sent_at_s(self, sequence: int) -> float | None:
        """When that heartbeat began to be made, by `clocks.uptime_s`; None: long ago, or never."""
        return self._sent_at_s.get(sequence)

    def announce_stop(self) -> None:
        """From now on say that no more tasks are wanted."""
        self._stopping = True
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Send a last report and end."""
        self._stopping = True
        self._end.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        psutil.cpu_percent()  # the first answer means nothing, it only starts the measuring
        failures = 0
        while True:
            last = self._end.is_set()
            self._wake.clear()
            try:
                self._link.send(self._report())
                self._after_each()
                failures = 0
            except Exception as error:  # noqa: BLE001 - without heartbeats all leases are lost
                failures += 1
                if failures == 1:
                    self._log.warning(
                        EventName.BROKER_AWAY, text="a heartbeat was not sent", error=str(error)
                    )
            if last:
                return
            self._wake.wait(self._every_s)

    def _report(self) -> HeartbeatReport:
        self._sequence += 1
        self._sent_at_s[self._sequence] = uptime_s()
        while len(self._sent_at_s) > _REMEMBERED:
            self._sent_at_s.popitem(last=False)
        return HeartbeatReport(
            proxy_id=self._proxy_id,
            boot_id=self._boot_id,
            sequence=self._sequence,
            version=self._version,
            clock_s=self._clock(),
            slots=self._max_tasks,
            running=tuple(self._running()),
            stopping=self._stopping,
            modes=self._modes,
            cpu_share=psutil.cpu_percent() / 100,
            free_memory_bytes=psutil.virtual_memory().available,
            takes_leases_held=True,
            no_directories=self._no_directories,
        )
