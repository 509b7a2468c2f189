"""Descriptors of virtual disks."""

from __future__ import annotations

import pytest

from transports.errors import TransportUnavailableError
from transports.vmdk import VmdkExtent, below_datastore, flat_file, parse_descriptor

FLAT = b"""# Disk DescriptorFile
version=4
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 4096 VMFS "db 01-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.uuid = "60 00 C2 9a 41 5f 28 3a-de 3c 6f 9d 0b 1e 0a 4c"
"""
DELTA = b"""# Disk DescriptorFile
CID=12345678
parentCID=fffffffe
createType="seSparse"
parentFileNameHint="db 01.vmdk"
RW 4096 SESPARSE "db 01-000001-sesparse.vmdk"
"""


def test_a_flat_disk_is_one_file_of_so_many_sectors() -> None:
    found = parse_descriptor(FLAT, "[ds] db/db 01.vmdk")
    assert found.create_type == "vmfs"
    assert found.parent == ""
    assert found.extents == (VmdkExtent(length_bytes=2 << 20, kind="VMFS", file="db 01-flat.vmdk"),)
    assert flat_file(found, "[ds] db/db 01.vmdk", 2 << 20) == "db 01-flat.vmdk"


def test_a_delta_names_its_parent_and_is_refused() -> None:
    found = parse_descriptor(DELTA, "[ds] db/db 01-000001.vmdk")
    assert found.parent == "db 01.vmdk"
    with pytest.raises(TransportUnavailableError, match=r"changes since a snapshot.*SESPARSE"):
        flat_file(found, "[ds] db/db 01-000001.vmdk", 2 << 20)


def test_what_fills_the_sector_after_a_descriptor_is_left_out() -> None:
    assert parse_descriptor(FLAT + bytes(300), "x").capacity_bytes == 2 << 20


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"KDMV\x01\0\0\0" + b"x" * 100, "not a disk descriptor but data"),
        (b"#" * (65 << 10), "not a disk descriptor but data"),
        (b"", "names no extent"),
        (b'createType="vmfs"\n', "names no extent"),
        (b'RW 4096 VMFS "a-flat.vmdk"\n', "names no extent or no type"),
    ],
)
def test_what_is_no_descriptor_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(TransportUnavailableError, match=text):
        parse_descriptor(content, "[ds] a/a.vmdk")


@pytest.mark.parametrize(
    ("extents", "text"),
    [
        ('RW 4096 VMFSRDM "a-rdm.vmdk"', "VMFSRDM"),
        ('RW 2048 FLAT "a-f001.vmdk" 0\nRW 2048 FLAT "a-f002.vmdk" 0', "2 extents"),
        ('RW 4096 FLAT "a-flat.vmdk" 128', "not a file beside it"),
        ('RW 4096 VMFS "../b/b-flat.vmdk"', "not a file beside it"),
        ('RW 4096 VMFS "/vmfs/volumes/x/b-flat.vmdk"', "not a file beside it"),
        ('RW 4096 VMFS ".."', "not a file beside it"),
        ("RW 4096 VMFS", "not a file beside it"),
        ('RW 4095 VMFS "a-flat.vmdk"', "resized or replaced"),
        ('RW 4096 VMFSSPARSE "a-delta.vmdk"', "changes since a snapshot"),
    ],
)
def test_only_one_flat_file_of_the_right_size_will_do(extents: str, text: str) -> None:
    found = parse_descriptor(f'createType="x"\n{extents}\n'.encode(), "[ds] a/a.vmdk")
    with pytest.raises(TransportUnavailableError, match=text):
        flat_file(found, "[ds] a/a.vmdk", 2 << 20)


def test_paths_below_a_datastore() -> None:
    assert below_datastore("[ds 1] dir one/a]b.vmdk") == "dir one/a]b.vmdk"
    assert below_datastore("[ds]a.vmdk") == "a.vmdk"


@pytest.mark.parametrize(
    "path", ["a.vmdk", "[ds]", "[ds] ", "[ds] ../a.vmdk", "[ds] a/../../b.vmdk", ""]
)
def test_what_is_no_datastore_path_is_refused(path: str) -> None:
    with pytest.raises(TransportUnavailableError, match="not a file of a datastore"):
        below_datastore(path)
