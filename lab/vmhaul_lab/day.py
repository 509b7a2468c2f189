"""A day of work: what guests do to their disks between two backups.

The live files of running VMs are loop-mounted and edited through the real file systems, so that the
changed blocks are those a real guest would leave: data, inodes, directories, journals.
"""

import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from vmhaul_lab import content, database
from vmhaul_lab.commands import run
from vmhaul_lab.loops import mounted
from vmhaul_lab.volumes import find_volumes

_PAGE_BYTES = 4096


@dataclass(slots=True, kw_only=True)
class DayReport:
    """What one day did to one disk (bytes: what guests wrote into files, not changed blocks)."""

    created: int = 0
    appended: int = 0
    edited: int = 0
    renamed: int = 0
    deleted: int = 0
    rows_updated: int = 0
    written_bytes: int = 0

    def add(self, other: "DayReport") -> None:
        """Add the figures of another volume of the same disk."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def work_on_disk(image: Path, seed: str, *, share: float = 0.03, trim: bool = False) -> DayReport:
    """Do a day of work on every file system of a live disk; on bare blocks when it has none.

    `share` is the part of the disk's data that changes. With `trim` the guests give freed space back
    afterwards (fstrim), which punches holes into the file of a thin disk.
    """
    rng = random.Random(seed)
    report = DayReport()
    volumes = [volume for volume in find_volumes(image) if volume.mountable]
    for volume in volumes:
        with mounted(image, volume, read_only=False) as root:
            report.add(change_files(root, rng, share=share))
            if trim:
                run("fstrim", root)
    if not volumes:
        report.add(_change_blocks(image, rng, share=share))
    descriptor = os.open(image, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return report


def change_files(root: Path, rng: random.Random, *, share: float) -> DayReport:
    """Append, edit, rename, delete and create files below `root`."""
    report = DayReport()
    files = _files(root)
    used_bytes = sum(size for _, size in files)
    budget = max(int(used_bytes * share), 64 << 10)
    _append_logs(files, rng, budget // 4, report)
    _edit_large(files, rng, budget // 4, report)
    plain = [path for path, _ in files if path.name != database.FILE_NAME]
    rng.shuffle(plain)
    few = max(len(plain) // 200, 1)
    for path in plain[:few]:
        path.unlink()
        report.deleted += 1
    for path in plain[few : 2 * few]:
        path.rename(path.with_name(f"{path.name}.{rng.getrandbits(24):06x}"))
        report.renamed += 1
    _create(root, rng, budget // 2, report)
    for path, size in files:
        if path.name == database.FILE_NAME:
            rows = max(int(size * share) // 4 // (8 << 10), 4)
            database.work(path, rows, rng)
            report.rows_updated += rows
    return report


def _files(root: Path) -> list[tuple[Path, int]]:
    found: list[tuple[Path, int]] = []
    for directory, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file():
                found.append((path, path.stat().st_size))
    return found


def _append_logs(
    files: list[tuple[Path, int]], rng: random.Random, budget: int, report: DayReport
) -> None:
    logs = [path for path, _ in files if path.name.endswith(".log")]
    for path in logs:
        with path.open("ab") as file:
            report.written_bytes += file.write(content.log_lines(rng, max(budget // len(logs), 4096)))
        report.appended += 1


def _edit_large(
    files: list[tuple[Path, int]], rng: random.Random, budget: int, report: DayReport
) -> None:
    """Overwrite pages inside large files, in runs as programs do."""
    large = [
        (path, size) for path, size in files if size >= 1 << 20 and path.name != database.FILE_NAME
    ]
    touched: set[Path] = set()
    while large and budget > 0:
        path, size = rng.choice(large)
        length = min(rng.choice((1, 1, 4, 16, 64)) * _PAGE_BYTES, size)
        with path.open("r+b") as file:
            file.seek(rng.randrange((size - length) // _PAGE_BYTES + 1) * _PAGE_BYTES)
            report.written_bytes += file.write(rng.randbytes(length))
        touched.add(path)
        budget -= length
    report.edited += len(touched)


def _create(root: Path, rng: random.Random, budget: int, report: DayReport) -> None:
    folder = root / "home/work" / f"day-{rng.getrandbits(32):08x}"
    folder.mkdir(parents=True)
    index = 0
    while budget > 0:
        size = min(rng.choice((2, 8, 32, 256, 1024)) << 10, max(budget, 512))
        body = rng.randbytes(size) if rng.random() < 0.3 else content.text(rng, size)
        report.written_bytes += (folder / f"note-{index:04d}").write_bytes(body)
        report.created += 1
        budget -= size
        index += 1


def _change_blocks(image: Path, rng: random.Random, *, share: float) -> DayReport:
    """Writes of a guest whose file system the lab does not know: runs of pages at random places."""
    report = DayReport()
    facts = image.stat()
    budget = max(int(facts.st_blocks * 512 * share), _PAGE_BYTES)
    with image.open("r+b") as file:
        while budget > 0:
            length = min(rng.choice((1, 2, 8, 32)) * _PAGE_BYTES, facts.st_size)
            file.seek(rng.randrange((facts.st_size - length) // _PAGE_BYTES + 1) * _PAGE_BYTES)
            report.written_bytes += file.write(rng.randbytes(length))
            report.edited += 1
            budget -= length
    return report
