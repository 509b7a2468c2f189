"""VMFS 5 and 6 volumes on LUN images, written from nothing but what readers of VMFS know.

A *LUN* is a sparse file that stands for a disk of a storage array. A *volume* spans one or more LUNs and
holds *files* below directories. File blocks are 1 MiB; what a file's bytes are made of is its *placement*:
runs of blocks, some of them *to be zeroed* (mapped, but readers must give zeros), the rest holes.

Promised: independent readers find every file with its bytes. Not promised: that an ESXi host would mount
the volume (locks, heartbeats and journals are empty, VMFS 6 resource bitmaps are not written).
"""

from vmhaul_lab.vmfs.values import Allocation, FileSpec, Lun, Partitioning, PlacedFile, Placement
from vmhaul_lab.vmfs.volume import VmfsVolume

__all__ = [
    "Allocation",
    "FileSpec",
    "Lun",
    "Partitioning",
    "PlacedFile",
    "Placement",
    "VmfsVolume",
]
