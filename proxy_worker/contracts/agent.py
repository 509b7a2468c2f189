"""The repository agent: one child process of the server for each repository, told in JSON lines.

The server may not import the pipeline's engine (it would pull block data's code into the process that
holds all passwords), so administration of a repository happens in this child. One request line in on
standard input, one answer line out on standard output, in order; standard error is for the log.

Request: {"id": int, "call": str, "args": {...}}. Answer: {"id": int, "ok": {...}} or
{"id": int, "error": {"kind": "transient" | "permanent" | "integrity", "message": str}}.

Calls and their args / ok:

| call | args | ok |
|---|---|---|
| create | location, password, block_size_bytes, storage_secrets?, immutable_days? | repository_id, master_key, key_epoch |
| open | location, password, least_epoch?, storage_secrets?, immutable_days? | repository_id, master_key, block_size_bytes, key_epoch |
| commit | point (see encode_restore_point) | created: bool (false: it was there already, the same), immutable_until_s (0: it is not) |
| points | | points: [...] |
| point | id | point |
| forget | ids | forgotten: int |
| prune | keep_task_ids (work areas still needed), min_age_s | removed_packs, removed_bytes, rewritten_bytes, kept_packs |
| rebuild_index | | packs, blobs, scanned_packs (known by the headers of their blobs alone), unreadable: [str]: the index made anew from the packs |
| check | read_data: bool, sample_share: float, sample_start?: float | problems: [str], points, packs, blobs, read_bytes, confidence: str, damage: [{point_id, disk_key, start_bytes, end_bytes, reason}] |
| keys | | keys: [{id, kind, label, created_at_s, version, problem, own}], key_epoch, features |
| add_key | kind (password, key-file, recovery), password?, label? | id, text (of a key file or recovery key; told this once) |
| change_key | old, new: passwords; old may be any key | id |
| revoke_key | id | |
| rotate_key | without?: ids of keys that are not given the new data key | key_epoch |
| upgrade | | added, features: [str] |
| repair | copies: [{name, location, storage_secrets?, key, repository_id}] (repositories that may hold what is lost), dry_run | damage: [str], damaged_packs, damaged_blobs, repaired_blobs, repaired_from: {name: blobs}, moved_blobs, stored_bytes, read_bytes, problems: [str], lost: [{point_id, vm, disk_key, disk, start_bytes, end_bytes, reason, text}] |
| space | | free_bytes, total_bytes, used_bytes |
| facts | | packs, stored_bytes (of all packs), features: [str], key_epoch, keys (how many open it), aead |

| immutable | ids | until_s: {id: Unix time, 0 where it is not} |
| extent_list | location, storage_secrets?, first_name? | extents: [{name, location, state, problem, free_bytes, total_bytes, packs, pack_bytes}] |
| extent_add | location, extent, place, first_name, storage_secrets? | extents: [{name, location, state}], as they are afterwards |
| extent_level | location, storage_secrets? | |
| extent_activate | location, extent, storage_secrets? | extents |
| extent_evacuate | location, extent, storage_secrets? | moved_packs, moved_bytes, kept_packs |
| extent_remove | location, extent, lost: bool, storage_secrets? | extents, without that one |
| extent_retire | location (as it was), extent, storage_secrets? | |
| recover | location, password, storage_secrets?, as_of_s | uncovered, set_aside, rebuilt_packs, key_epoch: int, lost: [str] |

Wherever a repository is opened, `password` may also be a recovery key or the text of a key file. `least_epoch` of
`open` is the newest key epoch that the server knows of: an older state is refused. An error with
`"reason": "wrong-key"` says that the password opens nothing. `storage_secrets` is an object of texts,
`immutable_days` a number (0: nothing is kept).

`create` and `open` come first and once; `recover` opens nothing for the calls after it. A master key is 64 hexadecimal digits and is what TaskSecrets
hands to a proxy. The program is `python -m proxy_worker.agent`.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Final

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

WRONG_KEY: Final = "wrong-key"
"""Reason of an error: the password opens no key of the repository."""


def encode_restore_point(point: RestorePoint) -> dict[str, Any]:
    """JSON form of a restore point, for the agent's lines."""
    copied = point.copied_from
    return {
        "id": point.id,
        "vm": {
            "instance_uuid": point.vm.instance_uuid,
            "bios_uuid": point.vm.bios_uuid,
            "name": point.vm.name,
            "moref": point.vm.moref,
            "vcenter_uuid": point.vm.vcenter_uuid,
        },
        "created_at": point.created_at.isoformat(),
        "kind": point.kind.value,
        "consistency": point.consistency.value,
        "previous": point.previous,
        "job_name": point.job_name,
        "disks": [
            {
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
            for disk in point.disks
        ],
        "skipped_disks": list(point.skipped_disks),
        "vm_config": base64.b64encode(point.vm_config).decode(),
        "nvram": base64.b64encode(point.nvram).decode(),
        "copied_from": copied
        and {
            "repository_id": copied.repository_id,
            "point_id": copied.point_id,
            "job_name": copied.job_name,
        },
    }


def decode_restore_point(data: dict[str, Any]) -> RestorePoint:
    """Inverse of encode_restore_point. Raises KeyError, TypeError or ValueError on a wrong shape."""
    return RestorePoint(
        id=RestorePointId(data["id"]),
        vm=VmIdentity(**data["vm"]),
        created_at=datetime.fromisoformat(data["created_at"]),
        kind=PointKind(data["kind"]),
        consistency=Consistency(data["consistency"]),
        previous=RestorePointId(data["previous"]) if data["previous"] else None,
        job_name=data["job_name"],
        disks=tuple(
            DiskPoint(**{**disk, "map_root": BlobId(disk["map_root"])}) for disk in data["disks"]
        ),
        skipped_disks=tuple(data["skipped_disks"]),
        vm_config=base64.b64decode(data["vm_config"], validate=True),
        nvram=base64.b64decode(data["nvram"], validate=True),
        copied_from=CopiedFrom(**copied) if (copied := data.get("copied_from")) else None,
    )
