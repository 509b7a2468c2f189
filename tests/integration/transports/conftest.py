from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan, quick_vms
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary

from tests.support.sites import plain_simulator
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login, Secret

__all__ = ["labvc_binary"]

MIB = 1 << 20
PAGE_BYTES = 4 * MIB


def site_plans() -> tuple[VmPlan, ...]:
    first, second = quick_vms(2)
    return (
        replace(first, folder="Prod", pool="Gold", tags=("Backup:gold", "Owner:db")),
        replace(second, tags=("Backup:silver",)),
        VmPlan(
            name="odd",
            power="off",
            disks=(
                DiskPlan(label="first", capacity_bytes=2 * MIB, layout="raw"),
                DiskPlan(label="sata", capacity_bytes=2 * MIB, layout="raw", controller="sata"),
                DiskPlan(label="nvme", capacity_bytes=3 * MIB, layout="raw", controller="nvme"),
                DiskPlan(label="thick", capacity_bytes=4 * MIB, layout="raw", thin=False),
                DiskPlan(
                    label="alone", capacity_bytes=MIB, layout="raw", mode="independent_persistent"
                ),
            ),
        ),
    )


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    """VMs with tags, in a folder and a pool; their changes are told in pages of PAGE_BYTES."""
    users = [
        {
            "name": "weak@vsphere.local",
            "password": "weak-password",
            "denied": ["VirtualMachine.State.CreateSnapshot"],
        }
    ]
    with LabSite.quick(
        tmp_path / "site", site_plans(), binary=labvc_binary, cbt_page_bytes=PAGE_BYTES, users=users
    ) as site:
        yield site


@pytest.fixture
def endpoint(site: LabSite) -> Endpoint:
    return Endpoint(
        host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
    )


@pytest.fixture
def login(site: LabSite) -> Login:
    return Login(username=site.user, password=Secret(site.password))


@pytest.fixture
def vsphere(endpoint: Endpoint, login: Login) -> Iterator[Vsphere]:
    client = connect(endpoint, login, clock=time.time)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="session")
def plain_endpoint(labvc_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """The simulator of Debian's govmomi alone, without the lab's layer."""
    with plain_simulator(labvc_binary, tmp_path_factory.mktemp("plain")) as endpoint:
        yield endpoint


@pytest.fixture
def plain(plain_endpoint: Endpoint) -> Iterator[Vsphere]:
    client = connect(plain_endpoint, Login(username="user", password=Secret("pass")), clock=time.time)
    try:
        yield client
    finally:
        client.close()
