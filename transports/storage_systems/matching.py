"""Which volumes lie below a datastore, and where a disk is found in what a proxy is shown of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from transports.base import DatastoreRef, DiskRef, LunExtent, TransportMode
from transports.storage_systems.base import Exposed, Volume, VolumeKind

VMFS: Final = "VMFS"
NFS_KINDS: Final = ("NFS", "NFS41")
READ_BY: Final = {VolumeKind.LUN: TransportMode.DIRECT_SAN, VolumeKind.NFS: TransportMode.DIRECT_NFS}
"""The direct mode that reads what is shown of a volume."""


def volumes_below(storage: DatastoreRef | None, volumes: Iterable[Volume]) -> tuple[Volume, ...]:
    """Every volume that holds a part of the datastore, in its order; empty unless all parts are found."""
    if storage is None:
        return ()
    if storage.kind == VMFS:
        by_lun = {volume.lun.lower(): volume for volume in volumes if volume.kind is VolumeKind.LUN}
        found = [by_lun.get(extent.lun.lower()) for extent in storage.extents]
        held = [volume for volume in found if volume is not None]
        return tuple(dict.fromkeys(held)) if len(held) == len(found) else ()
    if storage.kind in NFS_KINDS:
        hosts = {_host(name) for name in storage.nfs_hosts}
        fitting = [
            (len(export), volume)
            for volume in volumes
            if volume.kind is VolumeKind.NFS and hosts & {_host(name) for name in volume.hosts}
            for export in volume.exports
            if _below(storage.nfs_path, export) is not None
        ]
        # Of a volume within a volume the inner one holds the datastore.
        return (max(fitting, key=lambda pair: pair[0])[1],) if fitting else ()
    return ()


def exposed_disk(disk: DiskRef, volumes: Sequence[Volume], exposed: Sequence[Exposed]) -> DiskRef:
    """The disk as it is to be opened in what was shown of `volumes`, those below its datastore."""
    storage = disk.storage
    if storage is None:
        raise ValueError(f"where datastore {disk.datastore} lies is not known")
    if storage.kind == VMFS:
        luns = {
            volume.lun.lower(): one.lun
            for volume in volumes
            for one in exposed
            if one.volume_id == volume.id
        }
        extents = tuple(
            LunExtent(lun=luns[extent.lun.lower()], partition=extent.partition)
            for extent in storage.extents
        )
        return replace(disk, snapshot_moref=None, storage=replace(storage, extents=extents))
    [volume] = volumes
    [one] = exposed
    export, rest = max(
        (export, rest)
        for export in volume.exports
        if (rest := _below(storage.nfs_path, export)) is not None
    )
    inner = "/".join(part for part in (one.directory, rest) if part)
    return replace(
        disk,
        snapshot_moref=None,
        path=_moved(disk.path, inner),
        storage=replace(storage, nfs_path=export),
    )


def _below(path: str, export: str) -> str | None:
    """The way from the export to the path, "" for itself; None when it is elsewhere."""
    path, export = path.rstrip("/"), export.rstrip("/")
    if path == export:
        return ""
    return path.removeprefix(export + "/") if path.startswith(export + "/") else None


def _moved(path: str, inner: str) -> str:
    """Of "[ds] vm/vm.vmdk": "[ds] inner/vm/vm.vmdk"."""
    store, bracket, file = path.partition("] ")
    return f"{store}{bracket}{inner}/{file}" if inner else path


def _host(name: str) -> str:
    """Names and addresses in one spelling."""
    text = name.strip().strip("[]").rstrip(".").lower()
    try:
        return str(ip_address(text))
    except ValueError:
        return text
