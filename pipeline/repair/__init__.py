"""Self-repair: what a repository lost is brought back from where it still is, and compared with its id.

A **place** is a blob in a pack. A place is *sound* when its bytes decode to the blob's id. A blob is *lost*
when a restore point needs it and no place of it is sound. A **source** is another repository that holds
the same restore point: a copy, or what this one is a copy of. What comes from it is taken only when its
keyed hash is the id that was lost, so a source can be wrong or old without doing harm.

Afterwards no index object names a damaged pack. Blobs that could not be brought back are then unknown to
the index, so a backup that meets their content again stores it again, and the old restore points are
whole again: that is how the live disk repairs.
"""

from pipeline.repair.sources import PointSource
from pipeline.repair.work import LostExtent, RepairReport, repair

__all__ = ["LostExtent", "PointSource", "RepairReport", "repair"]
