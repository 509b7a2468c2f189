"""Work records: how far the backup of a disk is, section 9 of the format."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.canonical import from_canonical, to_canonical
from pipeline.repository.format import SealedKind
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Storage


class WorkState(StrEnum):
    BEGUN = "begun"  # nothing durable yet -> partial, done
    PARTIAL = "partial"  # a part of the map is durable -> partial, done
    DONE = "done"  # the whole map is durable


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRecord:
    state: WorkState
    begun_at_s: float
    """When the first writer of this record began, before it read the index."""
    capacity_bytes: int
    read_mode: str
    base_root: str
    next_block: int = 0
    nodes: list[dict[str, Any]] = field(default_factory=list)
    map_root: str = ""
    stats: dict[str, Any] = field(default_factory=dict)


def write_work(
    storage: Storage, keyring: Keyring, algorithm: Aead, work_id: str, record: WorkRecord
) -> int:
    """Store the record in the place of an earlier one. Returns its size in bytes."""
    name = layout.work_name(work_id)
    fields = {
        "state": record.state.value,
        "begun_at": repr(record.begun_at_s),
        "capacity_bytes": record.capacity_bytes,
        "read_mode": record.read_mode,
        "base_root": record.base_root,
        "next_block": record.next_block,
        "nodes": record.nodes,
        "map_root": record.map_root,
        "stats": record.stats,
    }
    data = seal(keyring, algorithm, SealedKind.WORK, name, to_canonical(fields))
    storage.replace(name, data)
    return len(data)


def read_work(storage: Storage, keyring: Keyring, work_id: str) -> WorkRecord | None:
    """None when there is none. Raises IntegrityError for a damaged one."""
    name = layout.work_name(work_id)
    try:
        data = storage.read(name)
    except ObjectNotFoundError:
        return None
    fields = from_canonical(unseal(keyring, SealedKind.WORK, name, data), name)
    try:
        return WorkRecord(
            state=WorkState(fields["state"]),
            begun_at_s=float(fields["begun_at"]),
            capacity_bytes=fields["capacity_bytes"],
            read_mode=fields["read_mode"],
            base_root=fields["base_root"],
            next_block=fields["next_block"],
            nodes=fields["nodes"],
            map_root=fields["map_root"],
            stats=fields["stats"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{name} has fields that this vmhaul does not understand") from error


def delete_work(storage: Storage, work_id: str) -> None:
    storage.delete(layout.work_name(work_id))


def work_ids(storage: Storage) -> list[str]:
    return [entry.name.removeprefix(layout.WORK) for entry in storage.list(layout.WORK)]
