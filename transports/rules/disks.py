"""Rules about the disk alone: no proxy can help where one of these refuses."""

from __future__ import annotations

from typing import Final

from transports.base import TransportMode
from transports.rules.facts import DiskFacts
from transports.rules.rule import DiskRule, Use

SNAPSHOT: Final = frozenset({TransportMode.STORAGE_SNAPSHOT})
SAN: Final = frozenset({TransportMode.DIRECT_SAN})
NFS: Final = frozenset({TransportMode.DIRECT_NFS})
HOTADD: Final = frozenset({TransportMode.HOTADD})
NBD: Final = frozenset({TransportMode.NBD})
NETWORK: Final = frozenset({TransportMode.NBDSSL, TransportMode.NBD})
ALL: Final = frozenset(TransportMode)

HOTADD_LARGEST_BYTES: Final = 62 << 40
_NFS_KINDS: Final = ("NFS", "NFS41")
_SATA_SINCE: Final = 6


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 40):.2f} TiB"


def _in_no_snapshot(disk: DiskFacts) -> str:
    return "" if disk.write else disk.obstacle


def _snapshot_gone(disk: DiskFacts) -> str:
    gone = disk.storage_snapshot is not None and disk.storage_snapshot.vm_snapshot_gone
    return "the VM snapshot was removed: only the storage snapshot holds its state" if gone else ""


# -- storage snapshots


def _not_asked(disk: DiskFacts) -> str:
    return "" if disk.storage_snapshot is not None else "the job does not ask for storage snapshots"


def _no_system(disk: DiskFacts) -> str:
    if disk.storage_snapshot is None or disk.storage_snapshot.system:
        return ""
    return (
        f"no registered storage system has datastore {disk.datastore}; add one with `vmhaul storage add`, "
        "or rescan it"
    )


def _mixed_storage(disk: DiskFacts) -> str:
    return disk.storage_snapshot.obstacle if disk.storage_snapshot is not None else ""


def _snapshot_rdm(disk: DiskFacts) -> str:
    return (
        "a raw device mapping is no file on the volume of which a snapshot is made"
        if disk.is_rdm
        else ""
    )


def _snapshot_writes(disk: DiskFacts) -> str:
    del disk
    return "a storage snapshot is read, never written"


def _ciphertext(disk: DiskFacts) -> str:
    if not disk.encrypted:
        return ""
    return "the disk is encrypted by vSphere: its file holds ciphertext that only a host can open"


# -- direct SAN


def _not_vmfs(disk: DiskFacts) -> str:
    if disk.datastore_kind == "VMFS":
        return ""
    return f"datastore {disk.datastore} is {disk.datastore_kind or 'of unknown kind'}, not VMFS"


def _vvol_in_vm(disk: DiskFacts) -> str:
    if not disk.vm_on_vvol:
        return ""
    return f"VM {disk.vm_name} has a disk on a virtual volume, which its snapshot would leave to another mode"


def _template(disk: DiskFacts) -> str:
    return (
        f"{disk.vm_name} is a template: no snapshot keeps its files as they are"
        if disk.is_template
        else ""
    )


def _san_rdm(disk: DiskFacts) -> str:
    return "a raw device mapping lies on a LUN of its own, not on the datastore" if disk.is_rdm else ""


def _not_eager(disk: DiskFacts) -> str:
    if disk.thin:
        return "the disk is thin: a direct mode never allocates; restore it as thick, zeroed when it is made"
    if not disk.eager:
        return "the disk is thick but was not zeroed when it was made: its blocks would still read as zeros"
    return ""


def _delta_written(disk: DiskFacts) -> str:
    return (
        "the disk has a parent (snapshot or linked clone): its blocks are not its own"
        if disk.is_delta
        else ""
    )


# -- direct NFS


def _not_nfs(disk: DiskFacts) -> str:
    if disk.datastore_kind in _NFS_KINDS:
        return ""
    return f"datastore {disk.datastore} is {disk.datastore_kind or 'of unknown kind'}, not NFS"


def _delta_on_nfs(disk: DiskFacts) -> str:
    if not disk.is_delta:
        return ""
    return "the disk lies on a delta: the VM had a snapshot already, or is a linked clone; remove the snapshot"


def _quiesced_windows(disk: DiskFacts) -> str:
    if not (disk.windows and disk.running and disk.tools_running and disk.quiesced):
        return ""
    return "a running Windows VM with VMware Tools is quiesced: its snapshot writes to the disk after it was made"


def _nfs_rdm(disk: DiskFacts) -> str:
    return "a raw device mapping is no file on an export" if disk.is_rdm else ""


# -- HotAdd


def _ide(disk: DiskFacts) -> str:
    return (
        "the disk is on an IDE controller: vSphere cannot add it to a running VM"
        if disk.controller == "IDE"
        else ""
    )


def _old_sata(disk: DiskFacts) -> str:
    major = disk.host_version.partition(".")[0]
    if disk.controller != "SATA" or not major.isdigit() or int(major) >= _SATA_SINCE:
        return ""
    return (
        f"the disk is on a SATA controller, and ESXi {disk.host_version} cannot add such a one; 6.0 can"
    )


def _too_large(disk: DiskFacts) -> str:
    if disk.capacity_bytes <= HOTADD_LARGEST_BYTES:
        return ""
    return f"the disk has {_size(disk.capacity_bytes)}, more than the 62 TiB that can be added"


# -- network


def _clear_text(disk: DiskFacts) -> str:
    return (
        "the disk is encrypted by vSphere: it leaves the host by nbdssl only" if disk.encrypted else ""
    )


def _at_sign(disk: DiskFacts) -> str:
    return "its name holds an '@', which VMware's own library cannot open" if "@" in disk.path else ""


DISK_RULES: Final = (
    DiskRule(
        id="in-snapshot",
        modes=ALL,
        use=Use.READ,
        text="The disk is part of a VM snapshot: not independent, no raw device mapping in physical mode, not shared "
        "between VMs.",
        check=_in_no_snapshot,
    ),
    DiskRule(
        id="vm-snapshot-gone",
        modes=ALL - SNAPSHOT,
        use=Use.READ,
        text="Once the VM snapshot was removed in favour of a storage snapshot, nothing else is read.",
        check=_snapshot_gone,
    ),
    DiskRule(
        id="storage-snapshot-asked",
        modes=SNAPSHOT,
        use=Use.READ,
        text="The job asks for storage snapshots.",
        check=_not_asked,
    ),
    DiskRule(
        id="storage-snapshot-system",
        modes=SNAPSHOT,
        use=Use.READ,
        text="A registered storage system has the volume of the datastore.",
        check=_no_system,
    ),
    DiskRule(
        id="storage-snapshot-whole-vm",
        modes=SNAPSHOT,
        use=Use.READ,
        text="All disks of the VM are on volumes of such systems, else the whole VM is read in other modes.",
        check=_mixed_storage,
    ),
    DiskRule(
        id="storage-snapshot-rdm",
        modes=SNAPSHOT,
        use=Use.READ,
        text="No raw device mapping.",
        check=_snapshot_rdm,
    ),
    DiskRule(
        id="storage-snapshot-read-only",
        modes=SNAPSHOT,
        use=Use.WRITE,
        text="A storage snapshot is read only; restores take another mode.",
        check=_snapshot_writes,
    ),
    DiskRule(
        id="direct-encrypted",
        modes=SNAPSHOT | SAN | NFS,
        text="Disks that vSphere encrypts cannot be read or written past the host.",
        check=_ciphertext,
    ),
    DiskRule(
        id="san-vmfs", modes=SAN, text="The datastore is VMFS: not vSAN, vVol or NFS.", check=_not_vmfs
    ),
    DiskRule(
        id="san-no-vvol-in-vm",
        modes=SAN,
        text="No disk of the VM is on a virtual volume.",
        check=_vvol_in_vm,
    ),
    DiskRule(id="san-template", modes=SAN, text="Not for templates.", check=_template),
    DiskRule(id="san-rdm", modes=SAN, text="No raw device mapping, in either mode.", check=_san_rdm),
    DiskRule(
        id="san-write-thick",
        modes=SAN,
        use=Use.WRITE,
        text="Thick disks only, zeroed when they were made: blocks are overwritten, never allocated.",
        check=_not_eager,
    ),
    DiskRule(
        id="san-write-base",
        modes=SAN,
        use=Use.WRITE,
        text="No snapshot or linked clone stands on the disk or below it.",
        check=_delta_written,
    ),
    DiskRule(id="nfs-kind", modes=NFS, text="The datastore is NFS 3 or NFS 4.1.", check=_not_nfs),
    DiskRule(
        id="nfs-no-delta",
        modes=NFS,
        text="The VM has no snapshot besides the one of this backup, and is no linked clone: deltas are not parsed.",
        check=_delta_on_nfs,
    ),
    DiskRule(
        id="nfs-quiesced-windows",
        modes=NFS,
        use=Use.READ,
        text="Not for a running Windows VM with VMware Tools when the job quiesces.",
        check=_quiesced_windows,
    ),
    DiskRule(id="nfs-rdm", modes=NFS, text="No raw device mapping.", check=_nfs_rdm),
    DiskRule(id="hotadd-ide", modes=HOTADD, text="No disk on an IDE controller.", check=_ide),
    DiskRule(
        id="hotadd-sata",
        modes=HOTADD,
        text="Disks on a SATA controller need ESXi 6.0 or later.",
        check=_old_sata,
    ),
    DiskRule(id="hotadd-size", modes=HOTADD, text="The disk has at most 62 TiB.", check=_too_large),
    DiskRule(
        id="nbd-encrypted",
        modes=NBD,
        text="Disks that vSphere encrypts are sent by nbdssl, not in clear.",
        check=_clear_text,
    ),
    DiskRule(
        id="network-at-sign",
        modes=NETWORK,
        text="An '@' in the disk's name is remarked: with VMware's own library such a disk cannot be read, without it "
        "it can.",
        check=_at_sign,
        remark=True,
    ),
)
