"""File servers whose snapshots are directories of the same export: ZFS and btrfs, by commands over SSH.

What a proxy is shown needs no change on the server: the snapshot is there, read-only, for whoever may open the
export. ZFS shows it as `.zfs/snapshot/NAME` below the dataset; on btrfs the snapshot is put into a directory
`.snapshots` of the subvolume that is exported.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from transports.errors import PermanentTransportError
from transports.storage_systems.base import (
    Exposed,
    Option,
    StorageAccess,
    StorageDriver,
    StorageSnapshot,
    SystemInfo,
    Volume,
    VolumeKind,
    checked_snapshot,
    is_snapshot,
    snapshot_of,
    split_address,
)
from transports.storage_systems.ssh import SSH_PORT, Ran, Shell, SshHost, host_fingerprint

NAME: Final = "snapshot-directories"
BTRFS_DIRECTORY: Final = ".snapshots"
ZFS_DIRECTORY: Final = ".zfs/snapshot"
_DATASET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/ -]*")


class Host(Protocol):
    """What is asked of SshHost."""

    def session(self) -> AbstractContextManager[Shell]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory tree of which snapshots are made."""

    id: str
    path: str
    size_bytes: int


class Flavour(Protocol):
    """The commands of one kind of file system."""

    name: str
    directory: str
    """Below a tree, where its snapshots are."""
    version: Sequence[str]

    def trees(self, shell: Shell, paths: Sequence[str]) -> list[Tree]: ...

    def snapshots(self, shell: Shell, trees: Sequence[Tree]) -> list[tuple[str, str]]:
        """Pairs of tree id and snapshot name, of whatever form."""

    def create(self, shell: Shell, trees: Sequence[Tree], name: str) -> None: ...

    def delete(self, shell: Shell, trees: Sequence[Tree], name: str) -> None: ...


class Zfs:
    """A tree is a mounted dataset."""

    name: str = "zfs"
    directory: str = ZFS_DIRECTORY
    version: Sequence[str] = ("zfs", "version")

    def trees(self, shell: Shell, paths: Sequence[str]) -> list[Tree]:
        words = ["zfs", "list", "-H", "-p", "-t", "filesystem", "-o", "name,mountpoint,used,available"]
        found = []
        for line in done(shell.run(words)).splitlines():
            name, mountpoint, used, available = line.split("\t")
            if mountpoint.startswith("/") and (not paths or mountpoint in paths):
                size = sum(int(text) for text in (used, available) if text.isdigit())
                found.append(Tree(id=name, path=mountpoint, size_bytes=size))
        return found

    def snapshots(self, shell: Shell, trees: Sequence[Tree]) -> list[tuple[str, str]]:
        words = ["zfs", "list", "-H", "-p", "-t", "snapshot", "-o", "name"]
        pairs = [line.partition("@") for line in done(shell.run(words)).splitlines()]
        known = {tree.id for tree in trees}
        return [(dataset, name) for dataset, _, name in pairs if dataset in known]

    def create(self, shell: Shell, trees: Sequence[Tree], name: str) -> None:
        # Those of one command are of one moment.
        done(shell.run(["zfs", "snapshot", *(f"{self._dataset(tree)}@{name}" for tree in trees)]))

    def delete(self, shell: Shell, trees: Sequence[Tree], name: str) -> None:
        # Never -r or -R: only what is named goes.
        for tree in trees:
            done(shell.run(["zfs", "destroy", f"{self._dataset(tree)}@{name}"]))

    @staticmethod
    def _dataset(tree: Tree) -> str:
        if not _DATASET.fullmatch(tree.id):
            raise PermanentTransportError(f"{tree.id!r} is not the name of a dataset")
        return tree.id


class Btrfs:
    """A tree is a subvolume that is exported; the administrator names its path."""

    name: str = "btrfs"
    directory: str = BTRFS_DIRECTORY
    version: Sequence[str] = ("btrfs", "--version")

    def trees(self, shell: Shell, paths: Sequence[str]) -> list[Tree]:
        found = []
        for path in paths:
            done(shell.run(["btrfs", "subvolume", "show", path]))
            size = done(shell.run(["df", "-B1", "--output=size", path])).split()[-1]
            found.append(Tree(id=path, path=path, size_bytes=int(size) if size.isdigit() else 0))
        return found

    def snapshots(self, shell: Shell, trees: Sequence[Tree]) -> list[tuple[str, str]]:
        found = []
        for tree in trees:
            if shell.run(["test", "-d", self._place(tree)]).status != 0:
                continue
            listed = done(shell.run(["ls", "-1A", self._place(tree)]))
            found += [(tree.id, name) for name in listed.splitlines()]
        return found

    def create(self, shell: Shell, trees: Sequence[Tree], name: str) -> None:
        for tree in trees:
            place = self._place(tree)
            done(shell.run(["mkdir", "-p", place]))
            done(shell.run(["btrfs", "subvolume", "snapshot", "-r", tree.path, f"{place}/{name}"]))

    def delete(self, shell: Shell, trees: Sequence[Tree], name: str) -> None:
        for tree in trees:
            done(shell.run(["btrfs", "subvolume", "delete", f"{self._place(tree)}/{name}"]))

    @staticmethod
    def _place(tree: Tree) -> str:
        return f"{tree.path.rstrip('/')}/{BTRFS_DIRECTORY}"


FLAVOURS: Final[dict[str, Flavour]] = {"zfs": Zfs(), "btrfs": Btrfs()}


class SnapshotDirectories:
    """A StorageSystem."""

    def __init__(
        self, host: Host, flavour: Flavour, *, paths: Sequence[str], addresses: Sequence[str]
    ) -> None:
        self._host = host
        self._flavour = flavour
        self._paths = tuple(paths)
        self._addresses = tuple(addresses)

    def describe(self) -> SystemInfo:
        with self._host.session() as shell:
            said = done(shell.run(self._flavour.version)).splitlines()
            self._flavour.trees(shell, self._paths)
        return SystemInfo(
            model=f"{self._flavour.name} file server", version=said[0].strip() if said else ""
        )

    def volumes(self) -> tuple[Volume, ...]:
        with self._host.session() as shell:
            trees = self._flavour.trees(shell, self._paths)
        hosts = _with_addresses(self._addresses)
        return tuple(
            Volume(
                id=tree.id,
                name=tree.id,
                kind=VolumeKind.NFS,
                size_bytes=tree.size_bytes,
                exports=(tree.path,),
                hosts=hosts,
            )
            for tree in trees
        )

    def create_snapshot(self, name: str, volume_ids: Sequence[str]) -> None:
        checked_snapshot(name)
        with self._host.session() as shell:
            trees = self._flavour.trees(shell, self._paths)
            if unknown := sorted(set(volume_ids) - {tree.id for tree in trees}):
                raise PermanentTransportError(
                    f"the file server has no {', '.join(unknown)} any more; rescan it"
                )
            wanted = [tree for tree in trees if tree.id in volume_ids]
            made = self._having(shell, wanted, name)
            missing = [tree for tree in wanted if tree not in made]
            if missing:
                self._flavour.create(shell, missing, name)

    def snapshots(self, prefix: str) -> tuple[StorageSnapshot, ...]:
        with self._host.session() as shell:
            pairs = self._flavour.snapshots(shell, self._flavour.trees(shell, self._paths))
        found: dict[str, list[str]] = {}
        for tree_id, name in pairs:
            if is_snapshot(name, prefix):
                found.setdefault(name, []).append(tree_id)
        return tuple(
            StorageSnapshot(name=name, volume_ids=tuple(ids)) for name, ids in sorted(found.items())
        )

    def delete_snapshot(self, name: str) -> None:
        checked_snapshot(name)
        with self._host.session() as shell:
            having = self._having(shell, self._flavour.trees(shell, self._paths), name)
            if having:
                self._flavour.delete(shell, having, name)

    def _having(self, shell: Shell, trees: Sequence[Tree], name: str) -> list[Tree]:
        ids = {tree_id for tree_id, one in self._flavour.snapshots(shell, trees) if one == name}
        return [tree for tree in trees if tree.id in ids]

    def expose(self, exposure: str, volume_ids: Sequence[str], host: str) -> tuple[Exposed, ...]:
        """The export shows it already to whoever may open it."""
        del host
        directory = f"{self._flavour.directory}/{snapshot_of(exposure)}"
        return tuple(Exposed(volume_id=one, directory=directory) for one in volume_ids)

    def exposures(self, prefix: str) -> tuple[str, ...]:
        """None: they take nothing."""
        del prefix
        return ()

    def hide(self, exposure: str) -> None:
        """It goes with the snapshot."""
        snapshot_of(exposure)

    def close(self) -> None:
        """There is no session between calls."""


def done(ran: Ran) -> str:
    """What it printed. PermanentTransportError when it failed."""
    if ran.status != 0:
        said = ran.errors or ran.output.strip() or "nothing"
        raise PermanentTransportError(
            f"the storage host could not do `{ran.command}` (status {ran.status}): {said[:500]}"
        )
    return ran.output


def _with_addresses(names: Sequence[str]) -> tuple[str, ...]:
    """Names with the addresses that they have now: vSphere may know the server by either."""
    found = dict.fromkeys(names)
    for name in names:
        try:
            known = socket.getaddrinfo(name, None)
        except OSError:
            continue
        found |= dict.fromkeys(str(entry[4][0]) for entry in known)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SudoShell:
    """Every command with the rights of root, without a password to be asked for."""

    shell: Shell

    def run(self, words: Sequence[str]) -> Ran:
        return self.shell.run(["sudo", "-n", *words])


@dataclass(frozen=True, slots=True, kw_only=True)
class SudoHost:
    host: Host

    @contextmanager
    def session(self) -> Iterator[Shell]:
        with self.host.session() as shell:
            yield SudoShell(shell=shell)


def _connect(access: StorageAccess) -> SnapshotDirectories:
    options = access.options
    host_name, port = split_address(access.address, SSH_PORT)
    kind = str(options["kind"])
    paths = tuple(str(path) for path in options.get("paths", ()))
    if wrong := [path for path in paths if not path.startswith("/") or ".." in path.split("/")]:
        raise ValueError(f"paths must be absolute, {wrong[0]} is not")
    if kind == "btrfs" and not paths:
        raise ValueError("paths is needed for btrfs: the subvolumes that are exported")
    host: Host = SshHost(
        host=host_name,
        port=port,
        fingerprint=access.identity,
        user=str(options.get("user") or "root"),
        password=access.secrets.get("password"),
        private_key=access.secrets.get("private_key"),
    )
    if options.get("sudo") == "yes":
        host = SudoHost(host=host)
    return SnapshotDirectories(
        host,
        FLAVOURS[kind],
        paths=paths,
        addresses=tuple(options.get("addresses") or ()) or (host_name,),
    )


DRIVER: Final = StorageDriver(
    name=NAME,
    title="NFS file server with snapshots in directories (ZFS, btrfs), over SSH",
    options=(
        Option(
            name="kind", help="File system of the exports.", required=True, choices=("zfs", "btrfs")
        ),
        Option(
            name="paths",
            help="Exported directories: datasets' mount points (ZFS; default: all), subvolumes (btrfs).",
            many=True,
        ),
        Option(
            name="addresses",
            help="Names and addresses by which hosts mount it (default: its own).",
            many=True,
        ),
        Option(name="user", help="Who logs in.", default="root"),
        Option(name="sudo", help="Run commands through sudo -n.", choices=("yes", "no"), default="no"),
    ),
    secrets=(("private_key",), ("password",)),
    needs_host=False,
    probe=lambda address: host_fingerprint(*split_address(address, SSH_PORT)),
    connect=_connect,
)
