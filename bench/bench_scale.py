"""Check and prune of a repository with very many blobs: time and memory.

    python -m bench.bench_scale [--millions 10] [--directory DIR]

Maps and restore points are real; the packs of the blocks, and the index objects that name them, are made up as
they are read. A quarter of the blocks belongs to no restore point, in whole packs. Each step runs in a process of
its own and tells its peak of resident memory. Prints JSON.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.apart import step_apart, steps_main
from bench.made_up import BLOBS_PER_PACK, MadeUpStorage, blob_ids
from pipeline.repository import Repository
from pipeline.repository.blobs import BlobCodec, node_id
from pipeline.repository.format import ZERO_ID, BlobKind
from pipeline.repository.index import write_index_object
from pipeline.repository.maps import MapBuilder
from pipeline.repository.packs import PackWriter
from pipeline.storage import open_storage
from pipeline.testing.builders import CHEAP_KDF, disk_point, restore_point, vm_identity

PASSWORD = "made up"
CLOCK_S = 1_700_000_000.0
BLOCKS_PER_DISK = 1 << 20  # 1 TiB
LIVE_SHARE = 0.75
MEMORY_AIM_BYTES = 1 << 30


def step_set_up(blobs: int, place: Path) -> dict[str, Any]:
    """Maps and restore points over the blocks that are needed."""
    storage = open_storage(str(place / "storage"), create=True)
    repository = Repository.create(storage, PASSWORD, clock=lambda: CLOCK_S, kdf_cost=CHEAP_KDF)
    codec = BlobCodec(repository.keyring, repository.aead)
    packs = PackWriter(storage, repository.keyring, repository.aead)
    segments = []
    live = int(blobs * LIVE_SHARE) // BLOBS_PER_PACK * BLOBS_PER_PACK

    def store_node(content: bytes) -> bytes:
        found = node_id(repository.keyring, content)
        packs.append(codec.encode(BlobKind.NODE, found, content))
        if packs.is_full:
            segments.append(packs.close())
        return found

    disks = []
    for first in range(0, live, BLOCKS_PER_DISK):
        count = min(BLOCKS_PER_DISK, live - first)
        builder = MapBuilder(
            base_root=ZERO_ID, block_count=count, load_node=lambda _: b"", store_node=store_node
        )
        ids = blob_ids(first, count).tobytes()
        for block in range(count):
            builder.set(block, ids[block * 32 : block * 32 + 32])
        disks.append((builder.finish().hex(), count))
    segments.append(packs.close())
    write_index_object(storage, repository.keyring, repository.aead, [s for s in segments if s])
    last_commit_s = 0.0
    for number, (root, count) in enumerate(disks):
        point = restore_point(
            disk_point(root, count * repository.block_size_bytes),
            vm=vm_identity(number),
            created_at=datetime.fromtimestamp(CLOCK_S, UTC),
            point_id=str(UUID(int=number + 1)),
        )
        began = time.perf_counter()
        opened(blobs, place).commit_point(point)
        last_commit_s = time.perf_counter() - began
    return {"disks": len(disks), "last_commit_s": last_commit_s}


def opened(blobs: int, place: Path, clock_s: float = CLOCK_S) -> Repository:
    plain = open_storage(str(place / "storage"))
    keyring = Repository.open_with_password(plain, PASSWORD, clock=lambda: CLOCK_S).keyring
    storage = MadeUpStorage(blobs, plain, keyring)
    return Repository.open_with_password(
        storage, PASSWORD, clock=lambda: clock_s, cache_dir=place / "cache"
    )


def step_check(blobs: int, place: Path) -> dict[str, Any]:
    began = time.perf_counter()
    report = opened(blobs, place).check()
    if report.problems:
        raise SystemExit(report.problems[:3])
    return {"wall_s": time.perf_counter() - began, "blobs_seen": report.blobs, "packs": report.packs}


def step_prune(blobs: int, place: Path) -> dict[str, Any]:
    began = time.perf_counter()
    repository = opened(blobs, place, CLOCK_S * 2)
    report = repository.prune(keep_work_ids=(), min_age_s=0)
    return {"wall_s": time.perf_counter() - began, "removed_packs": report.removed_packs}


STEPS = {"set up": step_set_up, "check": step_check, "prune": step_prune}


def rows(millions: float, directory: Path | None = None) -> list[dict[str, Any]]:
    """One row for each step."""
    blobs = int(millions * 1e6) // BLOBS_PER_PACK * BLOBS_PER_PACK
    with tempfile.TemporaryDirectory(prefix="scale-", dir=directory) as place:
        return [
            {"step": step, "blobs": blobs, **step_apart("bench.bench_scale", step, blobs, Path(place))}
            for step in STEPS
        ]


def aims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For `bench/results.json`."""
    return [
        {
            "name": f"{row['step']} of {row['blobs'] / 1e6:.0f} million blobs, memory, MiB",
            "value": round(row["peak_bytes"] / (1 << 20), 1),
            "aim": MEMORY_AIM_BYTES >> 20,
            "holds": row["peak_bytes"] <= MEMORY_AIM_BYTES,
        }
        for row in found
        if row["step"] != "set up"
    ]


def main() -> int:
    return steps_main(__doc__ or "", STEPS, rows, aims)


if __name__ == "__main__":
    sys.exit(main())
