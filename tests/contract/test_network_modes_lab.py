"""The NFC client against the suites, on the simulated site's hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary  # noqa: F401 (a fixture)

from tests.support.disks import disk_ref
from transports.base import DiskReader, DiskWriter, TransportMode
from transports.network import NetworkOptions, open_reader, open_writer
from transports.testing.contract import DiskReaderContract, DiskWriterContract
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login, Secret

pytestmark = pytest.mark.lab
MIB = 1 << 20
OPTIONS = NetworkOptions(
    io_timeout_s=15, requests_in_flight=4, request_bytes=256 << 10, write_bytes=512 << 10
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, labvc_binary: Path) -> Iterator[LabSite]:  # noqa: F811
    disks = (
        DiskPlan(label="data", capacity_bytes=3 * MIB + 512, layout="raw"),
        DiskPlan(label="target", capacity_bytes=2 * MIB, layout="empty"),
    )
    plans = (VmPlan(name="vm01", disks=disks, power="off"),)
    with LabSite.quick(tmp_path_factory.mktemp("lab") / "site", plans, binary=labvc_binary) as site:
        yield site


@pytest.fixture(scope="module")
def vsphere(site: LabSite) -> Iterator[Vsphere]:
    client = connect(
        Endpoint(
            host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
        ),
        Login(username=site.user, password=Secret(site.password)),
        clock=time.time,
    )
    try:
        yield client
    finally:
        client.close()


class TestNbdReader(DiskReaderContract):
    mode = TransportMode.NBD

    @pytest.fixture
    def image(self, site: LabSite) -> bytes:
        return site.disk("vm01", 1).live_file.read_bytes()

    @pytest.fixture
    def reader(self, vsphere: Vsphere) -> Iterator[DiskReader]:
        vm = vsphere.inventory().vms[0]
        reader = open_reader(vsphere, disk_ref(vm, vm.disks[0]), self.mode, OPTIONS)
        try:
            yield reader
        finally:
            reader.close()


class TestNbdsslReader(TestNbdReader):
    mode = TransportMode.NBDSSL


class TestNbdWriter(DiskWriterContract):
    mode = TransportMode.NBD

    @pytest.fixture
    def size_bytes(self) -> int:
        return 2 * MIB

    @pytest.fixture
    def writer(self, vsphere: Vsphere, site: LabSite) -> Iterator[DiskWriter]:
        with site.disk("vm01", 2).live_file.open("r+b") as file:
            file.truncate(0)
            file.truncate(2 * MIB)
        vm = vsphere.inventory().vms[0]
        writer = open_writer(vsphere, disk_ref(vm, vm.disks[1]), self.mode, OPTIONS)
        try:
            yield writer
        finally:
            writer.close()

    @pytest.fixture
    def content(self, site: LabSite) -> Callable[[], bytes]:
        return site.disk("vm01", 2).live_file.read_bytes


class TestNbdsslWriter(TestNbdWriter):
    mode = TransportMode.NBDSSL
