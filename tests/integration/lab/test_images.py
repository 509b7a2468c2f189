"""Guest disks are real: they mount, hold files, pass fsck, and survive a day of work."""

import subprocess
import sys
from pathlib import Path

import pytest
from vmhaul_lab import day, images, loops, sparse, verify, volumes
from vmhaul_lab.content import MIB
from vmhaul_lab.errors import LabError
from vmhaul_lab.images import Content, DiskPlan

pytestmark = pytest.mark.lab

LAYOUTS = [
    ("system", 160, ("host", "logs"), ["fat16", "ext4"]),
    ("gpt-ext4", 96, ("sqlite", "texts"), ["ext4"]),
    ("gpt-xfs", 384, ("small", "media"), ["xfs"]),
    ("xfs", 320, ("dump", "mail"), ["xfs"]),
    ("lvm-ext4", 128, ("mail",), ["swap", "ext4"]),
    ("lvm-xfs", 400, ("mail", "logs"), ["swap", "xfs"]),
]


def made(
    directory: Path, layout: str, capacity_mib: int, makers: tuple[str, ...], **more: bool
) -> Path:
    plan = DiskPlan(
        label="disk",
        capacity_bytes=capacity_mib * MIB,
        layout=layout,
        contents=tuple(Content(maker=maker, budget_bytes=4 * MIB) for maker in makers),
        **more,
    )
    image = directory / f"{layout}.raw"
    images.build(plan, image, "seed")
    return image


def data_volume(image: Path) -> volumes.Volume:
    return next(volume for volume in volumes.find_volumes(image) if volume.mountable)


@pytest.mark.parametrize(("layout", "capacity_mib", "makers", "kinds"), LAYOUTS)
def test_every_layout_holds_files_and_stays_clean_over_a_day(
    tmp_path: Path, layout: str, capacity_mib: int, makers: tuple[str, ...], kinds: list[str]
) -> None:
    image = made(tmp_path, layout, capacity_mib, makers)
    assert image.stat().st_size == capacity_mib * MIB
    assert [volume.kind for volume in volumes.find_volumes(image)] == kinds
    before = verify.all_files(image)
    assert len(before) > 5
    assert [result.clean for result in verify.fsck(image)] == [True]

    report = day.work_on_disk(image, "day", trim=True)

    after = verify.all_files(image)
    assert report.created
    assert report.deleted
    assert report.written_bytes >= 32 << 10
    assert len(after.keys() - before.keys()) == report.created + report.renamed
    assert len(before.keys() - after.keys()) == report.deleted + report.renamed
    assert [result.clean for result in verify.fsck(image)] == [True]
    assert set(verify.check_databases(image).values()) <= {"ok"}
    assert bool(verify.check_databases(image)) == ("sqlite" in makers)
    assert loops.loops_under(tmp_path) == []


def test_database_pages_change_in_place(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-ext4", 96, ("sqlite",))
    path = "data:var/lib/orders/orders.sqlite"
    before = verify.all_files(image)[path]
    report = day.work_on_disk(image, "day")
    assert report.rows_updated >= 4
    assert verify.all_files(image)[path] != before
    assert verify.check_databases(image) == {path: "ok"}


def test_files_depend_on_the_seed_alone(tmp_path: Path) -> None:
    plan = DiskPlan(
        label="disk",
        capacity_bytes=64 * MIB,
        layout="gpt-ext4",
        contents=tuple(
            Content(maker=maker, budget_bytes=MIB) for maker in ("logs", "mail", "media", "host")
        ),
    )
    found = []
    for name, seed in (("a", "one"), ("b", "one"), ("c", "two")):
        image = tmp_path / name / "disk.raw"
        image.parent.mkdir()
        images.build(plan, image, seed)
        day.work_on_disk(image, seed)
        found.append(verify.all_files(image))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_clone_shares_most_files_with_its_original(tmp_path: Path) -> None:
    original = made(tmp_path, "gpt-ext4", 64, ("texts", "mail"))
    clone = tmp_path / "clone.raw"
    plan = DiskPlan(label="disk", capacity_bytes=64 * MIB, layout="gpt-ext4", clone_of="vm/disk")
    images.build_clone(plan, clone, original, "clone")
    first, second = verify.all_files(original), verify.all_files(clone)
    assert first != second
    assert len(first.items() & second.items()) > len(first) // 2


def test_thick_disks_take_their_whole_space(tmp_path: Path) -> None:
    thin = made(tmp_path, "lvm-ext4", 128, ("texts",))
    thick_dir = tmp_path / "thick"
    thick_dir.mkdir()
    thick = made(thick_dir, "lvm-ext4", 128, ("texts",), thin=False)
    assert thin.stat().st_blocks * 512 < 64 * MIB
    assert thick.stat().st_blocks * 512 >= 128 * MIB


def test_a_2_tib_disk_costs_little(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-xfs", 2 << 20, ("texts",))
    assert image.stat().st_size == 2 << 40
    assert image.stat().st_blocks * 512 < 200 * MIB
    before = verify.content_digest(image)
    day.work_on_disk(image, "day")
    assert verify.content_digest(image) != before
    assert [result.clean for result in verify.fsck(image)] == [True]


def test_a_damaged_file_system_is_found(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-ext4", 64, ("mail",))
    volume = data_volume(image)
    with image.open("r+b") as file:
        file.seek(volume.offset_bytes + 4096 * 3)
        file.write(b"\xa5" * 4096 * 200)
    assert [result.clean for result in verify.fsck(image)] == [False]


def test_freed_space_becomes_holes_when_guests_trim(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-ext4", 96, ("media",))
    volume = data_volume(image)
    before = image.stat().st_blocks
    with loops.mounted(image, volume, read_only=False) as root:
        for path in (root / "srv/media").iterdir():
            path.unlink()
    day.work_on_disk(image, "day", trim=True)
    assert image.stat().st_blocks < before - 3 * MIB // 512


def test_loops_and_mounts_are_given_back_after_an_error(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-ext4", 64, ("texts",))
    volume = data_volume(image)
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        loops.mounted(image, volume, read_only=False) as root,
    ):
        raise RuntimeError("in the middle")
    assert not root.exists()
    assert loops.loops_under(tmp_path) == []


def test_what_a_killed_process_left_is_freed(tmp_path: Path) -> None:
    image = made(tmp_path, "gpt-ext4", 64, ("texts",))
    script = (
        "import sys; from pathlib import Path; from vmhaul_lab import loops, volumes\n"
        "image = Path(sys.argv[1])\n"
        "volume = next(found for found in volumes.find_volumes(image) if found.mountable)\n"
        "kept = loops.mounted(image, volume, read_only=False)\n"
        "print(kept.__enter__(), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        root = Path(process.stdout.readline().strip())
        assert root.is_mount()
        process.kill()
    assert len(loops.release_under(tmp_path)) == 1
    assert loops.loops_under(tmp_path) == []
    assert not root.is_mount()


def test_a_volume_without_a_known_file_system_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "empty.raw"
    image.write_bytes(bytes(MIB))
    (volume,) = volumes.find_volumes(image)
    with pytest.raises(LabError, match="holds unknown"), loops.mounted(image, volume, read_only=True):
        pass


def test_copies_keep_content_and_holes(tmp_path: Path) -> None:
    image = made(tmp_path, "lvm-ext4", 128, ("texts",))
    copy = tmp_path / "copy.raw"
    sparse.copy(image, copy)
    assert verify.sha256(copy) == verify.sha256(image)
    assert copy.stat().st_blocks <= image.stat().st_blocks + 64
