"""What the directory driver does besides its contract."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import (
    ObjectNotFoundError,
    PermanentPipelineError,
    StorageMissingError,
    StoragePermissionError,
)
from pipeline.storage.local import LocalStorage


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the system calls that make things durable or visible, in order."""
    made: list[str] = []

    def recorded(name: str) -> None:
        honest = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            kind = name
            if name == "fsync":
                is_directory = stat.S_ISDIR(os.fstat(args[0]).st_mode)  # type: ignore[arg-type]
                kind = "fsync directory" if is_directory else "fsync file"
            made.append(kind)
            return honest(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("writev", "fsync", "link", "rename", "mkdir"):
        recorded(name)
    return made


def test_content_is_durable_before_the_name_and_the_name_before_return(
    tmp_path: Path, calls: list[str]
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("packs/aa/one", b"x")
    assert calls == [
        "mkdir", "fsync directory",  # tmp
        "writev", "fsync file",
        "mkdir", "fsync directory", "mkdir", "fsync directory",  # packs, packs/aa
        "link", "fsync directory",
    ]  # fmt: skip
    calls.clear()
    storage.put("packs/aa/two", b"x")
    assert calls == ["writev", "fsync file", "link", "fsync directory"]
    calls.clear()
    storage.replace("work/one", b"x")
    storage.replace("work/one", b"y")
    assert calls[-4:] == ["writev", "fsync file", "rename", "fsync directory"]
    calls.clear()
    storage.delete("work/one")
    assert calls == ["fsync directory"]
    storage.close()


def test_files_are_private(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "r", create=True)
    storage.put("packs/aa/one", b"x")
    for path in (tmp_path / "r").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o700
    storage.close()


def test_clean_removes_what_dead_writers_left_when_it_is_old(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    dead = storage.create("packs/one")
    dead.write([b"12345"])
    (left,) = (tmp_path / "tmp").iterdir()
    os.utime(left, (1000, 1000))
    assert storage.clean(1000) == 0
    assert storage.clean(1001) == 5
    assert list((tmp_path / "tmp").iterdir()) == []
    storage.close()


def test_what_lies_in_tmp_is_no_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"")
    storage.create("b").write([b"x"])
    assert [entry.name for entry in storage.list("")] == ["a"]
    storage.close()


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    place = tmp_path / "r"
    storage = LocalStorage(place, create=True)
    (place / "link").symlink_to(secret)
    assert list(storage.list("")) == []
    with pytest.raises(Exception, match="link"):
        storage.read("link")
    storage.close()


def test_a_storage_that_moved_stays_the_same_storage(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "here", create=True)
    storage.put("a", b"1")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "here").mkdir()
    storage.put("b", b"2")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["a", "b", "tmp"]
    assert list((tmp_path / "here").iterdir()) == []
    storage.close()


def test_refusals_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)

    def refused(*_args: object, **_kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoragePermissionError, match="give this user write access"):
        storage.put("a", b"")
    monkeypatch.undo()
    with pytest.raises(ObjectNotFoundError, match="reading a in"):
        storage.read("a")
    storage.close()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.writev

    def short(fd: int, views: list[memoryview]) -> int:
        return honest(fd, [views[0][: max(1, len(views[0]) // 2)]])

    monkeypatch.setattr(os, "writev", short)
    storage = LocalStorage(tmp_path)
    writer = storage.create("a")
    writer.write([b"abcdefg", b"", b"hij", b"k"])
    writer.commit()
    assert storage.read("a") == b"abcdefghijk"
    storage.close()


def test_a_directory_with_files_of_others_becomes_no_storage(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".snapshot").mkdir()
    LocalStorage(tmp_path, create=True).close()
    (tmp_path / "photos").mkdir()
    with pytest.raises(PermanentPipelineError, match="not empty: it holds 'photos'"):
        LocalStorage(tmp_path, create=True)
    LocalStorage(tmp_path).close()


def test_the_space_is_that_of_the_place_that_opens_next(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "here", create=True)
    assert storage.space().total_bytes > 0
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(StorageMissingError, match="mount it"):
        storage.space()
    (tmp_path / "here").mkdir()
    with pytest.raises(StorageMissingError, match="not the one that was opened"):
        storage.space()
    storage.close()
