from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.support.deltas import ZERO_GRAIN, cowd, descriptor, sesparse
from transports.direct_san.chain import parent_path, resolve_disk
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.runs import Kind, RunMap, make_map

DISK = 1 << 20
NAMES = frozenset({"5f3b2c1a-8d7e6f50-1c2d-0050569a0001", "ds1"})


class MemoryFile:
    """Lies on a LUN of its own, in two halves the wrong way round."""

    def __init__(self, content: bytes, device: int) -> None:
        self.content = content
        self.device = device
        self.size_bytes = len(content)

    def runs(self) -> RunMap:
        half = self.size_bytes // 2
        if not half:
            return make_map(self.size_bytes, [0], [Kind.DATA], [0], [self.device])
        rest = self.size_bytes - half
        return make_map(
            self.size_bytes, [0, half], [Kind.DATA] * 2, [rest, 0], [self.device, self.device]
        )

    def on_lun(self) -> bytes:
        half = self.size_bytes // 2
        return self.content[half:] + self.content[:half]

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size_bytes:
            raise DamagedMetadataError(f"[{offset}, +{length}) of {self.size_bytes} bytes")
        return self.content[offset : offset + length]


class Files:
    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = [MemoryFile(content, number) for number, content in enumerate(files.values())]
        self.by_path = dict(zip(files, self.files, strict=True))

    def find(self, path: str) -> MemoryFile:
        if path not in self.by_path:
            raise NotForSanError(f"is not at {path}")
        return self.by_path[path]

    def shown(self, path: str) -> bytes:
        """What the disk holds, read along its map."""
        found = resolve_disk(self.find, path, NAMES)
        out = bytearray()
        for _, length, kind, device, target in found.runs.rows():
            if kind is Kind.DATA:
                out += self.files[device].on_lun()[target : target + length]
            else:
                out += bytes(length)
        return bytes(out)


def flat(name: str = "a-flat.vmdk", **more: str) -> bytes:
    return descriptor((DISK, "VMFS", name), **more)


BASE = bytes(range(256)) * (DISK // 256)


def test_a_flat_disk_is_its_file() -> None:
    files = Files({"vm/a.vmdk": flat(), "vm/a-flat.vmdk": BASE})
    assert files.shown("vm/a.vmdk") == BASE
    found = resolve_disk(files.find, "vm/a.vmdk", NAMES)
    assert (found.links, found.has_sparse) == (("vm/a.vmdk",), False)


def test_a_disk_at_the_root_of_its_datastore() -> None:
    assert Files({"a.vmdk": flat(), "a-flat.vmdk": BASE}).shown("a.vmdk") == BASE


def test_a_chain_of_both_kinds_of_deltas() -> None:
    older = {0: b"older 0", 3: b"older 3", 5: b"older 5"}
    newer = {3: b"newer 3", 5: ZERO_GRAIN, 255: b"newer 255"}
    files = Files(
        {
            "vm/a-2.vmdk": descriptor(
                (DISK, "SESPARSE", "a-2-sesparse.vmdk"),
                cid="3",
                parent_cid="2",
                parent="a-1.vmdk",
            ),
            "vm/a-2-sesparse.vmdk": sesparse(DISK, newer),
            "vm/a-1.vmdk": descriptor(
                (DISK, "VMFSSPARSE", "a-1-delta.vmdk"),
                cid="2",
                parent_cid="1",
                parent="/vmfs/volumes/ds1/base/a.vmdk",
            ),
            "vm/a-1-delta.vmdk": cowd(DISK, older),
            "base/a.vmdk": flat(cid="1"),
            "base/a-flat.vmdk": BASE,
        }
    )
    expected = bytearray(BASE)
    for number, text in ((0, b"older 0"), (3, b"newer 3"), (5, b""), (255, b"newer 255")):
        expected[number * 4096 : (number + 1) * 4096] = text.ljust(4096, b"\0")
    assert files.shown("vm/a-2.vmdk") == bytes(expected)
    found = resolve_disk(files.find, "vm/a-2.vmdk", NAMES)
    assert found.links == ("vm/a-2.vmdk", "vm/a-1.vmdk", "base/a.vmdk")
    assert found.has_sparse


def test_a_disk_in_several_files() -> None:
    half = DISK // 2
    text = descriptor((half, "VMFS", "a-f1.vmdk"), (half, "VMFS", "a-f2.vmdk"))
    files = Files({"a.vmdk": text, "a-f1.vmdk": BASE[:half], "a-f2.vmdk": BASE[half:]})
    assert files.shown("a.vmdk") == BASE


def test_a_delta_of_a_larger_disk_than_its_parent() -> None:
    """Disks with a snapshot cannot grow in vSphere, but clones of them may: what the parent lacks is zeros."""
    text = descriptor((2 * DISK, "SESPARSE", "b.se"), cid="2", parent_cid="1", parent="a.vmdk")
    files = Files(
        {
            "b.vmdk": text,
            "b.se": sesparse(2 * DISK, {300: b"new"}),
            "a.vmdk": flat(cid="1"),
            "a-flat.vmdk": BASE,
        }
    )
    expected = bytearray(BASE + bytes(DISK))
    expected[300 * 4096 : 300 * 4096 + 3] = b"new"
    assert files.shown("b.vmdk") == bytes(expected)


@pytest.mark.parametrize(
    ("hint", "path"),
    [
        ("a.vmdk", "vm/a.vmdk"),
        ("../base/a.vmdk", "base/a.vmdk"),
        ("/vmfs/volumes/ds1/base/a.vmdk", "base/a.vmdk"),
        ("/vmfs/volumes/5f3b2c1a-8d7e6f50-1c2d-0050569a0001/a.vmdk", "a.vmdk"),
    ],
)
def test_where_a_parent_is(hint: str, path: str) -> None:
    assert parent_path("vm/b.vmdk", hint, NAMES) == path


@pytest.mark.parametrize(
    ("hint", "error", "says"),
    [
        ("", DamagedMetadataError, "does not name it"),
        ("../../a.vmdk", DamagedMetadataError, "outside of the volume"),
        ("/vmfs/volumes/other/base/a.vmdk", NotForSanError, "another datastore"),
        ("/somewhere/a.vmdk", NotForSanError, "no datastore"),
        ("/vmfs/volumes/ds1", NotForSanError, "no datastore"),
    ],
)
def test_a_parent_that_is_not_there(hint: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parent_path("vm/b.vmdk", hint, NAMES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (flat(more='ddb.iofilters = "vmwarevmcrypt"\n'), "encrypted"),
        (flat(more='encryptionKeys = "vmware:key/list/…"\n'), "encrypted"),
        (flat(more='ddb.iofilters = "VMW_cache_1.0.0"\n'), "I/O filters"),
        (flat(more='ddb.sidecars = "cache_1,a-1.vmfd;"\n'), "I/O filters"),
        (descriptor((DISK, "VMFSRDM", "a-rdm.vmdk")), "raw device mapping"),
        (descriptor((DISK, "VMFSRAW", "a-rdmp.vmdk")), "raw device mapping"),
        (descriptor((DISK, "SPARSE", "a.vmdk")), "type SPARSE"),
        (descriptor((DISK, "ZERO", "")), "type ZERO"),
        (descriptor((DISK, "VMFS", "/vmfs/devices/disks/x")), "not a file beside"),
        (descriptor((DISK, "VMFS", "gone-flat.vmdk")), "is not at a/gone-flat"),
    ],
)
def test_a_disk_that_is_for_another_mode(text: bytes, says: str) -> None:
    files = Files({"a/a.vmdk": text, "a/a.vmdk-flat": BASE})
    with pytest.raises(NotForSanError, match=says):
        resolve_disk(files.find, "a/a.vmdk", NAMES)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.vmdk": b""}, "0 bytes and is no descriptor"),
        ({"a.vmdk": bytes(1 << 20)}, "is no descriptor"),
        ({"a.vmdk": bytes(4096)}, "not a disk descriptor"),
        ({"a.vmdk": b"# Disk DescriptorFile\n"}, "names no extent"),
        ({"a.vmdk": flat().replace(b"RW 2048 VMFS", b"RW all VMFS")}, "not understood"),
        ({"a.vmdk": flat(), "a-flat.vmdk": BASE[:-512]}, "not whole"),
        ({"a.vmdk": flat(cid="1", parent_cid="1", parent="a.vmdk"), "a-flat.vmdk": BASE}, "goes round"),
        (
            {
                "a.vmdk": descriptor((DISK, "SESPARSE", "a.se"), parent_cid="9", parent="b.vmdk"),
                "a.se": sesparse(DISK, {}),
                "b.vmdk": flat("b-flat.vmdk", cid="8"),
                "b-flat.vmdk": BASE,
            },
            "was changed after",
        ),
        (
            {
                "a.vmdk": descriptor((2 * DISK, "SESPARSE", "a.se")),
                "a.se": sesparse(DISK, {}),
            },
            "its descriptor says",
        ),
    ],
)
def test_metadata_that_makes_no_sense(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(DamagedMetadataError, match=says):
        resolve_disk(Files(files).find, "a.vmdk", NAMES)
