"""Bringing a bucket back to an earlier time from its kept versions.

Who has keys that may delete can hide objects of a bucket with object lock behind markers and put other content
on top of them; the kept versions stay. This makes the versions of a given time the current ones again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pipeline.errors import PermanentPipelineError, PipelineError
from pipeline.storage.s3_versions import BucketVersions, ObjectVersion

_SET_ASIDE: Final = ("forgotten/", "doomed/", "index/", "points/", "keys/", "epochs/")
"""Where an object that did not exist at that time may do harm now. Newer packs do none: prune finds that
nothing names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done."""

    uncovered: int
    """Objects that a marker had hidden, or other content had covered."""
    set_aside: int
    """Objects that came later."""
    lost: tuple[str, ...]
    """Names of objects that were there at that time and cannot be brought back."""


def recover_versions(versions: BucketVersions | None, as_of_s: float, location: str) -> Recovered:
    """Make what was current at that Unix time current again. May be repeated.

    Raises PermanentPipelineError for a bucket without versions, and storage errors.
    """
    if versions is None or not versions.is_versioned:
        raise PermanentPipelineError(
            f"{location} keeps no versions of its objects; there is nothing to bring them back from"
        )
    uncovered = set_aside = 0
    lost: list[str] = []
    for name, history in _by_name(versions):
        there = next((version for version in history if version.modified_at_s <= as_of_s), None)
        newest = history[0]
        if there is None or there.is_marker:
            if name.startswith(_SET_ASIDE) and not newest.is_marker:
                versions.hide(name)
                set_aside += 1
        elif newest.is_marker or there.content != newest.content:
            try:
                _make_current(versions, history, there)
            except PipelineError as error:
                if not isinstance(error, PermanentPipelineError):
                    raise
                lost.append(name)
            else:
                uncovered += 1
    return Recovered(uncovered=uncovered, set_aside=set_aside, lost=tuple(lost))


def _make_current(
    versions: BucketVersions, history: list[ObjectVersion], wanted: ObjectVersion
) -> None:
    """Take away what covers it; where that is kept itself, put a copy on top."""
    for version in history:
        if version == wanted:
            return
        try:
            versions.delete_version(version)
        except PermanentPipelineError:
            break
    versions.bring_back(wanted)
    # A copy has no retention of its own until it is given what the original has.
    if versions.is_locked:
        with contextlib.suppress(PermanentPipelineError):
            versions.keep(wanted.name, versions.version_kept_until_s(wanted))


def _by_name(versions: BucketVersions) -> Iterator[tuple[str, list[ObjectVersion]]]:
    """Every object with its versions, newest first."""
    for name, group in groupby(versions.of_prefix(""), key=lambda version: version.name):
        yield name, list(group)
