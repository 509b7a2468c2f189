"""tools/vmhaul-restore, written from the format's text alone: it restores where nothing of vmhaul is.

It runs in a Python that finds the standard library and five third-party packages, nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.crypto.unlock import (
    by_password,
    key_file_text,
    new_key_file,
    new_recovery_key,
    recovery_key_text,
)
from pipeline.model import RestorePoint
from pipeline.repository import Repository
from pipeline.repository.index import read_index_object
from pipeline.storage import open_storage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    Workbench,
    disk_point,
    restore_point,
)
from transports.base import Extent

TOOL = Path(__file__).parents[2] / "tools" / "vmhaul-restore"
GOLDEN = sorted((Path(__file__).parent / "golden").glob("repository-v*.tar.gz"))
PACKAGES = ("blake3", "cffi", "_cffi_backend", "nacl", "zstandard")
BLOCKS = 2100  # three nodes of level 0
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES + 1536

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the tool; `password` goes in by standard input."""
    site = tmp_path_factory.mktemp("only-these-packages")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        path = Path(found.origin)
        path = path.parent if path.name == "__init__.py" else path
        (site / path.name).symlink_to(path)
    start = (
        "import runpy, sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def call(
        *arguments: object, password: str | None = PASSWORD, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = [] if password is None else ["--password-file", "-"]
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", start, site, TOOL, *map(str, arguments), *given],
            input=None if password is None else f"{password}\n",
            stdin=subprocess.DEVNULL if password is None else None,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={"PATH": os.environ["PATH"], **(env or {})},
        )

    return call


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_runs_where_no_vmhaul_can_be_imported(run: Run, tmp_path: Path) -> None:
    """The way in which the other tests run it finds none of vmhaul's packages."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import importlib.util, sys\n"
        "names = ('pipeline', 'proxy_worker', 'transports', 'backup_server', 'cryptography')\n"
        "print([name for name in names if importlib.util.find_spec(name)])\n"
    )
    command = run("x").args
    done = subprocess.run(
        [probe if part == TOOL else part for part in command],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[]\n"


def test_it_imports_nothing_but_the_standard_library_and_three_packages() -> None:
    imported = {
        line.split()[1].partition(".")[0]
        for line in TOOL.read_text().splitlines()
        if line.strip().startswith(("import ", "from "))
    }
    assert imported - set(sys.stdlib_module_names) == {"blake3", "nacl", "zstandard"}
    assert os.access(TOOL, os.X_OK)


# ---- golden repositories ----------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_it_restores_what_every_release_wrote(run: Run, golden: Path, tmp_path: Path) -> None:
    expected = json.loads(golden.with_name(golden.name.replace(".tar.gz", ".json")).read_text())
    place = tmp_path / "repository"
    with tarfile.open(golden) as tar:
        tar.extractall(place, filter="data")
    passwords = [expected["password"], *expected.get("other_keys", [])]
    for password in passwords:
        listed = run(place, "list", "--json", password=password)
        assert listed.returncode == 0, listed.stderr
        points = json.loads(listed.stdout)["points"]
        assert [point["id"] for point in points] == [point["id"] for point in expected["points"]]
    compared = 0
    for name, digest in expected["sha256"].items():
        point, _, disk = name.partition("/")
        out = tmp_path / f"{point}-{disk}"
        done = run(place, "restore", point, disk, out, password=expected["password"])
        assert done.returncode == 0, done.stderr
        assert sha256(out) == digest
        compared += 1
    assert compared == 4
    verified = run(place, "verify", password=expected["password"])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "0 problems" in verified.stdout


# ---- a repository of today ----------------------------------------------------------------------


class Scene:
    """A repository with epochs, patches, several keys and a forgotten point."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bench = Workbench(
            open_storage(str(place), create=True), time.time, pack_target_bytes=64 * BLOCK_SIZE_BYTES
        )
        self.repository = self.bench.repository
        self.repository.makes_patches = True
        self.sha256: dict[str, str] = {}
        self.points: list[RestorePoint] = []
        rng = random.Random(7)
        image = bytearray(CAPACITY_BYTES)
        for start, blocks in ((0, 40), (1020, 30), (2090, 10)):
            image[start * BLOCK_SIZE_BYTES : (start + blocks) * BLOCK_SIZE_BYTES] = rng.randbytes(
                blocks * BLOCK_SIZE_BYTES
            )
        image[-1536:] = rng.randbytes(1536)
        root = ""
        for number in range(4):
            changed = None
            if number:
                changed = [
                    Extent(offset=(1020 + 3 * number + step) * BLOCK_SIZE_BYTES + 700, length=512)
                    for step in range(8)
                ]
                for extent in changed:
                    image[extent.offset : extent.end] = rng.randbytes(512)
                self.repository.rotate_data_key()
            plan = self.bench.plan(CAPACITY_BYTES, previous=root, changed=changed)
            root = self.bench.backup(image, plan=plan).map_root
            previous = self.points[-1] if self.points else None
            point = restore_point(
                disk_point(root, CAPACITY_BYTES),
                created_at=datetime(2025, 11, 20 + number, tzinfo=UTC),
                previous=previous,
            )
            self.points.append(self.bench.commit(point))
            self.sha256[point.id] = hashlib.sha256(image).hexdigest()
        self.repository.forget([self.points[0].id])
        self.file, self.recovery = new_key_file(), new_recovery_key()
        for unlock in (by_password("other"), self.file, self.recovery):
            self.repository.add_key(unlock, kdf_cost=CHEAP_KDF)
        self.repository.rotate_data_key()
        self.bench.backup(random.Random(8).randbytes(9 * BLOCK_SIZE_BYTES))

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.place, to)
        return to


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("today") / "repository")


def test_the_repository_has_what_is_to_be_proved(scene: Scene) -> None:
    encodings: set[int] = set()
    storage, keyring = scene.repository.storage, scene.repository.keyring
    for entry in storage.list("index/"):
        for segment in read_index_object(storage, keyring, entry.name):
            encodings.update(blob.encoding for blob in segment.entries)
    assert encodings == {0, 1, 2}
    assert scene.repository.key_epoch == 5
    assert len(list(storage.list("keys/"))) == 4


def test_patches_and_epochs_restore(run: Run, scene: Scene, tmp_path: Path) -> None:
    for point in scene.points[1:]:
        out = tmp_path / point.id
        done = run(scene.place, "restore", point.id[:13], "Hard disk 1", out, "--threads", 2)
        assert done.returncode == 0, done.stderr
        assert sha256(out) == scene.sha256[point.id]
        assert out.stat().st_blocks * 512 < CAPACITY_BYTES / 2, "zeros take no space"
    out = tmp_path / "newest"
    done = run(scene.place, "restore", "vm01", "1", out)
    assert done.returncode == 0
    assert sha256(out) == scene.sha256[scene.points[-1].id], "a VM's name means its newest point"


def test_every_kind_of_key_opens(run: Run, scene: Scene, tmp_path: Path) -> None:
    recovery = recovery_key_text(scene.recovery)
    key_file = tmp_path / "key"
    key_file.write_text(key_file_text(scene.file, scene.repository.id))
    arguments = (scene.place, "list")
    assert run(*arguments, password="other").returncode == 0
    assert run(*arguments, password=recovery.lower().replace("-", " ")).returncode == 0
    assert run(*arguments, "--key-file", key_file, password=None).returncode == 0
    by_variable = run(*arguments, password=None, env={"VMHAUL_RESTORE_PASSWORD": PASSWORD})
    assert by_variable.returncode == 0
    mistyped = run(*arguments, password=recovery[:-1] + ("0" if recovery[-1] != "0" else "1"))
    assert (mistyped.returncode, "wrong password" in mistyped.stderr) == (3, True)
    nothing = run(*arguments, password=None)
    assert (nothing.returncode, "no terminal" in nothing.stderr) == (2, True)


def test_a_large_index_is_read_again_instead_of_kept(
    run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small-memory"
    text = TOOL.read_text()
    for name, value in (
        ("WINDOW_BLOCKS = 1 << 17", "WINDOW_BLOCKS = 1000"),
        ("CACHED_ENTRIES = 1 << 18", "CACHED_ENTRIES = 10"),
    ):
        assert name in text
        text = text.replace(name, value)
    small.write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "TOOL", small)
    out = tmp_path / "out"
    done = run(scene.place, "restore", "vm01", "1", out)
    assert done.returncode == 0, done.stderr
    assert sha256(out) == scene.sha256[scene.points[-1].id]


def test_a_scale_out_repository_is_its_extents(run: Run, scene: Scene, tmp_path: Path) -> None:
    first, second = scene.copy(tmp_path / "first"), tmp_path / "second"
    packs = sorted(path for path in first.glob("packs/*/*") if path.is_file())
    for path in packs[::2]:
        moved = second / path.relative_to(first)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    assert run(f"{first},{second}", "verify").returncode == 0
    for folder in ("index", "points"):  # small objects are in every extent: one good copy is enough
        (second / folder).mkdir()
        for path in (first / folder).iterdir():
            (second / folder / path.name).write_bytes(path.read_bytes())
            path.write_bytes(path.read_bytes()[:-3])
    mirrored = run(f"{first},{second}", "verify")
    assert (mirrored.returncode, "0 problems" in mirrored.stdout) == (0, True), mirrored.stdout
    assert run(first, "verify").returncode == 1


# ---- damage and mistakes ----------------------------------------------------------------------------


def test_without_its_index_the_footers_serve(run: Run, scene: Scene, tmp_path: Path) -> None:
    place = scene.copy(tmp_path / "repository")
    for path in sorted((place / "index").iterdir())[::2]:
        path.write_bytes(path.read_bytes()[:-1])
    for path in sorted((place / "index").iterdir())[1::2]:
        path.unlink()
    out = tmp_path / "out"
    done = run(place, "restore", "vm01", "1", out)
    assert done.returncode == 0, done.stderr
    assert "footers" in done.stderr
    assert sha256(out) == scene.sha256[scene.points[-1].id]


def test_damage_is_never_served(run: Run, scene: Scene, tmp_path: Path) -> None:
    place = scene.copy(tmp_path / "repository")
    pack = max(place.glob("packs/*/*"), key=lambda path: (path.stat().st_size, path.name))
    data = bytearray(pack.read_bytes())
    for at in range(500, len(data) - 4000, 2500):
        data[at] ^= 4
    pack.write_bytes(data)
    verified = run(place, "verify")
    assert verified.returncode == 1
    assert "cannot be restored" in verified.stdout
    failing = [point for point in scene.points[1:] if run(place, "verify", point.id).returncode]
    assert failing
    out = tmp_path / "out"
    refused = run(place, "restore", failing[-1].id, "1", out)
    assert refused.returncode == 1
    assert "cannot be restored" in refused.stderr
    assert list(tmp_path.glob("out*")) == [], "no half of a disk under its name"
    rest = run(place, "restore", failing[-1].id, "1", out, "--skip-damaged")
    assert rest.returncode == 1
    assert out.stat().st_size == CAPACITY_BYTES


def replaced_point(place: Path, scene: Scene) -> None:
    (place / "points" / scene.points[2].id).unlink()


def old_state(place: Path, _scene: Scene) -> None:
    (place / "epochs" / "5").unlink()


def bad_epoch(place: Path, _scene: Scene) -> None:
    path = place / "epochs" / "3"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def swapped_epochs(place: Path, _scene: Scene) -> None:
    (place / "epochs" / "2").write_bytes((place / "epochs" / "3").read_bytes())


def newer(place: Path, _scene: Scene) -> None:
    path = place / "vmhaul-repository.json"
    path.write_text(path.read_text().replace('"version":1', '"version":2'))


def other_feature(place: Path, _scene: Scene) -> None:
    path = place / "vmhaul-repository.json"
    path.write_text(path.read_text().replace('"patches"', '"riddles"'))


def taken_feature(place: Path, _scene: Scene) -> None:
    path = place / "vmhaul-repository.json"
    path.write_text(path.read_text().replace(',"patches"', ""))


def no_configuration(place: Path, _scene: Scene) -> None:
    (place / "vmhaul-repository.json").unlink()


def damaged_keys(place: Path, _scene: Scene) -> None:
    for path in (place / "keys").iterdir():
        path.write_bytes(path.read_bytes()[:60])


def point_of_another(place: Path, scene: Scene) -> None:
    points = place / "points"
    (points / scene.points[3].id).write_bytes((points / scene.points[2].id).read_bytes())


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (replaced_point, 1, "is gone without having been forgotten"),
        (old_state, 1, "has key epoch 5, which this key does not open"),
        (bad_epoch, 1, "epochs/3 is damaged"),
        (swapped_epochs, 1, "epochs/2 is epoch 3 under another name"),
        (newer, 1, "format version 2; use a newer"),
        (other_feature, 1, "uses riddles; use a newer"),
        (taken_feature, 1, "does not belong to this key"),
        (no_configuration, 1, "no vmhaul repository"),
        (damaged_keys, 1, "the key object is damaged"),
        (point_of_another, 1, "belongs to another place"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_was_changed_is_named(
    run: Run,
    scene: Scene,
    tmp_path: Path,
    change: Callable[[Path, Scene], None],
    status: int,
    message: str,
) -> None:
    place = scene.copy(tmp_path / "repository")
    change(place, scene)
    done = run(place, "verify")
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["restore", "nobody", "1", "OUT"], 2, "no restore point and no VM is called nobody"),
        (["restore", "vm01", "9", "OUT"], 2, "no disk 9; the restore point has 1: Hard disk 1"),
        (["restore", "vm01", "1", "THERE"], 2, "exists; choose another name, or give --overwrite"),
        (["show", "nobody"], 2, "no restore point"),
        (["list", "--threads", "0"], 2, "at least 1"),
    ],
)
def test_mistakes_are_explained(
    run: Run, scene: Scene, tmp_path: Path, arguments: Sequence[str], status: int, message: str
) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    names = {"OUT": str(tmp_path / "out"), "THERE": str(there)}
    done = run(scene.place, *(names.get(text, text) for text in arguments))
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert there.read_bytes() == b"precious"


def test_wrong_passwords_and_places(run: Run, scene: Scene, tmp_path: Path) -> None:
    wrong = run(scene.place, "list", password="open sesam")
    assert (wrong.returncode, "wrong password" in wrong.stderr) == (3, True)
    assert "open sesam" not in wrong.stderr
    gone = run(tmp_path / "gone", "list")
    assert (gone.returncode, "is no directory" in gone.stderr) == (1, True)
    empty = run(tmp_path, "list")
    assert (empty.returncode, "no vmhaul repository" in empty.stderr) == (1, True)


def test_show_gives_what_a_new_vm_needs(run: Run, scene: Scene, tmp_path: Path) -> None:
    config, nvram = tmp_path / "config.json", tmp_path / "nvram"
    done = run(scene.place, "show", "vm01", "--json", "--vm-config", config, "--nvram", nvram)
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    assert shown["id"] == scene.points[-1].id
    assert config.read_bytes() == scene.points[-1].vm_config
    assert nvram.read_bytes() == scene.points[-1].nvram


def test_an_old_state_is_restored_with_a_warning(run: Run, scene: Scene, tmp_path: Path) -> None:
    """Somebody lost epochs/5, but the key that was added in epoch 4 and those before still open."""
    place = scene.copy(tmp_path / "repository")
    repository = Repository.open_by(open_storage(str(place)), by_password("other"), clock=time.time)
    repository.add_key(by_password("late"), kdf_cost=CHEAP_KDF)
    (place / "epochs" / "5").unlink()
    out = tmp_path / "out"
    done = run(place, "restore", "vm01", "1", out, password="late")
    assert done.returncode == 0, done.stderr
    assert "epochs/5 is missing" in done.stderr
    assert sha256(out) == scene.sha256[scene.points[-1].id]
