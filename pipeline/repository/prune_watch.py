"""Whether a prune may still act on what it found when it began.

One that stood still (its machine was suspended, its server stopped) may wake up when another server has gone on in its
place. It finds what that one did in the storage alone: so it looks there before each step that takes something out of
the index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from pipeline.errors import StorageUnavailableError
from pipeline.repository import layout
from pipeline.repository.catalogue import Catalogue
from pipeline.repository.doomed import is_whole
from pipeline.repository.index import PackSegment
from pipeline.storage.base import Storage

LOOK_LASTS_S: Final = 1.0
"""So long a look counts while many objects are deleted one after the other."""


class PruneWatch:
    """Of one run. Every refusal is a StorageUnavailableError: a prune that begins anew finds what is there now."""

    def __init__(self, storage: Storage, catalogue: Catalogue, clock: Callable[[], float]) -> None:
        """`catalogue`: the restore points by which the run goes."""
        self._storage = storage
        self._known = {
            layout.point_name(point_id) for point_id in (*catalogue.points, *catalogue.left_over)
        }
        self._clock = clock
        self._looked_at_s: float | None = None

    def refuse_new_points(self) -> None:
        """When a restore point is there that the run does not know: it may need what the run takes away."""
        for entry in self._storage.list(layout.POINTS):
            if entry.name not in self._known:
                raise self._refusal(f"{entry.name} was stored after it had begun")
        self._looked_at_s = self._clock()

    def refuse_new_points_again(self) -> None:
        """The same, unless that was looked at a moment ago."""
        looked_at_s = self._looked_at_s
        if looked_at_s is None or not 0 <= self._clock() - looked_at_s < LOOK_LASTS_S:
            self.refuse_new_points()

    def refuse_gone(self, read: Collection[str], written: Collection[str] = ()) -> None:
        """When another prune took away index objects that the run read, or what it wrote since."""
        gone = {*read, *written} - {entry.name for entry in self._storage.list(layout.INDEX)}
        if written:
            gone -= {entry.name for entry in self._storage.list(layout.DOOMED)}
        if gone:
            raise self._refusal(f"{min(gone)} was there, and was replaced meanwhile")

    def refuse_lost(self, made: Iterable[PackSegment]) -> None:
        """When a pack that the run wrote is gone: while no index object named it, it looked like an orphan."""
        for segment in made:
            if not is_whole(self._storage, segment):
                name = layout.pack_name(segment.pack_id)
                raise self._refusal(f"{name}, which it had written, was deleted meanwhile")

    def _refusal(self, why: str) -> StorageUnavailableError:
        return StorageUnavailableError(
            f"this prune of {self._storage.location} ends: {why}. It stood still, or another server uses the "
            "repository too. No pack was deleted; prune again with the server that leads, and let one alone use a "
            "repository"
        )
