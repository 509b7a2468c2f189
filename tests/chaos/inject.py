"""Faults, made and healed again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.chaos.deeds import Deeds
from tests.chaos.parts import Redis, mover_pids, pids_of
from tests.chaos.plan import Fault, FaultKind, Link
from tests.chaos.stand import Stand
from tests.chaos.storage import DATASTORE


class Injector:
    """Makes the faults of the round's plan at their times, each on a thread of its own: they overlap."""

    def __init__(self, stand: Stand, say: Callable[[str], None]) -> None:
        self._stand = stand
        self._say = say
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._deeds = Deeds(stand, say)
        self._nfs = threading.Lock()
        self._zones = {name: threading.Lock() for name in stand.plan.proxy_vms}
        self.errors: list[str] = []
        """What the injector itself could not do."""

    def start(self) -> None:
        for fault in self._stand.plan.faults:
            thread = threading.Thread(target=self._one, args=(fault,), name=f"fault {fault}")
            self._threads.append(thread)
            thread.start()

    def heal(self) -> None:
        """Wait for the last fault to end, and put everything right."""
        for thread in self._threads:
            thread.join()
        for name, part in self._stand.parts.items():
            part.thaw()
            part.start()
            if part.clock is not None:
                part.clock.right()
            if name in self._stand.cables:
                for link in Link:
                    self._stand.cables[name].plug(link)
        self._filler().unlink(missing_ok=True)
        self._stand.site.control.clear_faults()

    def _one(self, fault: Fault) -> None:
        self._over.wait(fault.at_s)
        self._say(str(fault))
        try:
            self._make(fault)
        except Exception as error:  # noqa: BLE001 - told by the round
            self.errors.append(f"{fault}: {error!r}")

    def _make(self, fault: Fault) -> None:
        make = {
            FaultKind.KILL: self._kill,
            FaultKind.STOP: self._stop,
            FaultKind.MOVER_KILL: self._kill_mover,
            FaultKind.MOVER_STOP: self._stop_mover,
            FaultKind.CUT: self._cut,
            FaultKind.CLOCK: self._clock,
            FaultKind.REDIS_LOST: self._lose_redis,
            FaultKind.REDIS_FLUSH: self._flush_redis,
            FaultKind.DISK_FULL: self._fill,
            FaultKind.VCENTER_FORGETS: lambda _: self._stand.site.control.drop_sessions(),
            FaultKind.AGENT_KILL: self._kill_agent,
            FaultKind.SLOW_VCENTER: lambda fault: self._site_fault(
                "soap-delay", count=2, method=fault.link, delay_s=fault.lasts_s
            ),
            FaultKind.REFUSED_CALL: lambda fault: self._site_fault(
                "soap-fault", method=fault.link, fault="SystemError", as_task_error=True
            ),
            FaultKind.SNAPSHOT_STUCK: lambda _: self._site_fault("snapshot-stuck"),
            FaultKind.POWER_LOSS: lambda fault: self._stand.site.control.power_loss(fault.part),
            FaultKind.NFC_CUT: lambda _: self._site_fault("nfc-cut", after_bytes=1 << 20),
            FaultKind.ISOLATED: self._isolate,
            FaultKind.NFS_GONE: self._stop_nfs,
            FaultKind.UNZONED: self._unzone,
            FaultKind.ARRAY_REFUSES: lambda fault: self._stand.site.array.fault(fault.link, status=503),
            **self._deeds.kinds(),
        }
        make[fault.kind](fault)

    def _site_fault(self, kind: str, *, count: int = 1, **how: Any) -> None:
        self._stand.site.control.fault(kind, count, **how)

    def _kill_agent(self, fault: Fault) -> None:
        del fault
        for pid in pids_of("proxy_worker.agent"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kill(self, fault: Fault) -> None:
        part = self._stand.parts[fault.part]
        part.kill()
        time.sleep(fault.lasts_s)
        part.start()

    def _stop(self, fault: Fault) -> None:
        part = self._stand.parts[fault.part]
        part.freeze()
        time.sleep(fault.lasts_s)
        part.thaw()

    @staticmethod
    def _await_mover() -> int | None:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            if pids := mover_pids():
                return pids[-1]
            time.sleep(0.02)
        return None

    def _kill_mover(self, fault: Fault) -> None:
        del fault
        pid = self._await_mover()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stop_mover(self, fault: Fault) -> None:
        pid = self._await_mover()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(fault.lasts_s)
                os.kill(pid, signal.SIGCONT)

    def _cut(self, fault: Fault) -> None:
        cables = self._stand.cables[fault.part]
        cables.pull(Link(fault.link))
        time.sleep(fault.lasts_s)
        cables.plug(Link(fault.link))

    def _isolate(self, fault: Fault) -> None:
        cables = self._stand.cables[fault.part]
        for link in Link:
            cables.pull(link)
        time.sleep(fault.lasts_s)
        for link in Link:
            cables.plug(link)

    def _stop_nfs(self, fault: Fault) -> None:
        with self._nfs:
            self._stand.site.hardware.stop_nfs()
            time.sleep(fault.lasts_s)
            self._stand.site.hardware.start_nfs()

    def _unzone(self, fault: Fault) -> None:
        luns = self._stand.site.luns(DATASTORE)
        with self._zones[fault.part]:
            luns.unzone(fault.part)
            time.sleep(fault.lasts_s)
            luns.zone(fault.part)

    def _clock(self, fault: Fault) -> None:
        clock = self._stand.parts[fault.part].clock
        assert clock is not None
        if fault.shift_s:
            clock.shift(fault.shift_s)
        else:
            clock.stand_still()
        time.sleep(fault.lasts_s)
        clock.right()

    def _lose_redis(self, fault: Fault) -> None:
        part = self._stand.parts["redis"]
        assert isinstance(part, Redis)
        part.kill()
        part.lose_files()
        time.sleep(fault.lasts_s)
        part.start()

    def _flush_redis(self, fault: Fault) -> None:
        del fault
        with suppress(redis.RedisError), redis.Redis.from_url(self._stand.redis_url) as client:
            client.flushall()

    def _filler(self) -> Path:
        return self._stand.repositories / ".filler"

    def _fill(self, fault: Fault) -> None:
        filler = self._filler()
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            chunk = bytes(1 << 20)
            while True:
                file.write(chunk)
        time.sleep(fault.lasts_s)
        filler.unlink(missing_ok=True)
