"""The data mover beside what it could be at best, on data of a disk image that this program builds.

    python -m bench.bench_mover [--size-mib 512] [--image FILE] [--directory DIR]

Prints MB/s of disk content and the ratio to the roofline: read, hash, compress and encrypt the same data
with all cores and store nothing. Wall times of one machine; compare ratios only.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import zstandard
from blake3 import blake3

from pipeline.crypto.aead import ENGINE, fastest_algorithm
from pipeline.mover import DiskBackup, MoverOptions, backup_disk
from pipeline.planning import plan_backup
from pipeline.rawfile import RawFileReader, RawFileWriter
from pipeline.repository import KdfCost, Repository
from pipeline.restore import restore_disk
from pipeline.storage import open_storage
from transports.base import Extent

MIB = 1 << 20
CHANGED_SHARE = 0.05


def build_image(path: Path, size_mib: int) -> None:
    """Text, program code and noise of this machine's Python installation, with holes: compresses about
    as file systems do.
    """
    files = sorted(f for f in Path(os.__file__).parent.rglob("*") if f.is_file() and f.stat().st_size)
    rng = random.Random(1)
    rng.shuffle(files)
    with path.open("wb") as out:
        turn = 0
        while out.tell() < size_mib * MIB:
            if turn % 4 == 3:
                out.seek(rng.randrange(4, 12) * MIB, os.SEEK_CUR)  # a hole
            elif turn % 9 == 4:
                out.write(rng.randbytes(2 * MIB))
            else:
                written = 0
                while written < 4 * MIB:
                    # Shuffled by a stamp, so that blocks do not repeat.
                    content = files[(turn * 31 + written) % len(files)].read_bytes()
                    out.write(rng.randbytes(16) + content)
                    written += len(content) + 16
                    turn += 1
            turn += 1
        out.truncate(size_mib * MIB)


class Timer:
    def __enter__(self) -> Self:
        self.wall = time.perf_counter()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu = usage.ru_utime + usage.ru_stime
        return self

    def __exit__(self, *_: object) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.wall = time.perf_counter() - self.wall
        self.cpu = usage.ru_utime + usage.ru_stime - self.cpu


def roofline(path: Path) -> Timer:
    key = bytes(32)
    algorithm = fastest_algorithm()
    zeros = bytes(MIB)
    local = threading.local()

    def work(offset: int) -> None:
        if not hasattr(local, "ctx"):
            local.ctx = zstandard.ZstdCompressor(level=1)
            local.buffer = bytearray(MIB)
        os.preadv(fd, [local.buffer], offset)
        if local.buffer == zeros:
            return
        blake3(local.buffer, key=key).digest()
        ENGINE.encrypt(
            algorithm,
            key,
            os.urandom(32)[: 32 if algorithm == 2 else 24],
            b"",
            local.ctx.compress(local.buffer),
        )

    fd = os.open(path, os.O_RDONLY)
    reader = RawFileReader(path)
    offsets = [
        at
        for extent in reader.allocated_extents(0, reader.size_bytes)
        for at in range(extent.offset // MIB * MIB, extent.end, MIB)
    ]
    with Timer() as timer, ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, sorted(set(offsets))))
    os.close(fd)
    return timer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--verify-every", type=int, default=MoverOptions().verify_every)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=args.directory))
    try:
        bench(args, work)
    finally:
        shutil.rmtree(work)
    return 0


def bench(args: argparse.Namespace, work: Path) -> None:
    image = args.image or work / "image.raw"
    if args.image is None:
        build_image(image, args.size_mib)
    storage = open_storage(str(work / "repository"), create=True)
    repository = Repository.create(
        storage, "bench", clock=time.time, kdf_cost=KdfCost(ops=1, memory_kib=1024)
    )
    reader = RawFileReader(image)
    held = sum(e.length for e in reader.allocated_extents(0, reader.size_bytes))
    print(
        f"image {reader.size_bytes / 1e6:.0f} MB, {held / 1e6:.0f} MB of it allocated, {os.cpu_count()} cores"
    )
    roofline(image)  # into the page cache
    best = roofline(image)
    row("roofline", held, best, best, "")

    def backup(name: str, previous: DiskBackup | None, changed: list[Extent] | None) -> DiskBackup:
        plan = plan_backup(
            capacity_bytes=reader.size_bytes,
            block_size_bytes=repository.block_size_bytes,
            previous_map_root=previous.map_root if previous else "",
            changed=changed,
            allocated=reader.allocated_extents(0, reader.size_bytes),
        )
        with Timer() as timer:
            done = backup_disk(
                repository=repository,
                reader=reader,
                plan=plan,
                compression="fast",
                work_id=name,
                cancel=threading.Event(),
                progress=lambda _: None,
                clock=time.time,
                options=MoverOptions(verify_every=args.verify_every),
            )
        stats = done.stats
        row(
            name,
            stats.read_bytes,
            timer,
            best,
            f"stored {stats.stored_bytes / 1e6:.1f} MB, source {stats.stages.source:.2f}, "
            f"proxy {stats.stages.proxy:.2f}, target {stats.stages.target:.2f}",
        )
        return done

    full = backup("full", None, None)
    backup("unchanged", full, [])
    rng = random.Random(2)
    touched = []
    with image.open("r+b") as out:
        for _ in range(int(reader.size_bytes / MIB * CHANGED_SHARE)):
            offset = rng.randrange(reader.size_bytes // 4096) * 4096
            out.seek(offset)
            out.write(rng.randbytes(4096))
            touched.append(Extent(offset=offset, length=4096))
    increment = backup("increment", full, sorted(touched))
    backup("full-scan", increment, None)
    writer = RawFileWriter.create(work / "restored.raw", reader.size_bytes)
    with Timer() as timer:
        stats = restore_disk(
            repository=repository,
            map_root=increment.map_root,
            capacity_bytes=reader.size_bytes,
            writer=writer,
            skip_zeros=True,
            cancel=threading.Event(),
            progress=lambda _: None,
            clock=time.time,
        )
    row(
        "restore",
        stats.written_bytes,
        timer,
        best,
        f"source {stats.stages.source:.2f}, proxy {stats.stages.proxy:.2f}, target {stats.stages.target:.2f}",
    )
    if subprocess.run(["cmp", image, work / "restored.raw"], check=False).returncode:
        sys.exit("the restored image differs")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if shutil.which("zstd"):
        began = time.perf_counter()
        subprocess.run(["zstd", "-q", "-T0", "-1", "-f", image, "-o", work / "image.zst"], check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{'zstd -T0 -1':12} {held / 1e6 / (time.perf_counter() - began):7.0f} MB/s  "
            f"CPU {used.ru_utime + used.ru_stime:6.2f} s  "
            f"stored {(work / 'image.zst').stat().st_size / 1e6:.1f} MB"
        )


def row(name: str, count: int, timer: Timer, best: Timer, more: str) -> None:
    rate = count / 1e6 / timer.wall
    print(
        f"{name:12} {rate:7.0f} MB/s  wall {timer.wall:6.2f} s ({best.wall / timer.wall:5.2f} of roofline's)  "
        f"CPU {timer.cpu:6.2f} s  {more}"
    )


if __name__ == "__main__":
    sys.exit(main())
