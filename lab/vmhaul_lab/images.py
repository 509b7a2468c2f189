"""Builds guest disks: partition table, file systems and files, decided by a seed."""

import os
import random
import uuid
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from vmhaul_lab import fat, sparse
from vmhaul_lab.commands import run
from vmhaul_lab.content import MAKERS, MIB
from vmhaul_lab.day import change_files
from vmhaul_lab.errors import LabError
from vmhaul_lab.loops import loop_device, mounted
from vmhaul_lab.volumes import SECTOR_BYTES, Volume, find_volumes

_FIRST_LBA = 2048
_EFI_BYTES = 16 * MIB
# GPT keeps its second copy in the last 33 sectors; partitions end on a MiB before it.
_TAIL_BYTES = MIB
_SMALLEST_XFS_BYTES = 300 * MIB
_TYPES = {"efi": "EF00", "linux": "8300", "lvm": "8E00"}
# One loop device and no others: LVM must not look at (or write to) disks of this machine.
_LVM_CONFIG = (
    "global{{activation=0}} backup{{backup=0 archive=0}} "
    'devices{{use_devicesfile=0 global_filter=["a|^{device}$|","r|.*|"]}}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """About `budget_bytes` of files of one kind (a key of `content.MAKERS`)."""

    maker: str
    budget_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """One guest disk. `layout`: see `LAYOUTS`; `clone_of`: 'vm/label' it was cloned from."""

    label: str
    capacity_bytes: int
    layout: str
    contents: tuple[Content, ...] = ()
    thin: bool = True
    datastore: str = ""
    controller: str = "scsi"
    mode: str = "persistent"
    clone_of: str = ""
    eager: bool = False
    """Thick and zeroed when it was made."""
    sharing: str = "sharingNone"
    rdm: str = ""
    """"physical" or "virtual": a raw device mapping, of which only its description exists."""


def build(plan: DiskPlan, image: Path, seed: str) -> None:
    """Make the image file of one disk. Needs root for every layout with a file system."""
    layout = LAYOUTS.get(plan.layout)
    if layout is None:
        raise LabError(f"disk {plan.label} has layout {plan.layout!r}; known: {sorted(LAYOUTS)}")
    with image.open("xb") as file:
        file.truncate(plan.capacity_bytes)
    layout(image, plan, random.Random(seed))
    _finish(plan, image)


def build_clone(plan: DiskPlan, image: Path, original: Path, seed: str) -> None:
    """A disk cloned from `original` (as VMs are from a template) and then used for a while."""
    sparse.copy(original, image)
    with image.open("r+b") as file:
        file.truncate(plan.capacity_bytes)
    rng = random.Random(seed)
    for volume in find_volumes(image):
        if volume.mountable:
            with mounted(image, volume, read_only=False) as root:
                change_files(root, rng, share=0.05)
    _finish(plan, image)


def build_all(plans: Iterable[tuple[str, DiskPlan]], directory: Path, seed: int) -> dict[str, Path]:
    """Build the disks of ('vm', plan) pairs, two at a time; returns image by 'vm/label'."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {f"{vm}/{plan.label}": plan for vm, plan in plans}
    images = {key: directory / f"{key.replace('/', '-')}.raw" for key in wanted}
    # Separate processes: text is made by Python code, which threads would not speed up. Not forked:
    # the caller may have threads.
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        first = [
            pool.submit(build, plan, images[key], f"{seed}/{key}")
            for key, plan in sorted(wanted.items(), key=lambda item: -_work_bytes(item[1]))
            if not plan.clone_of
        ]
        for future in first:
            future.result()
        clones = [
            pool.submit(build_clone, plan, images[key], images[plan.clone_of], f"{seed}/{key}")
            for key, plan in wanted.items()
            if plan.clone_of
        ]
        for future in clones:
            future.result()
    return images


def _work_bytes(plan: DiskPlan) -> int:
    return sum(content.budget_bytes for content in plan.contents)


def _finish(plan: DiskPlan, image: Path) -> None:
    if plan.thin:
        return
    descriptor = os.open(image, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, plan.capacity_bytes)
    finally:
        os.close(descriptor)


# ---- layouts


def _partition(image: Path, rng: random.Random, *parts: tuple[str, str, int]) -> list[Volume]:
    """Write a GPT of (name, type, bytes; 0: the rest) and return the partitions."""
    words = ["--disk-guid", _uuid(rng)]
    at = _FIRST_LBA
    end = (image.stat().st_size - _TAIL_BYTES) // SECTOR_BYTES
    for number, (name, kind, length_bytes) in enumerate(parts, start=1):
        last = (at + length_bytes // SECTOR_BYTES if length_bytes else end) - 1
        words += ["--new", f"{number}:{at}:{last}", "--typecode", f"{number}:{_TYPES[kind]}"]
        words += ["--change-name", f"{number}:{name}", "--partition-guid", f"{number}:{_uuid(rng)}"]
        at = last + 1
    run("sgdisk", *words, image)
    return find_volumes(image)


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _make_ext4(image: Path, volume: Volume, rng: random.Random) -> None:
    identity = _uuid(rng)
    with loop_device(image, volume, read_only=False) as device:
        run(
            *("mkfs.ext4", "-q", "-F", "-b", "4096", "-U", identity),
            *("-E", f"hash_seed={identity},lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
            device,
        )


def _make_xfs(image: Path, volume: Volume, rng: random.Random) -> None:
    # The log has the smallest size that mkfs.xfs takes; -K: do not discard what is a hole already.
    if volume.length_bytes < _SMALLEST_XFS_BYTES:
        raise LabError(
            f"volume {volume.name} of {image} has {volume.length_bytes} bytes: "
            f"mkfs.xfs wants {_SMALLEST_XFS_BYTES}; make the disk larger"
        )
    with loop_device(image, volume, read_only=False) as device:
        run("mkfs.xfs", "-q", "-f", "-K", "-m", f"uuid={_uuid(rng)}", "-l", "size=64m", device)


def _fill(image: Path, volume: Volume, plan: DiskPlan, rng: random.Random) -> None:
    with mounted(image, volume, read_only=False) as root:
        (root / "hostname").write_text(f"{image.stem}\n")
        for content in plan.contents:
            MAKERS[content.maker](root, content.budget_bytes, rng)


def _recognised(image: Path, name: str) -> Volume:
    return next(volume for volume in find_volumes(image) if volume.name == name)


def _system(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    """GPT: EFI system partition, ext4 root."""
    efi, root = _partition(image, rng, ("EFI", "efi", _EFI_BYTES), ("root", "linux", 0))
    loader = {"GRUBX64.EFI": rng.randbytes(900_000), "GRUB.CFG": b"search --label root\nboot\n"}
    with image.open("r+b") as file:
        file.seek(efi.offset_bytes)
        file.write(fat.fat16(efi.length_bytes, loader, serial=rng.getrandbits(32)))
    _make_ext4(image, root, rng)
    _fill(image, _recognised(image, "root"), plan, rng)


def _gpt_ext4(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    (part,) = _partition(image, rng, ("data", "linux", 0))
    _make_ext4(image, part, rng)
    _fill(image, _recognised(image, "data"), plan, rng)


def _gpt_xfs(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    (part,) = _partition(image, rng, ("data", "linux", 0))
    _make_xfs(image, part, rng)
    _fill(image, _recognised(image, "data"), plan, rng)


def _whole_xfs(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    (disk,) = find_volumes(image)
    _make_xfs(image, disk, rng)
    _fill(image, _recognised(image, "disk"), plan, rng)


def _lvm(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    """GPT: LVM with a swap volume in front and a data volume behind it."""
    (part,) = _partition(image, rng, ("lvm", "lvm", 0))
    group = f"vg{rng.getrandbits(16):04x}"
    with loop_device(image, part, read_only=False) as device:
        # Without device mapper no volume can be activated, so nothing is wiped or zeroed either.
        config = ("--config", _LVM_CONFIG.format(device=device))
        run("pvcreate", *config, device)
        run("vgcreate", *config, group, device)
        inactive = ("--activate", "n", "--wipesignatures", "n", "--zero", "n")
        run("lvcreate", *config, *inactive, "--size", "16m", "--name", "swap", group)
        run("lvcreate", *config, *inactive, "--extents", "95%FREE", "--name", "data", group)
    volumes = {volume.name: volume for volume in find_volumes(image)}
    data = volumes[f"{group}/data"]
    make = _make_ext4 if plan.layout == "lvm-ext4" else _make_xfs
    with loop_device(image, volumes[f"{group}/swap"], read_only=False) as device:
        run("mkswap", "--uuid", _uuid(rng), device)
    make(image, data, rng)
    _fill(image, _recognised(image, data.name), plan, rng)


def _raw(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    """No file system: runs of text, random bytes and zeros, the budget in all. Needs no root."""
    budget = _work_bytes(plan) or plan.capacity_bytes // 2
    # Half of this text is repeated elsewhere on the disk, so that there is something to deduplicate.
    pattern = rng.randbytes(32 << 10).hex().encode()
    with image.open("r+b") as file:
        while budget > 0:
            length = min(rng.choice((4, 64, 256, 1024)) << 10, budget, plan.capacity_bytes)
            file.seek(rng.randrange((plan.capacity_bytes - length) // 4096 + 1) * 4096)
            kind = rng.randrange(4)
            if kind == 0:
                file.write(bytes(length))
            elif kind == 1:
                file.write(rng.randbytes(length))
            else:
                file.write((pattern * (length // len(pattern) + 1))[:length])
            budget -= length


def _empty(image: Path, plan: DiskPlan, rng: random.Random) -> None:
    """Nothing at all: a disk that was added and not yet used."""


LAYOUTS = {
    "system": _system,
    "gpt-ext4": _gpt_ext4,
    "gpt-xfs": _gpt_xfs,
    "xfs": _whole_xfs,
    "lvm-xfs": _lvm,
    "lvm-ext4": _lvm,
    "raw": _raw,
    "empty": _empty,
}
