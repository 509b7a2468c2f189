"""The extents of a scale-out repository: how a location names them, and what is done with whole extents."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import uuid4

from pipeline.errors import (
    CancelledError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectRetainedError,
    PermanentPipelineError,
    StorageMissingError,
)
from pipeline.storage.base import Storage, StoredObject
from pipeline.storage.scale_out import (
    MARKER,
    PACKS,
    SCHEME,
    SINGLE_NAMES,
    SMALL_PREFIXES,
    Extent,
    ScaleOutStorage,
    copy_small,
    holds,
)

COPY_BYTES: Final = 8 << 20
OpenOne = Callable[[str], Storage]
"""Opens the storage at the location of one extent."""


class ExtentState(StrEnum):
    ACTIVE = "active"
    SEALED = "sealed"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentConfig:
    """One extent as a location tells it."""

    name: str
    location: str
    state: ExtentState = ExtentState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuation:
    """What moving an extent's packs away did."""

    moved_packs: int
    moved_bytes: int
    kept_packs: int
    """Copied, and still in the extent too: its storage keeps them until a time to come."""


# ---- locations -------------------------------------------------------------------------------------


def is_scale_out(location: str) -> bool:
    return location.startswith(SCHEME)


def parse_location(location: str) -> tuple[ExtentConfig, ...]:
    """The extents of a location: `scale-out:` and a JSON list of {"name", "location", "state"}."""
    try:
        extents = tuple(
            ExtentConfig(
                name=_text(row["name"]),
                location=_text(row["location"]),
                state=ExtentState(row.get("state", ExtentState.ACTIVE)),
            )
            for row in json.loads(location.removeprefix(SCHEME))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PermanentPipelineError(
            f"location {location!r} is not {SCHEME} and a JSON list of extents with name and location"
        ) from error
    names = {extent.name for extent in extents}
    places = {extent.location for extent in extents}
    if not extents or len(names) < len(extents) or len(places) < len(extents):
        raise PermanentPipelineError(
            f"location {location!r} must name at least one extent, each name and each place once"
        )
    if any(is_scale_out(place) for place in places):
        raise PermanentPipelineError("an extent of a scale-out repository cannot be one itself")
    return extents


def format_location(extents: Iterable[ExtentConfig]) -> str:
    rows = [{"name": e.name, "location": e.location, "state": e.state.value} for e in extents]
    return SCHEME + json.dumps(rows)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a text that is not empty is needed")
    return value


# ---- opening ---------------------------------------------------------------------------------------


def open_scale_out(location: str, open_one: OpenOne, *, create: bool = False) -> ScaleOutStorage:
    """All extents that are not in maintenance. `create` marks places that bear no mark yet.

    Raises StorageMissingError for an extent that is not there, or that is another one.
    """
    configs = parse_location(location)
    online = [config for config in configs if config.state is not ExtentState.MAINTENANCE]
    extents = []
    for config in online:
        try:
            storage = open_one(config.location)
        except StorageMissingError as error:
            raise StorageMissingError(
                f"extent {config.name!r} is not there: {error}. Bring it back, or set it to maintenance"
            ) from error
        is_active = config.state is ExtentState.ACTIVE
        extents.append(Extent(name=config.name, storage=storage, is_active=is_active))
    _check_marks(extents, create=create)
    offline = [config.name for config in configs if config.state is ExtentState.MAINTENANCE]
    return ScaleOutStorage(extents, offline=offline)


def _check_marks(extents: list[Extent], *, create: bool) -> None:
    marks = [_read_mark(extent.storage) for extent in extents]
    sets = {mark[0] for mark in marks if mark is not None}
    if len(sets) > 1:
        raise StorageMissingError(
            f"extents {', '.join(repr(extent.name) for extent in extents)} belong to different "
            "repositories; correct their locations"
        )
    set_id = sets.pop() if sets else uuid4().hex
    for extent, mark in zip(extents, marks, strict=True):
        if mark is None and create:
            _write_mark(extent.storage, set_id, extent.name)
        elif mark is None:
            raise StorageMissingError(
                f"{extent.storage.location} bears no mark of extent {extent.name!r}: is its file system "
                "mounted? `vmhaul repository extent add` makes a place an extent"
            )
        elif mark[1] != extent.name:
            raise StorageMissingError(
                f"{extent.storage.location} is extent {mark[1]!r} and not {extent.name!r}; correct the "
                "locations"
            )


def _read_mark(storage: Storage) -> tuple[str, str] | None:
    try:
        data = json.loads(storage.read(MARKER))
        return str(data["set"]), str(data["extent"])
    except ObjectNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{MARKER} in {storage.location} is damaged: {error}") from error


def _write_mark(storage: Storage, set_id: str, name: str) -> None:
    storage.replace(MARKER, json.dumps({"extent": name, "set": set_id}).encode())


# ---- whole extents ---------------------------------------------------------------------------------


def add_extent(
    location: str, new: ExtentConfig, open_one: OpenOne, create_one: OpenOne, *, first_name: str
) -> str:
    """Make a place an extent; the new location. A repository that is not scale-out yet becomes so, its own
    place as extent `first_name`. May be done again after it broke off.

    Raises PermanentPipelineError for a place that holds something else.
    """
    if is_scale_out(location):
        old = parse_location(location)
    else:
        old = (ExtentConfig(name=first_name, location=location),)
    after = format_location((*old, new))
    parse_location(after)  # names and places are taken once
    view = open_scale_out(format_location(old), open_one, create=not is_scale_out(location))
    set_id = (_read_mark(view.extents[0].storage) or ("", ""))[0]
    storage = create_one(new.location)
    mark = _read_mark(storage)
    if mark is not None and mark != (set_id, new.name):
        raise PermanentPipelineError(
            f"{new.location} is an extent of another repository, or of this one under the name "
            f"{mark[1]!r}; choose an empty place"
        )
    if mark is None and any(holds(storage, name) for name in SINGLE_NAMES):
        raise PermanentPipelineError(f"{new.location} holds a repository; choose an empty place")
    _write_mark(storage, set_id, new.name)
    level(view, storage)
    return after


def level(view: ScaleOutStorage, target: Storage) -> None:
    """Make the small objects of an extent that was away those of the others: what came is copied, what
    went is deleted. Nobody may write to the repository meanwhile.
    """
    there = set(view.small_names())
    for name in _small_of(target):
        if name not in there:
            target.delete(name)
    for name in sorted(there):
        copy_small(view, target, name)


def activate(location: str, name: str, open_one: OpenOne) -> str:
    """The location with the extent active again, after what it missed was brought over. Of one that was in
    maintenance, what the others deleted meanwhile is deleted too.
    """
    configs = parse_location(location)
    others = [config for config in configs if config.name != name]
    [config] = [config for config in configs if config.name == name]
    active = ExtentConfig(name=config.name, location=config.location)
    if config.state is not ExtentState.MAINTENANCE:
        view = open_scale_out(location, open_one)
        target = _extent(view, name).storage
        for small in sorted(view.small_names()):
            copy_small(view, target, small)
    elif any(other.state is not ExtentState.MAINTENANCE for other in others):
        view = open_scale_out(format_location(others), open_one)
        [back] = open_scale_out(format_location([active]), open_one).extents
        _check_marks([*view.extents, back], create=False)
        level(view, back.storage)
    return format_location(active if config.name == name else config for config in configs)


def evacuate(
    storage: ScaleOutStorage, name: str, *, cancel: threading.Event | None = None
) -> Evacuation:
    """Move everything of a sealed extent to the active ones. What is moved is deleted only when its copy is
    durable, so it may be ended at any time and be begun again.
    """
    extent = _extent(storage, name)
    if extent.is_active:
        raise PermanentPipelineError(f"extent {name!r} accepts new data; seal it first")
    moved = moved_bytes = kept = 0
    for entry in list(extent.storage.list(PACKS)):
        if cancel is not None and cancel.is_set():
            raise CancelledError(f"evacuating extent {name!r} was cancelled; begin again to go on")
        if _is_elsewhere(storage, extent, entry):
            holder = next(
                e for e in storage.extents if e is not extent and holds(e.storage, entry.name)
            )
        else:
            holder = _copy_pack(storage, extent, entry)
            moved += 1
            moved_bytes += entry.size_bytes
        _keep_as_long(extent.storage, holder.storage, entry.name)
        try:
            extent.storage.delete(entry.name)
        except ObjectRetainedError:
            kept += 1
    for small in _small_of(extent.storage):
        for other in storage.extents:
            if other.is_active:
                copy_small(storage, other.storage, small)
    return Evacuation(moved_packs=moved, moved_bytes=moved_bytes, kept_packs=kept)


def packs_nowhere_else(storage: ScaleOutStorage, name: str) -> int:
    """How many packs would be lost with an extent."""
    extent = _extent(storage, name)
    return sum(not _is_elsewhere(storage, extent, entry) for entry in extent.storage.list(PACKS))


def retire(storage: ScaleOutStorage, name: str) -> None:
    """Take the marks of the repository off an extent that holds nothing alone any more."""
    extent = _extent(storage, name)
    for small in (*_small_of(extent.storage), MARKER):
        try:
            extent.storage.delete(small)
        except ObjectRetainedError:
            continue  # it goes when its time is over; nothing of it counts


def _copy_pack(storage: ScaleOutStorage, extent: Extent, entry: StoredObject) -> Extent:
    target = storage.roomiest()
    writer = target.storage.create(entry.name)
    try:
        for at in range(0, entry.size_bytes, COPY_BYTES):
            length = min(COPY_BYTES, entry.size_bytes - at)
            writer.write([extent.storage.read_range(entry.name, at, length)])
        writer.commit()
    except ObjectExistsError:
        pass  # compared below
    finally:
        writer.abort()
    if target.storage.size_bytes(entry.name) != entry.size_bytes:
        raise IntegrityError(
            f"{entry.name} has another size in extent {target.name!r} than in {extent.name!r}; "
            "run a check of the repository"
        )
    storage.placed(entry.name, target, entry.size_bytes)
    return target


def _keep_as_long(source: Storage, target: Storage, name: str) -> None:
    if source.retention is None or target.retention is None:
        return
    until_s = source.retention.kept_until_s(name)
    if until_s > target.retention.kept_until_s(name):
        target.retention.keep(name, until_s)


def _is_elsewhere(storage: ScaleOutStorage, extent: Extent, entry: StoredObject) -> bool:
    for other in storage.extents:
        if other is extent:
            continue
        try:
            if other.storage.size_bytes(entry.name) == entry.size_bytes:
                return True
        except ObjectNotFoundError:
            continue
    return False


def _small_of(storage: Storage) -> Iterator[str]:
    for name in SINGLE_NAMES:
        if holds(storage, name):
            yield name
    for prefix in SMALL_PREFIXES:
        yield from [entry.name for entry in storage.list(prefix)]


def _extent(storage: ScaleOutStorage, name: str) -> Extent:
    for extent in storage.extents:
        if extent.name == name:
            return extent
    raise PermanentPipelineError(
        f"there is no extent {name!r} that is online; there are "
        f"{', '.join(repr(extent.name) for extent in storage.extents)}"
    )
