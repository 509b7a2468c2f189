"""What the disks of a round's VMs lie on: its part of the simulated site, and what must be left of it at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import DATASTORES, DatastorePlan, LunPlan, SitePlan, VmPlan
from vmhaul_lab.proxies import ProxyPlan
from vmhaul_lab.site import LabSite

from tests.chaos.network import ADDRESSES
from tests.chaos.plan import LUN_STORAGE, NFS_STORAGE, VMS, Link, RoundPlan, Storage
from tests.support.storage_host import Sshd, running_sshd

MIB: Final = 1 << 20
DISK_BYTES: Final = (6 * MIB, 9 * MIB)
DATASTORE: Final = "under-test"
DIRECT_MODE: Final = dict.fromkeys(NFS_STORAGE, "direct-nfs") | dict.fromkeys(LUN_STORAGE, "direct-san")
_PLAIN: Final = "vmfs-plain"
_LUN: Final = DatastorePlan(name=DATASTORE, luns=(LunPlan(size_bytes=2 << 30),))
_NFS41: Final = DatastorePlan(name=DATASTORE, kind="NFS41", served=True)
_STORES: Final[dict[Storage, tuple[DatastorePlan, ...]]] = {
    Storage.HOSTS: DATASTORES,
    Storage.NFS3: (DatastorePlan(name=DATASTORE, kind="NFS", served=True),),
    Storage.NFS41: (_NFS41,),
    Storage.FILER: (
        DatastorePlan(name=DATASTORE, kind="NFS41", served=True, snapshots=True, export_own_path=True),
    ),
    Storage.SAN: (_LUN,),
    Storage.ARRAY: (_LUN,),
}


def site_plan(plan: RoundPlan) -> SitePlan:
    """The site of a round."""
    stores = _STORES[plan.storage]
    disks = tuple(
        DiskPlan(
            label=f"disk{n}",
            capacity_bytes=size,
            layout="raw",
            thin=n == 0,
            eager=n == 1,
            datastore=stores[0].name,
        )
        for n, size in enumerate(DISK_BYTES)
    )
    own = (DiskPlan(label="system", capacity_bytes=8 * MIB, layout="raw", datastore=_PLAIN),)
    return SitePlan(
        vms=tuple(VmPlan(name=name, disks=disks) for name in VMS),
        datastores=(*stores, DatastorePlan(name=_PLAIN)),
        proxies=tuple(ProxyPlan(name=name, disks=own) for name in plan.proxy_vms),
        array=plan.storage is Storage.ARRAY,
    )


class StorageSystem:
    """The disk array, or the file server over SSH, as it is registered. `start` once, `stop` once."""

    def __init__(self, plan: RoundPlan, site: LabSite, directory: Path) -> None:
        self._plan = plan
        self._site = site
        self._directory = directory
        self._open = ExitStack()
        self._sshd: Sshd | None = None

    def start(self) -> None:
        if self._plan.storage is not Storage.FILER:
            return
        commands = self._site.filer(DATASTORE).commands(self._directory / "filer-bin")
        self._sshd = self._open.enter_context(
            running_sshd(
                self._directory,
                listen=ADDRESSES[Link.SITE],
                more=f"SetEnv PATH={commands}:{os.environ['PATH']}\n",
            )
        )

    def stop(self) -> None:
        self._open.close()

    def registration(self) -> dict[str, Any] | None:
        """What POST /storage-systems is given."""
        if self._plan.storage is Storage.ARRAY:
            array = self._site.array
            pairs = zip(self._plan.proxy_names, self._plan.proxy_vms, strict=False)
            return {
                "name": "array1",
                "driver": "flasharray",
                "address": array.address,
                "identity": array.thumbprint,
                "secrets": {"api_token": array.api_token},
                "proxies": [{"proxy": proxy, "host": host} for proxy, host in pairs],
            }
        if self._sshd is not None:
            return {
                "name": "filer1",
                "driver": "snapshot-directories",
                "address": self._sshd.address,
                "identity": self._sshd.fingerprint,
                "secrets": {"private_key": self._sshd.private_key},
                "options": {
                    "kind": "btrfs",
                    "paths": [str(self._site.filer(DATASTORE).folder)],
                    "addresses": [self._site.nfs_host],
                },
                "proxies": [{"proxy": proxy} for proxy in self._plan.proxy_names],
            }
        return None

    def leftovers(self) -> Iterator[str]:
        """What the storage, and the machine, still hold of us."""
        if self._plan.storage is Storage.FILER:
            for name in self._site.filer(DATASTORE).names():
                yield f"the file server has snapshot {name}"
        if self._plan.storage is Storage.ARRAY:
            found = self._site.array.describe()
            yield from (f"the array has snapshot {name}" for name in found["snapshots"])
            yield from (f"the array has {name}" for name in found["files"])
            own = set(found["volumes"])
            yield from (
                f"the array shows {host} volume {volume}"
                for host, volume in found["connections"]
                if volume not in own or not volume.startswith(DATASTORE)
            )
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if " - nfs" in line:
                yield f"a mount is left: {line}"

    def at_rest(self) -> Iterator[str]:
        """Where somebody wrote on a LUN that is no disk's; what was written to disks is in their files after that."""
        if self._plan.storage in LUN_STORAGE:
            luns = self._site.luns(DATASTORE)
            luns.collect()
            yield from (f"written outside of all disks: {stray}" for stray in luns.stray_writes())
