"""A disk from its descriptor down to the base: one map over the whole chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.runs import MapError, RunMap, compose, concat, overlay, window
from transports.direct_san.sparse import sparse_runs
from transports.errors import TransportUnavailableError
from transports.vmdk import (
    FLAT_KINDS,
    MAX_DESCRIPTOR_BYTES,
    VmdkDescriptor,
    VmdkExtent,
    is_plain_name,
    parse_descriptor,
)

_LONGEST_CHAIN: Final = 256
"""vSphere stops at 32 snapshots; linked clones stand on more."""
_VOLUMES: Final = "/vmfs/volumes/"
_SPARSE_KINDS: Final = frozenset({"VMFSSPARSE", "SESPARSE"})
_LARGEST_EXTENT_BYTES: Final = 64 << 40


class ChainFile(Protocol):
    """A file of the volume, as far as a chain needs it."""

    size_bytes: int

    def runs(self) -> RunMap: ...
    def read(self, offset: int, length: int) -> bytes: ...


FindFile = Callable[[str], ChainFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedDisk:
    runs: RunMap
    """The whole disk; ABSENT is nowhere: what no file of the chain holds is zeros."""
    links: tuple[str, ...]
    """Paths of the descriptors, the opened one first."""
    has_sparse: bool


def resolve_disk(find: FindFile, path: str, names: frozenset[str]) -> ResolvedDisk:
    """Follow a disk from the descriptor at `path` (below the volume's root) to its base.

    `names`: what the volume is called in paths of parents: its uuid, label and the datastore's name.
    DamagedMetadataError, NotForSanError.
    """
    links: list[str] = []
    levels: list[RunMap] = []
    has_sparse = False
    expected_cid = ""
    while True:
        if path in links or len(links) >= _LONGEST_CHAIN:
            raise DamagedMetadataError(f"the chain of {links[0]} goes round at {path}")
        descriptor = _descriptor(find(path), path)
        if links and descriptor.cid != expected_cid:
            raise DamagedMetadataError(
                f"{path} was changed after {links[-1]} was made from it (CID {descriptor.cid}, expected {expected_cid})"
            )
        links.append(path)
        levels.append(_level(find, path, descriptor))
        has_sparse = has_sparse or any(extent.kind not in FLAT_KINDS for extent in descriptor.extents)
        if not descriptor.parent_cid:
            break
        expected_cid = descriptor.parent_cid
        path = parent_path(path, descriptor.parent, names)
    runs = levels.pop()
    for child in reversed(levels):
        runs = overlay(child, runs)
    return ResolvedDisk(runs=runs, links=tuple(links), has_sparse=has_sparse)


def parent_path(child: str, hint: str, names: frozenset[str]) -> str:
    """Path of a parent from what its child's descriptor says. NotForSanError for one on another datastore."""
    if not hint:
        raise DamagedMetadataError(f"{child} has a parent and does not name it")
    if hint.startswith("/"):
        volume, _, below = hint.removeprefix(_VOLUMES).partition("/")
        if not hint.startswith(_VOLUMES) or not below:
            raise NotForSanError(f"has its parent at {hint}, which is on no datastore")
        if volume not in names:
            raise NotForSanError(f"has its parent at {hint}, on another datastore")
        return _plain(below, hint)
    directory, _, _ = child.rpartition("/")
    return _plain(f"{directory}/{hint}" if directory else hint, hint)


def _plain(path: str, hint: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise DamagedMetadataError(f"the parent {hint} is outside of the volume")
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _descriptor(file: ChainFile, path: str) -> VmdkDescriptor:
    if not 0 < file.size_bytes <= MAX_DESCRIPTOR_BYTES:
        raise DamagedMetadataError(f"{path} has {file.size_bytes} bytes and is no descriptor")
    try:
        descriptor = parse_descriptor(file.read(0, file.size_bytes), path)
    except TransportUnavailableError as error:
        # May be a block that ESXi is about to fill: worth another look.
        raise DamagedMetadataError(str(error)) from error
    if descriptor.is_encrypted:
        raise NotForSanError("is encrypted: its blocks on the LUN are of no use without the host")
    if descriptor.filters:
        raise NotForSanError(
            f"has I/O filters ({descriptor.filters}), which may keep data beside the disk's files"
        )
    for extent in descriptor.extents:
        _check_extent(extent)
    return descriptor


def _check_extent(extent: VmdkExtent) -> None:
    if "RDM" in extent.kind or "RAW" in extent.kind:
        raise NotForSanError("is a raw device mapping: its data is not on the datastore")
    if extent.kind not in FLAT_KINDS | _SPARSE_KINDS:
        raise NotForSanError(f"has an extent of type {extent.kind}, which direct SAN does not read")
    if not is_plain_name(extent.file):
        raise NotForSanError(
            f"has its data in {extent.file!r}, which is not a file beside its descriptor"
        )
    if not 0 < extent.length_bytes <= _LARGEST_EXTENT_BYTES:
        raise DamagedMetadataError(f"{extent.file} is said to have {extent.length_bytes} bytes")


def _level(find: FindFile, path: str, descriptor: VmdkDescriptor) -> RunMap:
    """One descriptor's own map of the disk, on LUNs."""
    directory, _, _ = path.rpartition("/")
    parts = []
    for extent in descriptor.extents:
        file = find(f"{directory}/{extent.file}" if directory else extent.file)
        try:
            parts.append(_extent(file, extent))
        except MapError as error:
            raise DamagedMetadataError(f"{extent.file} is not whole: {error}") from error
    return concat(parts)


def _extent(file: ChainFile, extent: VmdkExtent) -> RunMap:
    if extent.kind in FLAT_KINDS:
        return window(file.runs(), extent.offset_bytes, extent.length_bytes)
    if extent.offset_bytes:
        raise DamagedMetadataError(
            f"{extent.file} is a delta that begins at byte {extent.offset_bytes}"
        )
    grains = sparse_runs(extent.kind, file.read, file.size_bytes, extent.length_bytes)
    return compose(grains, file.runs())
