"""Looks around on the proxy's machine: which modes it can offer and which datastores it reaches in them.

At the start, every four hours and when the server asks. Probing a datastore may take its time (a dead NFS
server), so all this runs on a thread of its own and what was found last stays true until then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

import psutil

from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    Connection,
    ConnectionsReport,
    DatastoreProbe,
    DatastoresAnswer,
    DatastoresRequest,
    MissingMode,
    UpReport,
)
from transports import registry
from transports.machine import own_vm_uuid
from transports.reached import Reached
from transports.registry import ModeOptions

EVERY_S: Final = 4 * 3600.0
_AGAIN_S: Final = 30.0
"""After a failure: server or broker may be back soon."""


class Discovery:
    """A thread. `now()` makes it look at once."""

    def __init__(
        self,
        *,
        proxy_id: ProxyId,
        options: ModeOptions,
        datastores: Callable[[DatastoresRequest], DatastoresAnswer],
        send: Callable[[UpReport], None],
        log: Any,
    ) -> None:
        self._proxy_id = proxy_id
        self._options = options
        self._datastores = datastores
        self._send = send
        self._log = log
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmhaul-discovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def now(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        self._end.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        failures = 0
        while not self._end.is_set():
            self._wake.clear()
            try:
                self._send(self.look())
                failures = 0
            except Exception as error:  # noqa: BLE001 - the worker works without it, in fewer modes
                failures += 1
                if failures == 1:
                    self._log.warning("discovery.failed", text=str(error))
            self._wake.wait(_AGAIN_S if failures else EVERY_S)

    def look(self) -> ConnectionsReport:
        """Raises what the server's client raises when the server names no datastores."""
        answer = self._datastores(DatastoresRequest(proxy_id=self._proxy_id))
        connections = [found for probe in answer.probes for found in self._probe(probe)]
        missing = registry.offered_modes(self._options)
        return ConnectionsReport(
            proxy_id=self._proxy_id,
            vm_uuid=own_vm_uuid(self._options.machine),
            addresses=own_addresses(),
            connections=tuple(connections),
            missing=tuple(
                MissingMode(mode=mode, reason=reason) for mode, reason in missing.items() if reason
            ),
        )

    def _probe(self, probe: DatastoreProbe) -> list[Connection]:
        found = []
        for mode, reach in registry.probes().items():
            try:
                reached = reach(self._options, probe.storage)
            except Exception as error:  # noqa: BLE001 - one odd datastore hides no other
                self._log.warning("discovery.probe-failed", datastore=probe.datastore, text=str(error))
                reached = Reached(readable=False, writable=False, reason=f"looking failed: {error}")
            if reached is not None:
                found.append(
                    Connection(
                        datastore=probe.datastore,
                        mode=mode,
                        readable=reached.readable,
                        writable=reached.writable,
                        hops=reached.hops,
                        reason=reached.reason,
                        portals=reached.portals,
                    )
                )
        return found


def own_addresses() -> tuple[str, ...]:
    """Addresses of this machine with prefix lengths: "192.0.2.7/24", "2001:db8::7/64". Those of loopback and of one
    link are left out.
    """
    told = (one for addresses in psutil.net_if_addrs().values() for one in addresses)
    found = {
        _with_prefix(one.address, one.netmask) for one in told if one.family.name in _IP and one.netmask
    }
    return tuple(sorted(found - {""}))


_IP: Final = frozenset({"AF_INET", "AF_INET6"})


def _with_prefix(text: str, netmask: str) -> str:
    """Empty for one that no other machine reaches."""
    try:
        address, mask = ip_address(text.partition("%")[0]), ip_address(netmask)
    except ValueError:
        return ""
    if address.is_loopback or address.is_link_local:
        return ""
    return f"{address}/{int(mask).bit_count()}"
