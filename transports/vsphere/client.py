"""The Vsphere that the product sees: each method borrows a connection and tells what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from transports.base import Extent
from transports.errors import PeerIdentityError, TransportError
from transports.tls import PeerCertificate, matches
from transports.vsphere import (
    attachments,
    config_export,
    host_addresses,
    inventory,
    nfc_service,
    privileges,
    snapshot,
    vm_restore,
)
from transports.vsphere.api import Announce, Cancelled
from transports.vsphere.config_export import SavedConfig
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
    Secret,
    ServerAddress,
    SnapshotInfo,
    VmConfig,
    VmInfo,
    VmPlacement,
)
from transports.vsphere.performance import LatencyReader
from transports.vsphere.session import Session
from transports.vsphere.tags import TagsUnknownError, vm_tags


class VsphereClient:
    """A vCenter or standalone host over one session. See `transports.vsphere.api.Vsphere`."""

    def __init__(self, session: Session, *, clock: Callable[[], float], keep_alive_s: float) -> None:
        self._session = session
        self._clock = clock
        self._closing = threading.Event()
        self._nfc_service = ""
        self._latencies = LatencyReader()
        if keep_alive_s > 0:
            threading.Thread(
                target=self._keep_alive_loop,
                args=(keep_alive_s,),
                name="vsphere-keep-alive",
                daemon=True,
            ).start()

    # -- session

    def about(self) -> About:
        with self._session.borrow("read the server's version") as connection:
            return inventory.about(connection)

    def clock_offset_s(self) -> float:
        with self._session.borrow("read the server's clock") as connection:
            asked_at = self._clock()
            server: datetime = connection.root().CurrentTime()
            answered_at = self._clock()
        if server.tzinfo is None:
            server = server.replace(tzinfo=UTC)
        return server.timestamp() - (asked_at + answered_at) / 2

    def keep_alive(self) -> None:
        with self._session.borrow("keep the session alive") as connection:
            connection.root().CurrentTime()

    def clone_ticket(self) -> Secret:
        with self._session.borrow("make a ticket for another session") as connection:
            return Secret(str(connection.content.sessionManager.AcquireCloneTicket()))

    def server_address(self) -> ServerAddress:
        endpoint = self._session.endpoint
        certificate = PeerCertificate.fetch(endpoint.host, endpoint.port)
        if not matches(certificate.der, endpoint.thumbprint_sha256):
            raise PeerIdentityError(
                f"{endpoint.host}:{endpoint.port} shows a certificate with SHA-256 thumbprint {certificate.sha256}, "
                "which nobody confirmed; if it was replaced on purpose, confirm the new one"
            )
        return ServerAddress(host=endpoint.host, port=endpoint.port, thumbprint_sha1=certificate.sha1)

    def missing_privileges(self, role: str) -> list[str]:
        with self._session.borrow("read the account's privileges") as connection:
            return privileges.missing_privileges(connection, role)

    def close(self) -> None:
        self._closing.set()
        self._session.close()

    # -- reading

    def inventory(self) -> Inventory:
        try:
            tags, tags_known = vm_tags(self._session), True
        except TagsUnknownError:
            tags, tags_known = {}, False
        with self._session.borrow("read the inventory") as connection:
            generation = self._session.generation
            try:
                return inventory.read_inventory(connection, tags, tags_known=tags_known)
            except Exception:
                # Views and pages die with the session they were made in: one that was renewed in
                # the middle means reading once more from the start.
                if self._session.generation == generation:
                    raise
            return inventory.read_inventory(connection, tags, tags_known=tags_known)

    def vm(self, moref: str) -> VmInfo:
        with self._session.borrow(f"read VM {moref}") as connection:
            return inventory.read_vm(connection, moref)

    def datastore(self, name: str, datacenter: str) -> DatastoreInfo:
        with self._session.borrow(f"read datastore {name}") as connection:
            return inventory.read_datastore(connection, name, datacenter)

    def snapshots(self, vm_moref: str) -> list[SnapshotInfo]:
        with self._session.borrow(f"list the snapshots of VM {vm_moref}") as connection:
            return snapshot.list_snapshots(connection, vm_moref)

    def changed_areas(
        self, vm_moref: str, snapshot_moref: str, disk_key: int, change_id: str
    ) -> list[Extent]:
        doing = f"query the changes of disk {disk_key} of VM {vm_moref}"
        with self._session.borrow(doing) as connection:
            return snapshot.changed_areas(
                connection, vm_moref, snapshot_moref, disk_key, change_id, wait=self._closing.wait
            )

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        doing = f"get a ticket for disk {disk_key} of VM {vm_moref}"
        with self._session.borrow(doing) as connection:
            if not self._nfc_service:
                self._nfc_service = nfc_service.nfc_service_moref(connection)
            return nfc_service.ticket(connection, self._nfc_service, vm_moref, disk_key, write=write)

    def host_addresses(self, host_moref: str) -> tuple[HostAddress, ...]:
        with self._session.borrow(f"read the addresses of host {host_moref}") as connection:
            return host_addresses.read_host_addresses(connection, host_moref)

    def datastore_latencies(self, names: Collection[str]) -> dict[str, DatastoreLatency]:
        with self._session.borrow("read the latency of datastores") as connection:
            return self._latencies.read(connection, names, self._clock())

    def vm_config(self, vm_moref: str, snapshot_moref: str | None) -> VmConfig:
        with self._session.borrow(f"read the configuration of VM {vm_moref}") as connection:
            return config_export.export(connection, vm_moref, snapshot_moref)

    def vms_by_bios_uuid(self, bios_uuid: str) -> list[str]:
        with self._session.borrow(f"look for the VM with UUID {bios_uuid}") as connection:
            return attachments.vms_by_bios_uuid(connection, bios_uuid)

    def attachable_vm(self, moref: str) -> AttachableVm:
        with self._session.borrow(f"read the devices of VM {moref}") as connection:
            return attachments.attachable_vm(connection, moref)

    # -- changing

    def enable_change_tracking(self, vm_moref: str) -> None:
        with self._session.borrow(f"switch on change tracking of VM {vm_moref}") as connection:
            snapshot.enable_change_tracking(connection, vm_moref)

    def disable_change_tracking(self, vm_moref: str) -> None:
        with self._session.borrow(f"switch off change tracking of VM {vm_moref}") as connection:
            snapshot.disable_change_tracking(connection, vm_moref)

    def create_snapshot(
        self,
        vm_moref: str,
        *,
        name: str,
        description: str,
        quiesce: bool,
        cancelled: Cancelled = lambda: False,
    ) -> SnapshotInfo:
        with self._session.borrow(f"make a snapshot of VM {vm_moref}") as connection:
            return snapshot.create(
                connection,
                vm_moref,
                name=name,
                description=description,
                quiesce=quiesce,
                cancelled=cancelled,
            )

    def remove_snapshot(self, vm_moref: str, snapshot_moref: str) -> None:
        doing = f"remove snapshot {snapshot_moref} of VM {vm_moref}"
        with self._session.borrow(doing) as connection:
            snapshot.remove(connection, vm_moref, snapshot_moref)

    def consolidation_needed(self, vm_moref: str) -> bool:
        with self._session.borrow(f"read the state of VM {vm_moref}") as connection:
            return snapshot.consolidation_needed(connection, vm_moref)

    def consolidate(self, vm_moref: str) -> None:
        with self._session.borrow(f"consolidate the disks of VM {vm_moref}") as connection:
            snapshot.consolidate(connection, vm_moref)

    def create_vm(self, config: VmConfig, placement: VmPlacement, *, mark: str) -> str:
        with self._session.borrow(f"create VM {placement.name}") as connection:
            return vm_restore.create_vm(connection, SavedConfig(config), placement, mark=mark)

    def find_marked_vm(self, mark: str) -> str | None:
        with self._session.borrow("look for a VM that is being restored") as connection:
            return vm_restore.find_marked_vm(connection, mark)

    def add_disks(
        self, vm_moref: str, config: VmConfig, disks: Sequence[NewDisk], placement: VmPlacement
    ) -> dict[int, DiskInfo]:
        with self._session.borrow(f"add disks to VM {vm_moref}") as connection:
            return vm_restore.add_disks(connection, vm_moref, SavedConfig(config), disks, placement)

    def finish_vm(self, vm_moref: str, config: VmConfig, placement: VmPlacement) -> list[str]:
        with self._session.borrow(f"finish VM {vm_moref}") as connection:
            return vm_restore.finish_vm(connection, vm_moref, SavedConfig(config), placement)

    def destroy_marked_vm(self, vm_moref: str, mark: str) -> None:
        with self._session.borrow(f"delete VM {vm_moref}") as connection:
            vm_restore.destroy_marked_vm(connection, vm_moref, mark)

    def power_on(self, vm_moref: str) -> None:
        with self._session.borrow(f"power on VM {vm_moref}") as connection:
            vm_restore.power_on(connection, vm_moref)

    def attach_disks(
        self, vm_moref: str, disks: Sequence[DiskToAttach], announce: Announce = lambda _places: None
    ) -> list[AttachedDisk]:
        with self._session.borrow(f"attach disks to VM {vm_moref}") as connection:
            return attachments.attach_disks(connection, vm_moref, disks, announce)

    def detach_disks(self, vm_moref: str, disks: Sequence[DiskToAttach]) -> None:
        with self._session.borrow(f"detach disks from VM {vm_moref}") as connection:
            attachments.detach_disks(connection, vm_moref, disks)

    def _keep_alive_loop(self, every_s: float) -> None:
        while not self._closing.wait(every_s):
            try:
                self.keep_alive()
            except TransportError:
                continue  # whoever needs the session next meets the same error and can act on it
