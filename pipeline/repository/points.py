"""Restore points as stored: signed manifests, each naming the one before it for the same VM."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from blake3 import blake3

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring, verify_signature
from pipeline.errors import IntegrityError
from pipeline.model import (
    BlobId,
    Consistency,
    CopiedFrom,
    DiskPoint,
    PointKind,
    RestorePoint,
    RestorePointId,
    VmIdentity,
)
from pipeline.repository import layout
from pipeline.repository.canonical import from_canonical, to_canonical
from pipeline.repository.format import BLOB_ID_BYTES, POINT_HEAD, SealedKind
from pipeline.repository.sealed import seal, unseal

SIGNATURE_CONTEXT: Final = b"vmhaul restore point v1\0"
NO_PREDECESSOR_HASH: Final = bytes(32)
UNKNOWN_HASH: Final = bytes(32)
"""In a forgotten record: the point was damaged, its payload could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint:
    """A restore point with its place in the chain of commits of its VM."""

    point: RestorePoint
    sequence: int
    predecessor: RestorePointId | None
    predecessor_hash: bytes
    committed_at: datetime
    payload_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenPoint:
    """That a point was forgotten on purpose."""

    point_id: RestorePointId
    payload_hash: bytes


def format_point(
    keyring: Keyring,
    algorithm: Aead,
    point: RestorePoint,
    predecessor: StoredPoint | None,
    committed_at: datetime,
) -> bytes:
    """Bytes of the object points/<id>."""
    manifest = to_canonical(
        {
            **point_fields(point),
            "committed_at": committed_at.astimezone(UTC).isoformat(),
            "predecessor": predecessor.point.id if predecessor else None,
            "sequence": predecessor.sequence + 1 if predecessor else 1,
        }
    )
    predecessor_hash = predecessor.payload_hash if predecessor else NO_PREDECESSOR_HASH
    signature = keyring.sign(signed_message(keyring, predecessor_hash, manifest))
    payload = POINT_HEAD.pack(predecessor_hash, signature) + manifest
    return seal(keyring, algorithm, SealedKind.POINT, layout.point_name(point.id), payload)


def parse_point(keyring: Keyring, name: str, data: bytes) -> StoredPoint:
    """Raises IntegrityError."""
    payload = unseal(keyring, SealedKind.POINT, name, data)
    if len(payload) < POINT_HEAD.size:
        raise IntegrityError(f"{name} is truncated")
    predecessor_hash, signature = POINT_HEAD.unpack_from(payload)
    manifest = payload[POINT_HEAD.size :]
    try:
        verify_signature(
            keyring.public_key, signed_message(keyring, predecessor_hash, manifest), signature
        )
    except IntegrityError as error:
        raise IntegrityError(f"{name}: {error}") from error
    fields = from_canonical(manifest, name)
    try:
        stored = StoredPoint(
            point=point_of_fields(fields),
            sequence=fields["sequence"],
            predecessor=fields["predecessor"] and RestorePointId(fields["predecessor"]),
            predecessor_hash=predecessor_hash,
            committed_at=datetime.fromisoformat(fields["committed_at"]),
            payload_hash=blake3(payload).digest(),
        )
        named = layout.point_name(stored.point.id)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{name} has fields that this vmhaul does not understand: {error!r}"
        ) from error
    if named != name:
        raise IntegrityError(f"{name} holds restore point {stored.point.id}")
    return stored


def signed_message(keyring: Keyring, predecessor_hash: bytes, manifest: bytes) -> bytes:
    return SIGNATURE_CONTEXT + keyring.repository_id + predecessor_hash + manifest


def point_fields(point: RestorePoint) -> dict[str, Any]:
    """The point as JSON values. Times are normalised to UTC."""
    fields: dict[str, Any] = {
        "id": point.id,
        "vm": {
            "instance_uuid": point.vm.instance_uuid,
            "bios_uuid": point.vm.bios_uuid,
            "name": point.vm.name,
            "moref": point.vm.moref,
            "vcenter_uuid": point.vm.vcenter_uuid,
        },
        "created_at": point.created_at.astimezone(UTC).isoformat(),
        "kind": point.kind.value,
        "consistency": point.consistency.value,
        "previous": point.previous,
        "job_name": point.job_name,
        "disks": [disk_fields(disk) for disk in point.disks],
        "skipped_disks": list(point.skipped_disks),
        "vm_config": base64.b64encode(point.vm_config).decode(),
        "nvram": base64.b64encode(point.nvram).decode(),
    }
    copied = point.copied_from
    if copied is not None:  # a field that older readers pass over
        fields["copied_from"] = {
            "repository_id": copied.repository_id,
            "point_id": copied.point_id,
            "job_name": copied.job_name,
        }
    return fields


def disk_fields(disk: DiskPoint) -> dict[str, Any]:
    return {
        "disk_key": disk.disk_key,
        "label": disk.label,
        "disk_uuid": disk.disk_uuid,
        "path": disk.path,
        "capacity_bytes": disk.capacity_bytes,
        "map_root": disk.map_root,
        "change_id": disk.change_id,
        "thin": disk.thin,
        "sha256": disk.sha256,
    }


def point_of_fields(fields: dict[str, Any]) -> RestorePoint:
    """Raises KeyError, TypeError or ValueError on a wrong shape."""
    return RestorePoint(
        id=RestorePointId(fields["id"]),
        vm=VmIdentity(**fields["vm"]),
        created_at=datetime.fromisoformat(fields["created_at"]),
        kind=PointKind(fields["kind"]),
        consistency=Consistency(fields["consistency"]),
        previous=fields["previous"] and RestorePointId(fields["previous"]),
        job_name=fields["job_name"],
        disks=tuple(
            DiskPoint(**{**disk, "map_root": checked_map_root(disk["map_root"])})
            for disk in fields["disks"]
        ),
        skipped_disks=tuple(fields["skipped_disks"]),
        vm_config=base64.b64decode(fields["vm_config"], validate=True),
        nvram=base64.b64decode(fields["nvram"], validate=True),
        copied_from=CopiedFrom(**fields["copied_from"]) if "copied_from" in fields else None,
    )


def checked_map_root(map_root: str) -> BlobId:
    """Raises ValueError unless it is 64 hexadecimal digits in lower case."""
    if map_root != map_root.lower() or len(bytes.fromhex(map_root)) != BLOB_ID_BYTES:
        raise ValueError(f"{map_root!r} is not a map root: 64 hexadecimal digits in lower case")
    return BlobId(map_root)


def format_forgotten(
    keyring: Keyring, algorithm: Aead, point_id: str, payload_hash: bytes, forgotten_at: datetime
) -> bytes:
    """Bytes of the object forgotten/<id>."""
    fields = {
        "id": point_id,
        "payload_hash": payload_hash.hex(),
        "forgotten_at": forgotten_at.astimezone(UTC).isoformat(),
    }
    name = layout.forgotten_name(point_id)
    return seal(keyring, algorithm, SealedKind.FORGOTTEN, name, to_canonical(fields))


def parse_forgotten(keyring: Keyring, name: str, data: bytes) -> ForgottenPoint:
    fields = from_canonical(unseal(keyring, SealedKind.FORGOTTEN, name, data), name)
    try:
        return ForgottenPoint(
            point_id=RestorePointId(fields["id"]), payload_hash=bytes.fromhex(fields["payload_hash"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{name} has fields that this vmhaul does not understand") from error
