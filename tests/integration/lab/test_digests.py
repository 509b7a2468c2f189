"""Digests see content alone, not holes. Nothing here needs root."""

import hashlib
import random
from pathlib import Path

import pytest
from vmhaul_lab import day, images, verify
from vmhaul_lab.content import MIB
from vmhaul_lab.errors import LabError
from vmhaul_lab.images import Content, DiskPlan

pytestmark = pytest.mark.lab


def sparse_and_full(directory: Path, seed: int) -> tuple[Path, Path]:
    rng = random.Random(seed)
    holes, full = directory / "holes", directory / "full"
    size = rng.randrange(1, 5 * MIB)
    content = bytearray(size)
    with holes.open("wb") as file:
        file.truncate(size)
        for _ in range(rng.randrange(12)):
            at = rng.randrange(size)
            piece = rng.randbytes(min(rng.randrange(1, 200_000), size - at))
            if rng.random() < 0.3:
                piece = bytes(len(piece))
            content[at : at + len(piece)] = piece
            file.seek(at)
            file.write(piece)
    full.write_bytes(content)
    return holes, full


@pytest.mark.parametrize("seed", range(20))
def test_holes_and_zeros_have_one_digest(tmp_path: Path, seed: int) -> None:
    holes, full = sparse_and_full(tmp_path, seed)
    assert verify.sha256(holes) == hashlib.sha256(full.read_bytes()).hexdigest()
    assert verify.sha256(full) == verify.sha256(holes)
    assert verify.content_digest(full) == verify.content_digest(holes)


def test_content_digest_sees_place_size_and_bytes(tmp_path: Path) -> None:
    base = bytes(3 * MIB)

    def digest_of(content: bytes) -> str:
        path = tmp_path / "file"
        path.write_bytes(content)
        return verify.content_digest(path)

    seen = {
        digest_of(base),
        digest_of(base + b"\0"),
        digest_of(b"x" + base[1:]),
        digest_of(base[1:] + b"x"),
        digest_of(base[: 1 << 16] + b"x" + base[(1 << 16) + 1 :]),
    }
    assert len(seen) == 5


def test_bare_blocks_are_made_from_the_seed_and_change_in_a_day(tmp_path: Path) -> None:
    plan = DiskPlan(
        label="disk",
        capacity_bytes=8 * MIB,
        layout="raw",
        contents=(Content(maker="media", budget_bytes=4 * MIB),),
    )
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    images.build(plan, first, "one")
    images.build(plan, again, "one")
    images.build(plan, other, "two")
    assert verify.sha256(first) == verify.sha256(again) != verify.sha256(other)
    report = day.work_on_disk(first, "day")
    assert report.written_bytes > 0
    assert verify.sha256(first) != verify.sha256(again)
    assert first.stat().st_size == 8 * MIB


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    plan = DiskPlan(label="disk", capacity_bytes=MIB, layout="zfs")
    with pytest.raises(LabError, match="zfs"):
        images.build(plan, tmp_path / "disk", "seed")
    assert not (tmp_path / "disk").exists()
