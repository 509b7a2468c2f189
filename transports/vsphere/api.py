"""What the product may ask of a vCenter or a standalone host.

`transports.vsphere.connect()` gives the implementation. All methods may be called from several
threads. A session that expired is renewed silently where the client was given a Login; a client made
from a CloneTicket raises SessionExpiredError instead. Errors are those of `transports.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from transports.base import Extent
from transports.vsphere.model import (
    About,
    AttachableVm,
    AttachedDisk,
    DatastoreInfo,
    DatastoreLatency,
    DiskInfo,
    DiskToAttach,
    HostAddress,
    Inventory,
    NewDisk,
    NfcTicket,
    Place,
    Secret,
    ServerAddress,
    SnapshotInfo,
    VmConfig,
    VmInfo,
    VmPlacement,
)

Announce = Callable[[Sequence[Place]], None]
"""Is told the places of disks, in their order."""
Cancelled = Callable[[], bool]


class Vsphere(Protocol):
    # -- session
    def about(self) -> About: ...
    def clock_offset_s(self) -> float:
        """Server's clock minus ours."""

    def keep_alive(self) -> None: ...
    def clone_ticket(self) -> Secret:
        """A ticket with which another process can make a session of the same user, once."""

    def server_address(self) -> ServerAddress:
        """Where the server is, for programs that log in there by themselves. PeerIdentityError when it shows
        another certificate than the confirmed one.
        """

    def missing_privileges(self, role: str) -> list[str]:
        """Privileges of `role` ("backup", "restore", "hotadd") that this account lacks at the root folder."""

    def close(self) -> None: ...

    # -- reading
    def inventory(self) -> Inventory: ...
    def vm(self, moref: str) -> VmInfo:
        """ObjectGoneError when it is no longer registered."""

    def datastore(self, name: str, datacenter: str) -> DatastoreInfo: ...
    def snapshots(self, vm_moref: str) -> list[SnapshotInfo]:
        """All snapshots of the VM's tree, parents first."""

    def changed_areas(
        self, vm_moref: str, snapshot_moref: str, disk_key: int, change_id: str
    ) -> list[Extent]:
        """Everything changed since `change_id` ("*": allocated), paged to the end, merged, ascending.

        ChangeTrackingUnusableError with the reason in every case in which the answer is not to be
        trusted.
        """

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        """One connection's permission; made for the host on which the VM runs now."""

    def host_addresses(self, host_moref: str) -> tuple[HostAddress, ...]:
        """Of the host's VMkernel adapters; nothing where it does not tell."""

    def datastore_latencies(self, names: Collection[str]) -> dict[str, DatastoreLatency]:
        """Read latency by name, for each datastore that is asked for. Of several that share a name, the
        slowest's.
        """

    def vm_config(self, vm_moref: str, snapshot_moref: str | None) -> VmConfig:
        """Configuration as it was at the snapshot, with names of networks, datastores and places."""

    def vms_by_bios_uuid(self, bios_uuid: str) -> list[str]:
        """Morefs of the VMs with that SMBIOS UUID. A guest may read its own with the first three groups in
        the other byte order, so both are looked for.
        """

    def attachable_vm(self, moref: str) -> AttachableVm:
        """A VM's SCSI controllers, their free units, and its disks. ObjectGoneError when it is gone."""

    # -- changing (the caller has written its intent down before)
    def enable_change_tracking(self, vm_moref: str) -> None:
        """Switch tracking on and read it back. PermanentTransportError when it did not take."""

    def disable_change_tracking(self, vm_moref: str) -> None:
        """Switch tracking off, to begin it anew; vSphere acts on it at the next snapshot.
        PermanentTransportError when the VM has snapshots, or when it did not take.
        """

    def create_snapshot(
        self,
        vm_moref: str,
        *,
        name: str,
        description: str,
        quiesce: bool,
        cancelled: Cancelled = lambda: False,
    ) -> SnapshotInfo:
        """Without memory. QuiesceFailedError when the guest could not be quiesced (see errors)."""

    def remove_snapshot(self, vm_moref: str, snapshot_moref: str) -> None:
        """Remove one snapshot, children kept, and fold its disks. Success when it is already gone.

        Busy VMs and locked files are TransientTransportError: call again later.
        """

    def consolidation_needed(self, vm_moref: str) -> bool: ...
    def consolidate(self, vm_moref: str) -> None: ...

    def create_vm(self, config: VmConfig, placement: VmPlacement, *, mark: str) -> str:
        """Create the VM of `config` without disks, powered off, with `mark` in its annotation
        extra config (`vmhaul.mark`); answers its moref. PermanentTransportError when a VM of that
        name exists at that place.
        """

    def find_marked_vm(self, mark: str) -> str | None:
        """Moref of the VM that bears the mark (made before a crash), or None."""

    def add_disks(
        self, vm_moref: str, config: VmConfig, disks: Sequence[NewDisk], placement: VmPlacement
    ) -> dict[int, DiskInfo]:
        """Create new empty disks at the controller positions that `config` names; old key -> disk."""

    def finish_vm(self, vm_moref: str, config: VmConfig, placement: VmPlacement) -> list[str]:
        """Boot order, nvram and what else needs the disks; removes the mark. Answers warnings."""

    def destroy_marked_vm(self, vm_moref: str, mark: str) -> None:
        """Delete a VM and its files, only when it bears `mark`; success when it is gone."""

    def power_on(self, vm_moref: str) -> None: ...

    def attach_disks(
        self, vm_moref: str, disks: Sequence[DiskToAttach], announce: Announce = lambda _places: None
    ) -> list[AttachedDisk]:
        """Attach existing files to another VM in one reconfiguration, at units that are free now; a
        paravirtual controller is added when they do not fit. One that is at one of its places already is
        left as it is. Answers in the order of `disks`.

        `announce` is told, before anything is changed, where each of them will be; what it raises ends the
        call. TransportUnavailableError when there is no room, or the VM has the file by somebody else's doing;
        TransientTransportError when the VM was changed meanwhile; PermanentTransportError when vSphere refuses.
        """

    def detach_disks(self, vm_moref: str, disks: Sequence[DiskToAttach]) -> None:
        """Take away what attach_disks() attached, in one reconfiguration, and wait until it is gone. Files
        are never touched. Success for what is not attached, and for a VM that is gone.

        TransientTransportError while the VM is being changed: what is to be taken away may be about to come.
        """
