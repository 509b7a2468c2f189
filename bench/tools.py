"""What is measured: vmhaul, the rooflines, and the peers that are installed. Each tool offers the same
four steps or some of them; every step runs in a directory that is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.images import Images
from bench.measure import Measured, bytes_under, run, synced
from transports.base import Extent

FULL: Final = "full"
UNCHANGED: Final = "unchanged"
INCREMENT: Final = "increment"
RESTORE: Final = "restore"
"""Of the newest restore point: after an increment, where the tool has such."""
RESTORE_FULL: Final = "restore of the full"
PLAIN: Final = "vmhaul, whole blocks"
OS_DISK: Final = "os"
DATABASE_DISK: Final = "database"
HUGE_DISK: Final = "8 TiB"
HUGE_BYTES: Final = 8 << 40  # ext4 takes files of up to 16 TiB
HUGE_PLACES: Final = 256
PASSWORD: Final = "bench"


@dataclass(frozen=True, slots=True)
class Row:
    disk: str
    tool: str
    step: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    sync_s: float
    """What a sync of the result took after the tool had ended; next to nothing for those that sync."""
    added_bytes: int
    """What the step added to the repository."""
    read_bytes: int = -1
    """Of the guest's disk; -1: the tool does not tell."""

    @property
    def durable_s(self) -> float:
        """Until the result would survive a power cut: what tools are compared by."""
        return self.wall_s + self.sync_s


@dataclass(slots=True)
class Bench:
    disk: str
    images: Images
    changed: list[Extent]
    work: Path
    rows: list[Row] = field(default_factory=list)
    """Of all disks: the benches of one run share it."""

    def add(
        self,
        tool: str,
        step: str,
        measured: Measured,
        *,
        result: Path | None = None,
        added_bytes: int = 0,
        read_bytes: int = -1,
    ) -> None:
        """`result`: the file or directory that the tool wrote; it is synced here, and that is timed."""
        sync_s = 0.0 if result is None else synced(result)
        row = Row(
            self.disk,
            tool,
            step,
            measured.wall_s,
            measured.cpu_s,
            measured.peak_bytes,
            sync_s,
            added_bytes,
            read_bytes,
        )
        self.rows.append(row)
        print(
            f"{self.disk:8} {tool:22} {step:19} wall {row.wall_s:7.2f} + {sync_s:5.2f} s  CPU {row.cpu_s:7.2f} s  "
            f"peak {row.peak_bytes / 2**20:5.0f} MiB  added {added_bytes / 1e6:8.2f} MB",
            flush=True,
        )

    def scratch(self, name: str) -> Path:
        """An empty directory."""
        directory = self.work / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory


def _step(*arguments: str | Path) -> Measured:
    return run([sys.executable, "-m", "bench.steps", *arguments], cwd=Path(__file__).parents[1])


class Vmhaul:
    """A repository of its own, and steps on it."""

    def __init__(self, bench: Bench, tool: str = "vmhaul", *options: str) -> None:
        """`options` go to every backup."""
        self._bench = bench
        self._tool = tool
        self._options = options
        self.directory = bench.scratch(tool.replace(" ", "-").replace(",", ""))
        self.repository = self.directory / "repository"
        self._state = self.directory / "state"

    def create(self, *options: str) -> None:
        _step("init", "--repository", self.repository, "--state", self._state, *options)

    def copy_of(self, other: Vmhaul) -> None:
        """Begin with what another has: its objects never change, so links will do."""
        shutil.copytree(other.repository, self.repository, copy_function=os.link)
        state = json.loads(other._state.read_text())
        self._state.write_text(json.dumps({**state, "location": str(self.repository)}))

    def backup(self, step: str, image: Path, changed: list[Extent] | None = None) -> None:
        arguments: list[str | Path] = []
        if changed is not None:
            named = self.directory / "changed"
            named.write_text(json.dumps([[extent.offset, extent.length] for extent in changed]))
            arguments = ["--changed", named, "--base", FULL]
        before = bytes_under(self.repository)
        measured = _step(
            *("backup", "--state", self._state, "--image", image, "--name", step),
            *arguments,
            *self._options,
        )
        self._bench.add(
            self._tool,
            step,
            measured,
            result=self.repository,
            added_bytes=bytes_under(self.repository) - before,
            read_bytes=json.loads(measured.output)["read_bytes"],
        )

    def restore(self, step: str, base: str, image: Path, *, compare: bool) -> None:
        target = self.directory / "restored.raw"
        arguments: list[str | Path] = ["--image", image, "--base", base, "--target", target]
        measured = _step("restore", "--state", self._state, *arguments)
        self._bench.add(self._tool, step, measured, result=target)
        if compare:
            run(["cmp", image, target])
        target.unlink()


def vmhaul(bench: Bench, *, compare: bool) -> None:
    images = bench.images
    mover = Vmhaul(bench)
    mover.create()
    mover.backup(FULL, images.day_one)
    mover.backup(UNCHANGED, images.day_one, [])
    plain = Vmhaul(bench, PLAIN, "--patches", "0")
    plain.copy_of(mover)
    mover.backup(INCREMENT, images.day_two, bench.changed)
    plain.backup(INCREMENT, images.day_two, bench.changed)
    mover.restore(RESTORE_FULL, FULL, images.day_one, compare=compare)
    mover.restore(RESTORE, INCREMENT, images.day_two, compare=compare)
    plain.restore(RESTORE, INCREMENT, images.day_two, compare=False)
    shutil.rmtree(mover.directory)
    shutil.rmtree(plain.directory)


def settings(bench: Bench) -> None:
    """The other compression levels and block sizes; one round, for the documentation."""
    for level in ("none", "balanced", "high"):
        mover = Vmhaul(bench, f"vmhaul, {level}", "--compression", level)
        mover.create()
        mover.backup(FULL, bench.images.day_one)
        mover.restore(RESTORE_FULL, FULL, bench.images.day_one, compare=False)
        shutil.rmtree(mover.directory)
    for size_kib in (256, 512, 4096):
        mover = Vmhaul(bench, f"vmhaul, {size_kib} KiB")
        mover.create("--block-size-kib", str(size_kib))
        mover.backup(FULL, bench.images.day_one)
        mover.backup(INCREMENT, bench.images.day_two, bench.changed)
        mover.restore(RESTORE, INCREMENT, bench.images.day_two, compare=True)
        shutil.rmtree(mover.directory)


def unchanged_huge_disk(bench: Bench) -> None:
    """A disk of 8 TiB with data in 256 places all over it: what an unchanged one costs."""
    image = bench.work / "huge.raw"
    with image.open("wb") as out:
        out.truncate(HUGE_BYTES)
        for number in range(HUGE_PLACES):
            out.seek(number * (HUGE_BYTES // HUGE_PLACES))
            out.write(os.urandom(1 << 20))
    mover = Vmhaul(bench)
    mover.create()
    mover.backup(FULL, image)
    mover.backup(UNCHANGED, image, [])
    shutil.rmtree(mover.directory)
    image.unlink()


def rooflines(bench: Bench) -> None:
    directory = bench.scratch("roofline")
    store, target = directory / "store.bin", directory / "restored.raw"
    image: list[str | Path] = ["--image", bench.images.day_one]
    bench.add("roofline", FULL, _step("roofline-backup", *image))
    bench.add(
        "roofline, stored",
        FULL,
        _step("roofline-backup", *image, "--target", store),
        result=store,
        added_bytes=store.stat().st_size,
    )
    bench.add("roofline", RESTORE_FULL, _step("roofline-restore", *image, "--store", store))
    bench.add(
        "roofline, stored",
        RESTORE_FULL,
        _step("roofline-restore", *image, "--store", store, "--target", target),
        result=target,
    )
    shutil.rmtree(directory)


def zstd(bench: Bench) -> None:
    directory = bench.scratch("zstd")
    store = directory / "disk.zst"
    measured = run(["zstd", "-q", "-T0", "-1", "-f", bench.images.day_one, "-o", store])
    bench.add("zstd -T0 -1", FULL, measured, result=store, added_bytes=bytes_under(store))
    restored = directory / "restored.raw"
    unpack: list[str | Path] = ["zstd", "-q", "-d", "--sparse", store, "-o", restored]
    bench.add("zstd -T0 -1", RESTORE, run(unpack), result=restored)
    shutil.rmtree(directory)


def qemu_img(bench: Bench) -> None:
    directory = bench.scratch("qemu-img")
    store = directory / "disk.qcow2"
    pack: list[str | Path] = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-c",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
    ]
    measured = run([*pack, bench.images.day_one, store])
    bench.add("qemu-img zstd", FULL, measured, result=store, added_bytes=bytes_under(store))
    unpack: list[str | Path] = [
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        store,
        directory / "restored.raw",
    ]
    bench.add("qemu-img zstd", RESTORE, run(unpack), result=directory / "restored.raw")
    shutil.rmtree(directory)


def _three_backups(
    bench: Bench,
    tool: str,
    directory: Path,
    environment: dict[str, str],
    command: Callable[[str], list[str]],
) -> None:
    disk = directory / "disk.raw"
    days = ((FULL, bench.images.day_one), (UNCHANGED, None), (INCREMENT, bench.images.day_two))
    for step, image in days:
        if image is not None:
            disk.unlink(missing_ok=True)
            disk.hardlink_to(image)
        before = bytes_under(directory / "repository")
        measured = run(command(step), cwd=directory, environment=environment)
        added_bytes = bytes_under(directory / "repository") - before
        bench.add(tool, step, measured, result=directory / "repository", added_bytes=added_bytes)


def restic(bench: Bench) -> None:
    """At its defaults. --force: a snapshot of a VM is always a new file to it."""
    directory = bench.scratch("restic")
    environment = {
        "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_REPOSITORY": str(directory / "repository"),
        "RESTIC_CACHE_DIR": str(directory / "cache"),
    }
    run(["restic", "init"], environment=environment)
    _three_backups(
        bench,
        "restic",
        directory,
        environment,
        lambda _: ["restic", "backup", "-q", "--force", "disk.raw"],
    )
    command = ["restic", "restore", "-q", "latest", "--target", str(directory / "restored")]
    bench.add("restic", RESTORE, run(command, environment=environment), result=directory / "restored")
    shutil.rmtree(directory)


def borg(bench: Bench, tool: str, options: list[str]) -> None:
    """--files-cache=disabled for the same reason."""
    directory = bench.scratch("borg")
    environment = {
        "BORG_PASSPHRASE": PASSWORD,
        "BORG_REPO": str(directory / "repository"),
        "BORG_BASE_DIR": str(directory / "home"),
    }
    run(["borg", "init", "-e", "repokey-blake2"], environment=environment)
    create = ["borg", "create", "--compression", "zstd,1", "--files-cache", "disabled", *options]
    _three_backups(bench, tool, directory, environment, lambda step: [*create, f"::{step}", "disk.raw"])
    extract = ["borg", "extract", "--sparse", f"::{INCREMENT}"]
    restored = bench.scratch("borg/restored")
    bench.add(tool, RESTORE, run(extract, cwd=restored, environment=environment), result=restored)
    shutil.rmtree(directory)
