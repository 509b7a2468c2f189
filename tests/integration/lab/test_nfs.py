"""Datastores of the site on a real NFS server."""

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from pyVmomi import vim
from vmhaul_lab.plan import DatastorePlan
from vmhaul_lab.site import LabSite

from tests.integration.lab.nfs_client import read_file
from tests.integration.lab.vcenter import lab_session, wait_until

pytestmark = pytest.mark.lab

MIB = 1 << 20


@pytest.mark.parametrize(("kind", "version"), [("NFS", 3), ("NFS41", 4)])
def test_the_server_shows_what_vcenter_has_at_any_time(
    tmp_path: Path, labvc_binary: Path, kind: str, version: int
) -> None:
    """Snapshots rename files under the server, which must not answer from what it remembers."""
    store = DatastorePlan(name="nfs1", kind=kind, served=True)
    with (
        LabSite.quick(tmp_path / "site", 1, binary=labvc_binary, datastores=[store]) as site,
        lab_session(site) as vc,
    ):

        def digest(name: str) -> str:
            found = read_file(site.nfs_host, "/vol/nfs1", f"/vm01/{name}", version=version)
            return hashlib.sha256(found).hexdigest()

        told = vc.all(vim.Datastore)[0].info.nas
        assert (told.remoteHost, told.remotePath, told.type) == (site.nfs_host, "/vol/nfs1", kind)
        disk = site.disk("vm01")
        for day in range(3):
            frozen = site.live_sha256(disk)
            assert digest("vm01-flat.vmdk") == frozen
            snapshot = vc.snapshot(vc.vm("vm01"))
            site.guest_write(disk, day * MIB, b"written behind the snapshot")
            assert digest("vm01-flat.vmdk") == frozen
            assert digest("vm01-000001-flat.vmdk") == site.live_sha256(disk) != frozen
            vc.wait(snapshot.RemoveSnapshot_Task(False))
        site.hardware.stop_nfs()
        with pytest.raises(AssertionError, match="failed"):
            digest("vm01-flat.vmdk")
        site.hardware.start_nfs()
        assert digest("vm01-flat.vmdk") == site.live_sha256(disk)


def test_a_killed_site_leaves_no_server(tmp_path: Path, labvc_binary: Path) -> None:
    stores = [
        DatastorePlan(name="nfs3", kind="NFS", served=True),
        DatastorePlan(name="nfs4", kind="NFS41", served=True),
    ]
    with LabSite.quick(tmp_path / "site", 1, binary=labvc_binary, datastores=stores) as site:
        assert read_file(site.nfs_host, "/vol/nfs3", "/vm01/vm01.vmx", version=3)
        (site.directory / "datastores" / "nfs4" / "text").write_text("on the other")
        assert read_file(site.nfs_host, "/vol/nfs4", "/text", version=4) == b"on the other"
        assert _joined(site.nfs_host)
        os.kill(site.pids[0], signal.SIGKILL)
        wait_until(lambda: not _joined(site.nfs_host))


def _joined(host: str) -> bool:
    """Whether this machine has the near end of the pair that leads to `host`."""
    lines = subprocess.run(
        ["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True
    ).stdout
    net = host.rpartition(".")[0]
    return any(word.startswith(f"{net}.") for word in lines.split())


def test_the_descriptor_says_what_a_direct_reader_needs(tmp_path: Path, labvc_binary: Path) -> None:
    with (
        LabSite.quick(tmp_path / "site", 1, binary=labvc_binary) as site,
        lab_session(site) as vc,
    ):
        vc.snapshot(vc.vm("vm01"))
        base = site.disk("vm01").base_file
        sectors = site.disk("vm01").capacity_bytes // 512
        text = (base.parent / "vm01.vmdk").read_text()
        assert f'RW {sectors} VMFS "vm01-flat.vmdk"' in text
        assert 'createType="vmfs"' in text
        assert "parentFileNameHint" not in text
        delta = (base.parent / "vm01-000001.vmdk").read_text()
        assert f'RW {sectors} SESPARSE "vm01-000001-sesparse.vmdk"' in delta
        assert 'createType="seSparse"' in delta
        assert 'parentFileNameHint="vm01.vmdk"' in delta
