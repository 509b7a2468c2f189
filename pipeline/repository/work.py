"""Work records: how far the backup of a disk is, section 9 of the format."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.canonical import from_canonical, to_canonical
from pipeline.repository.format import (
    BLOB_ID_BYTES,
    NODE_BYTES_MAX,
    NODE_ENTRIES_BITS,
    SealedKind,
)
from pipeline.repository.points import checked_map_root
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Storage

MAX_LEVEL: Final = 5
"""A disk of so many levels would have more blocks than a number of 64 bits counts bytes."""


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
    first_base: str = ""
    """Of a work that goes on from another's map (its `base_root`): the base that the first of them had. Empty:
    it begins by itself."""


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
    if record.first_base:
        fields["first_base"] = record.first_base
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
        record = WorkRecord(
            state=WorkState(fields["state"]),
            begun_at_s=float(fields["begun_at"]),
            capacity_bytes=fields["capacity_bytes"],
            read_mode=fields["read_mode"],
            base_root=fields["base_root"],
            next_block=fields["next_block"],
            nodes=fields["nodes"],
            map_root=fields["map_root"],
            stats=fields["stats"],
            first_base=fields.get("first_base", ""),
        )
        _check_fields(record)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{name} has fields that this vmhaul does not understand") from error
    return record


def _check_fields(record: WorkRecord) -> None:
    """KeyError, TypeError or ValueError unless everything is of the kind that an attempt counts on."""
    counts = (record.capacity_bytes, record.next_block)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts that are none")
    if not math.isfinite(record.begun_at_s) or not isinstance(record.read_mode, str):
        raise ValueError("a begin or a mode that is none")
    for root in (record.base_root, record.map_root, record.first_base):
        if root != "":
            checked_map_root(root)
    if not all(type(value) in {int, float} for value in dict(record.stats).values()):
        raise ValueError("figures that are none")
    above: dict[str, Any] | None = None
    for node in record.nodes:
        _check_node(node, above)
        above = node


def _check_node(node: dict[str, Any], above: dict[str, Any] | None) -> None:
    """One open node of a map, below the one before it."""
    level, number = node["level"], node["number"]
    if type(level) is not int or type(number) is not int or not 0 <= level <= MAX_LEVEL:
        raise ValueError("a place in the map that is none")
    of_above = (level + 1, number >> NODE_ENTRIES_BITS) if above is not None else None
    if above is not None and of_above != (above["level"], above["number"]):
        raise ValueError("open nodes that are not below each other")
    if above is None and number != 0:
        raise ValueError("a root that is not the first of its level")
    if len(bytes.fromhex(node["base"])) != BLOB_ID_BYTES or type(node["changed"]) is not bool:
        raise ValueError("an open node without its base")
    if len(base64.b64decode(node["entries"], validate=True)) != NODE_BYTES_MAX:
        raise ValueError("an open node of another size")


def delete_work(storage: Storage, work_id: str) -> None:
    storage.delete(layout.work_name(work_id))


def work_ids(storage: Storage) -> list[str]:
    return [entry.name.removeprefix(layout.WORK) for entry in storage.list(layout.WORK)]
