from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from proxy_worker import discovery
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    DatastoreProbe,
    DatastoresAnswer,
    DatastoresRequest,
)
from proxy_worker.discovery import Discovery
from tests.support.sysfs import SysTree
from transports import registry
from transports.base import DatastoreRef, LunExtent, TransportMode
from transports.registry import ModeOptions

WAIT_S = 30
UUID = "420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        self.warnings.append(event)


class Site:
    """The server as the proxy sees it."""

    def __init__(self, tree: SysTree) -> None:
        self.tree = tree
        self.stores: list[DatastoreProbe] = []
        self.failures = 0
        self.reports: Queue[Any] = Queue()
        self.log = Log()
        self.discovery = Discovery(
            proxy_id=ProxyId("p1"),
            options=ModeOptions(machine=tree.machine),
            datastores=self.datastores,
            send=self.reports.put,
            log=self.log,
        )

    def datastores(self, question: DatastoresRequest) -> DatastoresAnswer:
        assert question.proxy_id == "p1"
        if self.failures:
            self.failures -= 1
            raise OSError("the server is away")
        return DatastoresAnswer(probes=tuple(self.stores))

    def report(self) -> ConnectionsReport:
        found = self.reports.get(timeout=WAIT_S)
        assert isinstance(found, ConnectionsReport)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(SysTree(tmp_path))
    yield site
    site.discovery.stop(WAIT_S)


def store(name: str) -> DatastoreProbe:
    return DatastoreProbe(
        datastore=f"vc/{name}",
        storage=DatastoreRef(
            name=name,
            kind="VMFS",
            vmfs_uuid="5f1b2c3d-00000001-0002-0000000000ff",
            extents=(LunExtent(lun="naa.624a93700000000000000001", partition=1),),
        ),
    )


def test_it_looks_every_four_hours_without_being_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert discovery.EVERY_S == 4 * 60 * 60
    monkeypatch.setattr(discovery, "EVERY_S", 0.01)
    site.discovery.start()
    for _ in range(3):
        assert site.report().proxy_id == "p1"


def test_it_looks_at_once_when_it_is_asked(site: Site) -> None:
    site.discovery.start()
    assert site.report().connections == ()
    site.stores.append(store("ds1"))
    site.discovery.now()
    [found] = site.report().connections
    assert (found.datastore, found.mode) == ("vc/ds1", TransportMode.DIRECT_SAN)
    assert (found.readable, found.writable) == (False, False)
    assert "naa.624a93700000000000000001" in found.reason


def test_a_server_that_is_away_is_asked_again_soon_and_told_of_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_AGAIN_S", 0.01)
    site.failures = 3
    site.discovery.start()
    site.report()
    assert site.log.warnings == ["discovery.failed"]


def test_one_datastore_that_cannot_be_looked_at_hides_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = registry.probes()[TransportMode.DIRECT_SAN]

    def odd(options: ModeOptions, storage: DatastoreRef) -> Any:
        if storage.name == "odd":
            raise ValueError("what is this")
        return sound(options, storage)

    monkeypatch.setattr(registry, "probes", lambda: {TransportMode.DIRECT_SAN: odd})
    site.stores = [store("odd"), store("ds1")]
    first, second = site.discovery.look().connections
    assert (first.datastore, first.readable) == ("vc/odd", False)
    assert "what is this" in first.reason
    assert "naa." in second.reason
    assert site.log.warnings == ["discovery.probe-failed"]


def test_own_addresses_of_both_versions_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(family: socket.AddressFamily, address: str, netmask: str | None) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address, netmask=netmask)

    four, six, wire = socket.AF_INET, socket.AF_INET6, socket.AF_PACKET
    half = "ffff:ffff:ffff:ffff::"
    cards = {
        "lo": [card(four, "127.0.0.1", "255.0.0.0"), card(six, "::1", "ffff:" * 7 + "ffff")],
        "eth0": [
            card(four, "192.0.2.7", "255.255.255.0"),
            card(six, "2001:db8::7", half),
            card(six, "fe80::1%eth0", half),
            card(wire, "02:fc:00:00:00:01", None),
        ],
        "eth1": [card(four, "198.51.100.7", None), card(six, "nonsense", half)],
    }
    monkeypatch.setattr("proxy_worker.discovery.psutil.net_if_addrs", lambda: cards)
    assert discovery.own_addresses() == ("192.0.2.7/24", "2001:db8::7/64")
