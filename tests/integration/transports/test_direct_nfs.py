"""Direct access over NFS against a real server: what is refused and why, probes, and what a write asks for."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vmhaul_lab.nfs import NfsExport, NfsServer

from tests.support.disks import read_all
from tests.support.nfs_disks import image_with_holes, lay_down, mountinfo, nfs_disk, nfs_server
from tests.support.routers import behind_routers
from tests.support.tcp_front import tcp_front
from transports.base import DatastoreRef, DiskRef
from transports.direct_nfs import NfsClient, NfsOptions, connection, open_reader, open_writer, probe
from transports.direct_nfs.connection import NFS_PORT
from transports.direct_nfs.hops import hops
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.registry import ModeOptions, offered_modes, probes

pytestmark = pytest.mark.lab
OPTIONS = NfsOptions(client=NfsClient.LIBRARY)
HERE = Machine()
IMAGE = image_with_holes()
OTHER = '"a-flat.vmdk"'


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    root.chmod(0o755)  # as the hosts make directories
    lay_down(root, "db", IMAGE)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[NfsServer]:
    empty = tmp_path_factory.mktemp("empty")
    exports = [
        NfsExport(name="open", directory=str(exported), version=4),
        NfsExport(name="read", directory=str(exported), version=4, options={"Access_Type": "RO"}),
        NfsExport(
            name="squashed", directory=str(exported), version=4, options={"Squash": "Root_Squash"}
        ),
        NfsExport(name="empty", directory=str(empty), version=4),
    ]
    with nfs_server(tmp_path_factory.mktemp("server"), exports) as server:
        yield server


def disk(server: NfsServer, export: str = "open", name: str = "db", size: int = len(IMAGE)) -> DiskRef:
    return nfs_disk(server.host, f"/vol/{export}", name, size)


def refusal(disk: DiskRef, *, write: bool = False) -> str:
    open_disk = open_writer if write else open_reader
    with pytest.raises(TransportUnavailableError) as caught:
        open_disk(OPTIONS, HERE, disk)
    return str(caught.value)


# ---- refused


def test_a_delta_is_refused_before_anybody_is_asked() -> None:
    above = replace(nfs_disk("nobody.invalid", "/v", "db", 512), is_delta=True)
    assert "earlier snapshot" in refusal(above)


@pytest.mark.parametrize("storage", [None, DatastoreRef(name="x", kind="VMFS", vmfs_uuid="1")])
def test_a_disk_elsewhere_is_refused(storage: DatastoreRef | None) -> None:
    assert "not known to lie on an NFS datastore" in refusal(
        replace(nfs_disk("x", "/v", "db", 512), storage=storage)
    )


def test_a_datastore_without_a_server_is_refused() -> None:
    nowhere = DatastoreRef(name="x", kind="NFS", nfs_path="/v")
    assert "names no server" in refusal(replace(nfs_disk("x", "/v", "db", 512), storage=nowhere))


def test_the_descriptor_of_a_delta_is_refused(server: NfsServer, exported: Path) -> None:
    lay_down(exported, "child", IMAGE, lines=f"RW {len(IMAGE) // 512} SESPARSE {OTHER}")
    assert "changes since a snapshot (SESPARSE)" in refusal(disk(server, name="child"))


def test_a_disk_that_is_not_there(server: NfsServer) -> None:
    assert "NOENT" in refusal(disk(server, name="gone"))


def test_a_flat_file_that_is_not_there(server: NfsServer, exported: Path) -> None:
    lay_down(exported, "half", IMAGE)
    (exported / "half" / "half-flat.vmdk").unlink()
    assert "half-flat.vmdk" in refusal(disk(server, name="half"))


def test_a_flat_file_of_another_size(server: NfsServer, exported: Path) -> None:
    lay_down(exported, "short", IMAGE)
    with (exported / "short" / "short-flat.vmdk").open("r+b") as file:
        file.truncate(len(IMAGE) - 512)
    assert f"has {len(IMAGE) - 512} bytes and the disk" in refusal(disk(server, name="short"))


def test_a_capacity_that_vcenter_sees_otherwise(server: NfsServer) -> None:
    assert "resized or replaced" in refusal(disk(server, size=len(IMAGE) + 512))


def test_a_directory_in_the_place_of_the_flat_file(server: NfsServer, exported: Path) -> None:
    lay_down(exported, "odd", IMAGE)
    flat = exported / "odd" / "odd-flat.vmdk"
    flat.unlink()
    flat.mkdir()
    assert "odd-flat.vmdk" in refusal(disk(server, name="odd"))


def test_an_export_that_is_not_there(server: NfsServer) -> None:
    said = refusal(disk(server, "none"))
    assert f"{server.host}:/vol/none is not given to this proxy" in said


def test_root_squash_is_named(server: NfsServer) -> None:
    assert "no root squash" in refusal(disk(server, "squashed"))


def test_a_read_only_export_is_read_and_not_written(server: NfsServer) -> None:
    reader = open_reader(OPTIONS, HERE, disk(server, "read"))
    try:
        assert read_all(reader) == IMAGE
    finally:
        reader.close()
    assert "cannot be opened for writing" in refusal(disk(server, "read"), write=True)


def test_a_mount_for_reading_only_is_not_written(exported: Path, tmp_path: Path) -> None:
    told = mountinfo(tmp_path / "m", exported, "nas.lab:/vol/open", options="ro")
    with pytest.raises(TransportUnavailableError, match="mounted read-only"):
        open_writer(
            NfsOptions(client=NfsClient.MOUNT),
            Machine(mountinfo_path=str(told)),
            nfs_disk("nas.lab", "/vol/open", "db", len(IMAGE)),
        )


def test_the_next_address_is_taken_when_the_first_is_silent(server: NfsServer) -> None:
    there = disk(server)
    assert there.storage is not None
    silent = replace(there, storage=replace(there.storage, nfs_hosts=("127.0.0.254", server.host)))
    reader = open_reader(OPTIONS, HERE, silent)
    try:
        assert read_all(reader) == IMAGE
    finally:
        reader.close()


# ---- probes

# The package's name `probe` is the function.
probing = importlib.import_module("transports.direct_nfs.probe")


@pytest.mark.parametrize(
    ("export", "readable", "writable", "reason"),
    [
        ("open", True, True, ""),
        ("empty", True, True, ""),
        ("read", True, False, "no right to write "),
        ("squashed", False, False, "no right to read "),
        ("none", False, False, "not given to this proxy"),
    ],
)
def test_a_probe_tells_what_may_be_done(
    server: NfsServer,
    monkeypatch: pytest.MonkeyPatch,
    export: str,
    readable: bool,
    writable: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(probing, "writes_version_4_in_pieces", lambda: False)
    storage = DatastoreRef(name="x", kind="NFS41", nfs_hosts=(server.host,), nfs_path=f"/vol/{export}")
    found = probe(OPTIONS, HERE, storage)
    assert found is not None
    assert (found.readable, found.writable) == (readable, writable)
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)
    assert found.hops == (-1 if export == "none" else 0)


def test_a_probe_refuses_writes_that_would_crawl(
    server: NfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "writes_version_4_in_pieces", lambda: True)
    storage = DatastoreRef(name="x", kind="NFS41", nfs_hosts=(server.host,), nfs_path="/vol/open")
    found = probe(OPTIONS, HERE, storage)
    assert found is not None
    assert (found.readable, found.writable) == (True, False)
    assert "in pieces of 4 KiB" in found.reason


def test_a_probe_creates_nothing(server: NfsServer, exported: Path) -> None:
    def seen() -> list[tuple[str, int]]:
        return sorted((str(file), file.stat().st_mtime_ns) for file in exported.rglob("*"))

    before = seen()
    probe(
        OPTIONS,
        HERE,
        DatastoreRef(name="x", kind="NFS41", nfs_hosts=(server.host,), nfs_path="/vol/open"),
    )
    assert seen() == before


def test_a_probe_of_a_mount(exported: Path, tmp_path: Path) -> None:
    told = mountinfo(tmp_path / "m", exported, "nas.lab:/vol/open")
    storage = DatastoreRef(name="x", kind="NFS", nfs_hosts=("nas.lab",), nfs_path="/vol/open")
    found = probe(NfsOptions(client=NfsClient.MOUNT), Machine(mountinfo_path=str(told)), storage)
    assert found is not None
    assert (found.readable, found.writable, found.reason) == (True, True, "")


def test_a_probe_of_a_server_that_is_not_there() -> None:
    storage = DatastoreRef(name="x", kind="NFS", nfs_hosts=("127.0.0.254",), nfs_path="/v")
    found = probe(OPTIONS, HERE, storage)
    assert found is not None
    assert not found.readable
    assert "does not answer at TCP port 111" in found.reason


def test_other_datastores_are_not_of_the_mode() -> None:
    assert probe(OPTIONS, HERE, DatastoreRef(name="x", kind="VMFS", vmfs_uuid="1")) is None


def test_the_registry_offers_and_probes_the_mode(server: NfsServer) -> None:
    storage = DatastoreRef(name="x", kind="NFS41", nfs_hosts=(server.host,), nfs_path="/vol/open")
    options = ModeOptions(nfs=OPTIONS)
    found = next(
        reached
        for mode, reach in probes().items()
        if mode == "direct-nfs" and (reached := reach(options, storage)) is not None
    )
    assert found.readable
    assert not next(lacks for mode, lacks in offered_modes(options).items() if mode == "direct-nfs")


@pytest.mark.parametrize("routers", [0, 1, 3])
def test_hops_are_the_routers_on_the_way(routers: int) -> None:
    with behind_routers(routers) as address:
        assert hops(address, NFS_PORT) == routers


def test_a_name_that_nobody_knows_has_no_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("nobody knows it")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert hops("nas.invalid", NFS_PORT) == -1


# ---- writing


MARKER = b"STABLE-PLEASE---" * 32
# RFC 7530, WRITE4args: …, stable_how4, length, data. RFC 1813, WRITE3args: …, stable_how, length, data.
# 1: the data, 2: file and data are on stable storage before the server answers.
STABLE = {how.to_bytes(4) + len(MARKER).to_bytes(4) for how in (1, 2)}


def write_marker(disk: DiskRef) -> None:
    writer = open_writer(OPTIONS, HERE, disk)
    try:
        writer.write_from(0, memoryview(MARKER))
    finally:
        writer.close()


def test_every_write_of_version_4_is_stable(server: NfsServer, exported: Path) -> None:
    """What is answered before it is on disk would be lost, unseen, with a server that restarts."""
    lay_down(exported, "sync", bytes(1 << 20))
    address = f"127.99.{server.pid % 250}.77"
    with tcp_front(address, NFS_PORT, server.host) as front:
        write_marker(nfs_disk(address, "/vol/open", "sync", 1 << 20))
    at = front.sent.index(MARKER)
    assert bytes(front.sent[at - 8 : at]) in STABLE


def test_every_write_of_version_3_is_stable(tmp_path: Path) -> None:
    root = tmp_path / "export"
    root.mkdir()
    lay_down(root, "sync", bytes(1 << 20))
    exports = [NfsExport(name="three", directory=str(root), version=3)]
    with (
        nfs_server(tmp_path / "server", exports) as server,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as wire,
    ):
        wire.bind((f"vl{server.holder_pid}", 0))
        wire.settimeout(30)
        write_marker(nfs_disk(server.host, "/vol/three", "sync", 1 << 20, kind="NFS"))
        while MARKER not in (packet := wire.recv(1 << 17)):
            pass
    at = packet.index(MARKER)
    assert packet[at - 8 : at] in STABLE


@pytest.mark.parametrize("write", [True, False])
def test_the_kernel_gives_up_writes_that_nobody_acknowledges(server: NfsServer, write: bool) -> None:
    """When they came long after, another attempt might be writing to the disk."""
    storage = disk(server).storage
    assert storage is not None
    opened = connection.connect(storage, OPTIONS, write=write)
    try:
        fd = os.dup(opened.library.nfs_get_fd(opened.context))
        with socket.socket(fileno=fd) as connected:
            limit_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    finally:
        opened.close()
    assert limit_ms == (7000 if write else 0)
