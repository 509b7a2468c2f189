"""Disks as ESXi lays them down on an NFS datastore, and a server for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmhaul_lab.nfs import NfsExport, NfsServer

from transports.base import DatastoreRef, DiskRef

DATASTORE = "nfs-1"


@contextmanager
def nfs_server(directory: Path, exports: Sequence[NfsExport]) -> Iterator[NfsServer]:
    server = NfsServer(directory, exports)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def image_with_holes() -> bytes:
    """1.5 MiB and a bit: data, zeros, data."""
    head = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(1024))
    return head + bytes(512 << 10) + head[::-1] + bytes(3 * 512)


def lay_down(root: Path, name: str, image: bytes, *, lines: str = "") -> None:
    """`<root>/<name>/<name>.vmdk` and its flat file, for root alone."""
    directory = root / name
    directory.mkdir(exist_ok=True)
    extent = lines or f'RW {len(image) // 512} VMFS "{name}-flat.vmdk"'
    (directory / f"{name}.vmdk").write_text(
        f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="vmfs"\n{extent}\n'
    )
    flat = directory / f"{name}-flat.vmdk"
    flat.touch(mode=0o600)
    with flat.open("r+b") as file:
        file.truncate(len(image))
        for at in range(0, len(image), 4096):
            block = image[at : at + 4096]
            if any(block):
                file.seek(at)
                file.write(block)


def nfs_disk(
    address: str, path: str, name: str, capacity_bytes: int, *, kind: str = "NFS41"
) -> DiskRef:
    return DiskRef(
        vm_moref="vm-1",
        vm_name=name,
        disk_key=2000,
        path=f"[{DATASTORE}] {name}/{name}.vmdk",
        capacity_bytes=capacity_bytes,
        datastore=DATASTORE,
        snapshot_moref="snapshot-1",
        storage=DatastoreRef(name=DATASTORE, kind=kind, nfs_hosts=(address,), nfs_path=path),
    )


def mountinfo(file: Path, point: Path, source: str, *, options: str = "rw") -> Path:
    """What the kernel would tell of a mounted export, in a file; `point` holds what is exported."""
    file.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"97 22 0:52 / {point} {options},relatime shared:52 - nfs4 {source} {options},vers=4.2,addr=127.0.0.9\n"
    )
    return file
