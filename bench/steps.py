"""One measured step of vmhaul or a roofline, in a process of its own so that CPU and memory are its own.

    python -m bench.steps init|backup|restore|roofline-backup|roofline-restore --state FILE ...

The state file carries the repository's key and the map roots from one step to the next: a proxy gets both
with its task. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench import roofline
from pipeline.mover import MoverOptions, backup_disk
from pipeline.planning import plan_backup
from pipeline.rawfile import RawFileReader, RawFileWriter
from pipeline.repository import KdfCost, Repository
from pipeline.restore import restore_disk
from pipeline.storage import open_storage
from transports.base import Extent


@dataclass(slots=True)
class State:
    location: str = ""
    repository_id: str = ""
    key_material: str = ""
    roots: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def open(self) -> Repository:
        return Repository.open_with_key(
            open_storage(self.location),
            self.key_material,
            expected_id=self.repository_id,
            clock=time.time,
        )


def init(args: argparse.Namespace) -> dict[str, Any]:
    repository = Repository.create(
        open_storage(str(args.repository), create=True),
        "bench",
        clock=time.time,
        block_size_bytes=args.block_size_kib << 10,
        kdf_cost=KdfCost(ops=1, memory_kib=1024),
    )
    State(str(args.repository), repository.id, repository.key_material).save(args.state)
    return {}


def backup(args: argparse.Namespace) -> dict[str, Any]:
    """`--changed` names a file with [offset, length] pairs; without it the backup is a full."""
    state = State.load(args.state)
    repository = state.open()
    repository.makes_patches = bool(args.patches)
    reader = RawFileReader(args.image)
    changed = None
    if args.changed is not None:
        changed = [Extent(offset=o, length=n) for o, n in json.loads(args.changed.read_text())]
    plan = plan_backup(
        capacity_bytes=reader.size_bytes,
        block_size_bytes=repository.block_size_bytes,
        previous_map_root=state.roots[args.base] if args.base else "",
        previous_capacity_bytes=reader.size_bytes,
        changed=changed,
        allocated=reader.allocated_extents(0, reader.size_bytes),
    )
    done = backup_disk(
        repository=repository,
        reader=reader,
        plan=plan,
        compression=args.compression,
        work_id=str(uuid4()),
        cancel=threading.Event(),
        progress=lambda _: None,
        clock=time.monotonic,
        options=MoverOptions(workers=args.workers),
    )
    state.roots[args.name] = done.map_root
    state.save(args.state)
    stats = done.stats
    return {
        "read_bytes": stats.read_bytes,
        "stored_bytes": stats.stored_bytes,
        "duration_s": stats.duration_s,
        "stages": asdict(stats.stages),
    }


def restore(args: argparse.Namespace) -> dict[str, Any]:
    state = State.load(args.state)
    repository = state.open()
    capacity_bytes = args.image.stat().st_size
    writer = RawFileWriter.create(args.target, capacity_bytes, overwrite=True)
    stats = restore_disk(
        repository=repository,
        map_root=state.roots[args.base],
        capacity_bytes=capacity_bytes,
        writer=writer,
        skip_zeros=True,
        cancel=threading.Event(),
        progress=lambda _: None,
        clock=time.monotonic,
        workers=args.workers,
    )
    writer.close()
    return {
        "read_bytes": stats.read_bytes,
        "written_bytes": stats.written_bytes,
        "duration_s": stats.duration_s,
        "stages": asdict(stats.stages),
    }


def backup_roofline(args: argparse.Namespace) -> dict[str, Any]:
    return roofline.backup(args.image, args.target)


def restore_roofline(args: argparse.Namespace) -> dict[str, Any]:
    return roofline.restore(args.store, args.target, args.image.stat().st_size)


STEPS = {
    "init": init,
    "backup": backup,
    "restore": restore,
    "roofline-backup": backup_roofline,
    "roofline-restore": restore_roofline,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--changed", type=Path)
    parser.add_argument("--base", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--target", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--compression", default="fast")
    parser.add_argument("--patches", type=int, default=1)
    parser.add_argument("--block-size-kib", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    answer = STEPS[args.step](args)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
