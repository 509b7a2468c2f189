"""Index objects: section 6 of the format."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.repository import layout
from pipeline.repository.entries import PackSegment, format_segments, parse_segments
from pipeline.repository.format import SealedKind
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Storage


def read_index_object(storage: Storage, keyring: Keyring, name: str) -> list[PackSegment]:
    return parse_segments(unseal(keyring, SealedKind.INDEX, name, storage.read(name)), name)


def write_index_object(
    storage: Storage, keyring: Keyring, algorithm: Aead, segments: Iterable[PackSegment]
) -> str:
    """Returns the name of the object; it is durable."""
    name = layout.index_name(layout.new_object_id())
    storage.put(name, seal(keyring, algorithm, SealedKind.INDEX, name, format_segments(segments)))
    return name
