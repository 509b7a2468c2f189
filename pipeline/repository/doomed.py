"""Packs that prune took out of the index and will delete later, section 10 of the format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.format import DOOMED_HEAD, SealedKind
from pipeline.repository.index import (
    IndexLoader,
    PackSegment,
    format_segments,
    parse_segments,
    write_index_object,
)
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Storage
from pipeline.storage.scale_out import ExtentOfflineError

UNARMED_MS: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomedRecord:
    name: str
    doomed_at_s: float | None
    """None while the index may still name the packs: not armed yet."""
    segments: tuple[PackSegment, ...]
    stored_at_s: float
    """When it was written last, by the clock of the storage."""


def write_doomed(
    storage: Storage,
    keyring: Keyring,
    algorithm: Aead,
    segments: Iterable[PackSegment],
    doomed_at_s: float | None,
) -> str:
    """Returns the name of the record; it is durable."""
    name = layout.doomed_name(layout.new_object_id())
    storage.put(name, _format(keyring, algorithm, name, segments, doomed_at_s))
    return name


def arm_doomed(
    storage: Storage,
    keyring: Keyring,
    algorithm: Aead,
    name: str,
    segments: Iterable[PackSegment],
    doomed_at_s: float,
) -> None:
    """From this time on nobody finds these packs any more."""
    storage.replace(name, _format(keyring, algorithm, name, segments, doomed_at_s))


def _format(
    keyring: Keyring,
    algorithm: Aead,
    name: str,
    segments: Iterable[PackSegment],
    doomed_at_s: float | None,
) -> bytes:
    doomed_at_ms = UNARMED_MS if doomed_at_s is None else int(doomed_at_s * 1000)
    payload = DOOMED_HEAD.pack(doomed_at_ms) + format_segments(segments)
    return seal(keyring, algorithm, SealedKind.DOOMED, name, payload)


def read_doomed(storage: Storage, keyring: Keyring) -> Iterator[DoomedRecord]:
    """Every doomed record that there is now, one at a time: each may name 50,000 blobs. Raises IntegrityError for
    a damaged one.
    """
    # Names first: who asks may write records meanwhile.
    for entry in list(storage.list(layout.DOOMED)):
        try:
            data = storage.read(entry.name)
        except ObjectNotFoundError:
            continue
        payload = unseal(keyring, SealedKind.DOOMED, entry.name, data)
        if len(payload) < DOOMED_HEAD.size:
            raise IntegrityError(f"{entry.name} is truncated")
        (doomed_at_ms,) = DOOMED_HEAD.unpack_from(payload)
        doomed_at_s = None if doomed_at_ms == UNARMED_MS else doomed_at_ms / 1000
        segments = tuple(parse_segments(payload[DOOMED_HEAD.size :], entry.name))
        yield DoomedRecord(
            name=entry.name,
            doomed_at_s=doomed_at_s,
            segments=segments,
            stored_at_s=entry.modified_at_s,
        )


def bring_back(
    storage: Storage,
    keyring: Keyring,
    algorithm: Aead,
    loader: IndexLoader,
    needed: Collection[bytes],
    now_s: float,
) -> bool:
    """Put doomed packs that hold one of the needed blobs into the index again, where the pack is still
    there. A writer found these blobs before they were doomed. False when there was none.

    The clock of their records begins anew: a prune whose listings do not show the index object or the
    restore point yet must not find them old enough.
    """
    index = loader.index
    back = []
    for record in read_doomed(storage, keyring):
        found = [
            segment
            for segment in record.segments
            if index.pack_size_of(segment.pack_id) is None
            and any(entry.blob_id in needed for entry in segment.entries)
            and is_whole(storage, segment)
        ]
        if found and record.doomed_at_s is not None:
            arm_doomed(storage, keyring, algorithm, record.name, record.segments, now_s)
        back += found
    if back:
        loader.written(write_index_object(storage, keyring, algorithm, back), back)
    return bool(back)


def is_whole(storage: Storage, segment: PackSegment) -> bool:
    """The pack is there with the size that the index tells; or it is where nobody may look now."""
    try:
        return storage.size_bytes(layout.pack_name(segment.pack_id)) == segment.pack_size
    except ObjectNotFoundError:
        return False
    except ExtentOfflineError:
        return True  # the index names it, and its extent is coming back
