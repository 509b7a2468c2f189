"""One place of one blob in 32 bytes, as the tables in memory and the cache files hold it.

| bytes | what |
|---|---|
| 16 | the first half of the blob id |
| 4 | number of the pack in its table |
| 4 | offset in the pack; kind in the two highest bits |
| 4 | length; encoding in the two highest bits |
| 4 | 1 + position of the base's id in the table of base ids; 0 where there is none |

Packs are at most 1 GiB, so offsets and lengths leave two bits. 32 bytes divide a page evenly.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

KEY_BYTES: Final = 16
VALUE: Final = Struct("<IIII")
RECORD_BYTES: Final = KEY_BYTES + VALUE.size
FIELD_BITS: Final = 30  # 1 GiB - 1
FIELD_MASK: Final = (1 << FIELD_BITS) - 1
"""A pack of exactly 1 GiB has no blob that begins at its end, and none as long as itself."""


def pack_value(pack: int, offset: int, kind: int, length: int, encoding: int, base: int) -> bytes:
    return VALUE.pack(pack, offset | kind << FIELD_BITS, length | encoding << FIELD_BITS, base)
