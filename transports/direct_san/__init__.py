"""Direct storage access over SAN: disks on VMFS read from, and written to, the LUNs that this machine sees.

Words: a **LUN** is a disk of the storage, a **volume** is what VMFS makes of one or more partitions of LUNs, a
**run** is a part of a disk in one piece, a **chain** is a disk with its parents. A disk's metadata is read once, when
it is opened: the path walked to the descriptor, its chain followed to the base, every file's blocks and every
delta's grains turned into one map. From then on the LUN is read along that map, without looking at VMFS again.

Promises: nothing is ever written but the bytes of blocks that a restored disk has already; what is not understood
is not read (`TransportUnavailableError` with the reason: another mode may). Does not promise to see changes of a
disk that a running VM writes: a snapshot must freeze the path, and be made before the disk is opened.

The file system is parsed by dissect.vmfs, which is an optional extra of the installation.
"""

from __future__ import annotations

from transports.direct_san.access import missing, open_reader, open_writer
from transports.direct_san.probing import probe

__all__ = ["missing", "open_reader", "open_writer", "probe"]
