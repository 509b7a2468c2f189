"""Read latency of datastores, asked of a vCenter as a real one answers."""

from __future__ import annotations

import pytest
from vmhaul_lab.site import LabSite

from transports.vsphere.api import Vsphere
from transports.vsphere.model import DatastoreLatency

pytestmark = pytest.mark.lab


def names(vsphere: Vsphere) -> list[str]:
    return sorted({store.name for store in vsphere.inventory().datastores})


def test_each_datastore_has_its_own_figure(vsphere: Vsphere, site: LabSite) -> None:
    first, second = names(vsphere)[:2]
    site.control.latency(first, 41)
    found = vsphere.datastore_latencies([first, second, "nowhere"])
    assert found[first] == DatastoreLatency(read_ms=41.0)
    assert found[second] == DatastoreLatency(read_ms=1.0)
    assert found["nowhere"].read_ms is None
    assert "no such datastore" in found["nowhere"].problem
    site.control.latency(first, 3)
    assert vsphere.datastore_latencies([first]) == {first: DatastoreLatency(read_ms=3.0)}


def test_the_slowest_host_that_reads_counts(vsphere: Vsphere, site: LabSite) -> None:
    first = names(vsphere)[0]
    inventory = vsphere.inventory()
    hosts = [host.name for host in inventory.hosts if first in host.datastores]
    assert len(hosts) > 1
    site.control.latency(first, 10, reads_per_s=0)
    site.control.latency(first, 10, reads_per_s=90, host=hosts[0])
    site.control.latency(first, 110, reads_per_s=10, host=hosts[1])
    assert vsphere.datastore_latencies([first])[first].read_ms == pytest.approx(110.0)
    site.control.latency(first, 110, reads_per_s=4, host=hosts[1])
    assert vsphere.datastore_latencies([first])[first].read_ms == pytest.approx(10.0)
    # Where nobody reads enough to be counted, the slowest is told.
    site.control.latency(first, 10, reads_per_s=0, host=hosts[0])
    site.control.latency(first, 110, reads_per_s=0, host=hosts[1])
    assert vsphere.datastore_latencies([first])[first].read_ms == pytest.approx(110.0)


def test_what_is_not_measured_or_too_old_is_not_known(vsphere: Vsphere, site: LabSite) -> None:
    first, second = names(vsphere)[:2]
    site.control.latency(first, 41, unmeasured=True)
    site.control.latency(second, 41, age_s=300)
    for latency in vsphere.datastore_latencies([first, second]).values():
        assert latency.read_ms is None
        assert "measure no read latency" in latency.problem


def test_what_seldom_changes_is_asked_once(vsphere: Vsphere, site: LabSite) -> None:
    first = names(vsphere)[0]
    vsphere.datastore_latencies([first])
    site.control.reset_stats()
    vsphere.datastore_latencies([first])
    calls = site.control.stats()["soap_calls"]
    assert calls["QueryPerf"] == 1
    assert "QueryPerfProviderSummary" not in calls
    assert calls.get("RetrievePropertiesEx", 0) <= 1  # whether the hosts are there
