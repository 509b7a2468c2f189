"""Makes the golden repository of a release, once, when it is released.

    python tests/format/make_golden_repository.py tests/format/golden/repository-v1-0.2.0

Writes <argument>.tar.gz and <argument>.json (what must come out of it). Never run it for a release that is
out: what it made then is what old vmhauls wrote. (repository-v1 is that of 0.1.0, with no features.)
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

from pipeline.crypto.aead import Aead
from pipeline.crypto.unlock import (
    by_password,
    key_file_text,
    new_key_file,
    new_recovery_key,
    recovery_key_text,
)
from pipeline.repository.points import point_fields
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from transports.base import Extent

CAPACITY_BYTES = 1100 * BLOCK_SIZE_BYTES + 512  # two levels of map nodes, and a short last block


def main(target: Path) -> None:
    clock = ManualClock(datetime(2025, 11, 23, tzinfo=UTC).timestamp())
    expected: dict[str, object] = {"password": PASSWORD, "points": [], "sha256": {}}
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock, aead=Aead.AEGIS_256)
    bench.repository.makes_patches = True
    fill(bench, clock, expected)
    expected["id"] = bench.repository.id
    expected["key_epoch"] = bench.repository.key_epoch
    with tarfile.open(target.with_name(f"{target.name}.tar.gz"), "w:gz") as tar:
        for name, data in sorted(storage.objects.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mtime = int(storage.modified_at_s[name])
            tar.addfile(entry, io.BytesIO(data))
    target.with_name(f"{target.name}.json").write_text(
        json.dumps(expected, indent=1, sort_keys=True) + "\n"
    )


def fill(bench: Workbench, clock: ManualClock, expected: dict[str, object]) -> None:
    rng = random.Random(20251123)
    image = bytearray(CAPACITY_BYTES)
    image[: 6 * BLOCK_SIZE_BYTES] = rng.randbytes(6 * BLOCK_SIZE_BYTES)
    image[8 * BLOCK_SIZE_BYTES : 12 * BLOCK_SIZE_BYTES] = b"text of a guest\n" * 1024
    image[-2000:] = rng.randbytes(2000)
    passing = Extent(offset=100 * BLOCK_SIZE_BYTES, length=40 * BLOCK_SIZE_BYTES)
    image[passing.offset : passing.end] = rng.randbytes(passing.length)  # in the first point only
    small = bytes(rng.randbytes(3 * 512))
    previous = None
    root = ""
    for number in range(3):
        changed: list[Extent] | None = None
        if number:
            changed = [Extent(offset=(2 * number + 1050) * BLOCK_SIZE_BYTES, length=512)]
            image[changed[0].offset : changed[0].end] = rng.randbytes(512)
            image[passing.offset : passing.end] = bytes(passing.length)
            changed.append(passing)
            # The changed part of a block that is stored already: a patch, of which the first one is the base.
            changed.append(Extent(offset=3 * BLOCK_SIZE_BYTES + 700 * number, length=300))
            image[changed[-1].offset : changed[-1].end] = rng.randbytes(300)
            change_keys(bench, number, expected)
        backup = bench.backup(
            MemoryDisk(image),
            plan=bench.plan(CAPACITY_BYTES, previous=root, changed=changed),
            work_id=f"golden-{number}",
            compression=("fast", "none", "high")[number],
        )
        root = backup.map_root
        other = bench.backup(small, work_id=f"golden-small-{number}").map_root
        point = restore_point(
            disk_point(root, CAPACITY_BYTES),
            disk_point(other, len(small), disk_key=2001),
            created_at=datetime(2025, 11, 20 + number, 21, tzinfo=UTC),
            previous=previous,
            point_id=f"00000000-0000-4000-8000-00000000000{number}",
        )
        previous = bench.commit(point)
        if number:
            expected["points"].append(point_fields(point))  # type: ignore[attr-defined]
            for disk, content in zip(point.disks, (image, small), strict=True):
                digest = hashlib.sha256(content).hexdigest()
                expected["sha256"][f"{point.id}/{disk.disk_key}"] = digest  # type: ignore[index]
    clock.now_s += 4000
    bench.repository.forget(["00000000-0000-4000-8000-000000000000"])
    bench.backup(rng.randbytes(4096), work_id="golden-goes-on")
    report = bench.repository.prune(keep_work_ids=["golden-goes-on"], min_age_s=2000)
    assert report.doomed_packs > 0


def change_keys(bench: Workbench, number: int, expected: dict[str, object]) -> None:
    """Keys of every kind, some made before and some after a change of the data key; one revoked."""
    repository = bench.repository
    if number == 1:
        passing = repository.add_key(by_password("revoked"), "who left", kdf_cost=CHEAP_KDF)
        repository.add_key(by_password("second"), "before epoch 2", kdf_cost=CHEAP_KDF)
        repository.revoke_key(passing)
        repository.rotate_data_key()
        return
    file, recovery = new_key_file(), new_recovery_key()
    repository.add_key(file, "USB stick", kdf_cost=CHEAP_KDF)
    repository.rotate_data_key()
    repository.add_key(recovery, "in the safe", kdf_cost=CHEAP_KDF)
    line = key_file_text(file, repository.id).splitlines()[-1]
    expected["other_keys"] = ["second", line, recovery_key_text(recovery)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
