"""Which blob is where: the names that the rest of the package uses.

`entries` has the values and their bytes, `index_view` the index that is asked, `index_loader` what keeps
it up to date, `index_cache` the files on this machine (`index_run` reads one, `index_build` makes one),
`index_recent` what is in memory.
"""

from __future__ import annotations

from pipeline.repository.entries import (
    BlobEntry,
    Location,
    PackSegment,
    format_entries,
    format_segments,
    parse_entries,
    parse_segments,
)
from pipeline.repository.index_loader import IndexLoader
from pipeline.repository.index_objects import read_index_object, write_index_object
from pipeline.repository.index_view import Index

__all__ = [
    "BlobEntry",
    "Index",
    "IndexLoader",
    "Location",
    "PackSegment",
    "format_entries",
    "format_segments",
    "parse_entries",
    "parse_segments",
    "read_index_object",
    "write_index_object",
]
