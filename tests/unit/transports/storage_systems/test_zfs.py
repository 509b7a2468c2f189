"""What is asked of a ZFS host, word by word. Never run against one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from transports.errors import PermanentTransportError
from transports.storage_systems.base import VolumeKind, exposure_name, snapshot_name
from transports.storage_systems.snapshot_directories import SnapshotDirectories, SudoHost, Zfs
from transports.storage_systems.ssh import Ran, Shell

SERVER = "6f1f4a53-8a0c-4b7e-9d53-0f3f0a6d1c11"
NAME = snapshot_name(SERVER, "11111111-2222-4333-8444-555555555555")
LIST = "tank\t/tank\t100\t900\ntank/vm ware\t/tank/vm ware\t50\t900\ntank/swap\tnone\t1\t900\ntank/old\tlegacy\t1\t9\n"


class ZfsHost:
    """Answers as zfs(8) describes, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.snapshots = ["tank@daily", "tank/other@" + NAME]
        self.broken = ""

    @contextmanager
    def session(self) -> Iterator[Shell]:
        yield self

    def run(self, words: Sequence[str]) -> Ran:
        self.asked.append(list(words))
        plain = list(words)[2:] if words[0] == "sudo" else list(words)
        status, output = 0, ""
        if self.broken and plain[1] == self.broken:
            return Ran(command=" ".join(words), status=1, output="", errors="permission denied")
        if plain[1] == "version":
            output = "zfs-2.2.4-1\nzfs-kmod-2.2.4-1\n"
        elif plain[1] == "list":
            output = LIST if "filesystem" in plain else "".join(f"{one}\n" for one in self.snapshots)
        elif plain[1] == "snapshot":
            self.snapshots += plain[2:]
        elif plain[1] == "destroy":
            self.snapshots.remove(plain[2])
        return Ran(command=" ".join(words), status=status, output=output, errors="")


@pytest.fixture
def host() -> ZfsHost:
    return ZfsHost()


@pytest.fixture
def system(host: ZfsHost) -> SnapshotDirectories:
    return SnapshotDirectories(host, Zfs(), paths=(), addresses=("127.0.0.1",))


def test_datasets_that_are_mounted_are_volumes(system: SnapshotDirectories) -> None:
    found = system.volumes()
    assert [(one.id, one.exports, one.size_bytes) for one in found] == [
        ("tank", ("/tank",), 1000),
        ("tank/vm ware", ("/tank/vm ware",), 950),
    ]
    assert all(one.kind is VolumeKind.NFS and one.hosts == ("127.0.0.1",) for one in found)
    assert system.describe().version == "zfs-2.2.4-1"


def test_only_the_paths_that_were_named(host: ZfsHost) -> None:
    system = SnapshotDirectories(host, Zfs(), paths=("/tank/vm ware",), addresses=())
    assert [one.id for one in system.volumes()] == ["tank/vm ware"]


def test_a_snapshot_of_several_is_one_command(system: SnapshotDirectories, host: ZfsHost) -> None:
    system.create_snapshot(NAME, ["tank", "tank/vm ware"])
    assert host.asked[-1] == ["zfs", "snapshot", f"tank@{NAME}", f"tank/vm ware@{NAME}"]
    [found] = system.snapshots("")
    assert found.volume_ids == ("tank", "tank/vm ware")
    asked = len(host.asked)
    system.create_snapshot(NAME, ["tank"])
    assert not any(words[1] == "snapshot" for words in host.asked[asked:])


def test_deleting_names_each_and_nothing_below(system: SnapshotDirectories, host: ZfsHost) -> None:
    system.create_snapshot(NAME, ["tank", "tank/vm ware"])
    system.delete_snapshot(NAME)
    destroyed = [words for words in host.asked if words[1] == "destroy"]
    assert destroyed == [["zfs", "destroy", f"tank@{NAME}"], ["zfs", "destroy", f"tank/vm ware@{NAME}"]]
    assert host.snapshots == ["tank@daily", "tank/other@" + NAME], "of a dataset that was not named"


def test_a_proxy_finds_it_below_the_export(system: SnapshotDirectories) -> None:
    [shown] = system.expose(exposure_name(NAME, "task"), ["tank"], "")
    assert shown.directory == f".zfs/snapshot/{NAME}"


def test_with_the_rights_of_root(host: ZfsHost) -> None:
    SnapshotDirectories(SudoHost(host=host), Zfs(), paths=(), addresses=()).volumes()
    assert host.asked[0][:3] == ["sudo", "-n", "zfs"]


def test_a_dataset_that_is_gone_and_a_command_that_fails_are_said(
    system: SnapshotDirectories, host: ZfsHost
) -> None:
    with pytest.raises(PermanentTransportError, match="tank/gone"):
        system.create_snapshot(NAME, ["tank/gone"])
    host.broken = "snapshot"
    with pytest.raises(PermanentTransportError, match=r"permission denied"):
        system.create_snapshot(NAME, ["tank"])
