"""A partition of a LUN as something that can be read from: at offsets, and as a stream for the library."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Final

from transports.direct_file import DirectFile
from transports.direct_san.errors import DamagedMetadataError

_PAGE_BYTES: Final = 64 << 10
"""What is asked of the LUN at once: a pointer block of VMFS 6."""
_PAGES_KEPT: Final = 256
_MOST_READS: Final = 20_000_000
"""A volume of 64 TiB takes less than a million. What asks for more goes round in damaged metadata."""


class PartitionView(io.RawIOBase):
    """A read-only stream of `length` bytes from `offset` of a file. Keeps pages, so it is for one look at
    metadata: a new look takes a new view. Does not own the file.

    Also the guard against circles in damaged metadata: after very many reads it raises DamagedMetadataError.
    """

    def __init__(self, file: DirectFile, offset: int, length: int) -> None:
        super().__init__()
        self.file = file
        self.offset = offset
        self.length = length
        self._at = 0
        self._reads = 0
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise DamagedMetadataError(f"metadata points to byte {base + offset} of {self.file.path}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Fewer bytes at the end of the partition, as files do."""
        size = self.length - self._at if size < 0 else size
        size = max(0, min(size, self.length - self._at))
        if size > _PAGE_BYTES * _PAGES_KEPT:
            raise DamagedMetadataError(f"metadata of {size} bytes at {self._at} of {self.file.path}")
        parts = []
        left = size
        while left:
            page, skip = divmod(self._at, _PAGE_BYTES)
            part = self._page(page)[skip : skip + left]
            parts.append(part)
            self._at += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def exactly(self, offset: int, length: int) -> bytes:
        """The whole range, or DamagedMetadataError."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise DamagedMetadataError(
                f"metadata points to [{offset}, +{length}) of {self.file.path}, which has {self.length} bytes"
            )
        self.seek(offset)
        return self.read(length)

    def _page(self, number: int) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise DamagedMetadataError(f"metadata of {self.file.path} has no end: it points in circles")
        page = self._pages.get(number)
        if page is None:
            start = number * _PAGE_BYTES
            room = bytearray(min(_PAGE_BYTES, self.length - start))
            self.file.read_into(self.offset + start, memoryview(room))
            page = self._pages[number] = bytes(room)
            if len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(number)
        return page
