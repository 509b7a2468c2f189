"""The repository's words, as values: no I/O, no pyVmomi, no SQL. Everything may import this."""

from pipeline.model.copies import copied_point, copied_point_id
from pipeline.model.ids import BlobId, RepositoryId, RestorePointId
from pipeline.model.restore_point import (
    Consistency,
    CopiedFrom,
    DiskPoint,
    PointKind,
    RestorePoint,
    VmIdentity,
)
from pipeline.model.stats import BlockCounts, Bottleneck, DiskStats, ReadMode, StageTimes

__all__ = [
    "BlobId",
    "BlockCounts",
    "Bottleneck",
    "Consistency",
    "CopiedFrom",
    "DiskPoint",
    "DiskStats",
    "PointKind",
    "ReadMode",
    "RepositoryId",
    "RestorePoint",
    "RestorePointId",
    "StageTimes",
    "VmIdentity",
    "copied_point",
    "copied_point_id",
]
