"""A machine's sys/ and dev/ as Linux shows SCSI disks, in a directory of a test."""

from __future__ import annotations

from pathlib import Path

from transports.machine import Machine


class SysTree:
    """Plain files stand for devices; nothing happens by itself: a test sees what was written to `scan` and
    `delete`.
    """

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.dev = root / "dev"
        (self.sys / "block").mkdir(parents=True)
        self.dev.mkdir()

    @property
    def machine(self) -> Machine:
        return Machine(sys_path=str(self.sys), dev_path=str(self.dev))

    def add_host(self, number: int, driver: str = "vmw_pvscsi") -> Path:
        host = self.sys / f"class/scsi_host/host{number}"
        host.mkdir(parents=True)
        (host / "scan").write_text("")
        (host / "proc_name").write_text(driver + "\n")
        return host

    def add_disk(
        self,
        name: str,
        content: Path | None = None,
        *,
        size_bytes: int = 1 << 20,
        wwid: str = "",
        page_83: bytes = b"",
        address: str = "",
        read_only: bool = False,
        number: str = "",
        sequence: str = "",
        below: str = "",
    ) -> Path:
        """`content`: what its node is; none: there is no node. `below`: the devices that it hangs from."""
        block = self.sys / "block" / name
        block.mkdir()
        size = content.stat().st_size if content is not None else size_bytes
        (block / "size").write_text(f"{size // 512}\n")
        (block / "ro").write_text(f"{int(read_only)}\n")
        for attribute, value in (("dev", number), ("diskseq", sequence)):
            if value:
                (block / attribute).write_text(value + "\n")
        if address:
            device = self.sys / "devices" / below / address
            device.mkdir(parents=True)
            (device / "delete").write_text("")
            if wwid:
                (device / "wwid").write_text(wwid + "\n")
            if page_83:
                (device / "vpd_pg83").write_bytes(page_83)
            (block / "device").symlink_to(device)
        if content is not None:
            (self.dev / name).symlink_to(content)
        return block

    def add_connection(self, session: int, number: int = 0, **attributes: str) -> None:
        """A connection of an iSCSI session: `address`, `persistent_address`."""
        connection = self.sys / f"class/iscsi_connection/connection{session}:{number}"
        connection.mkdir(parents=True)
        for name, value in attributes.items():
            (connection / name).write_text(value + "\n")

    def remove_disk(self, name: str) -> None:
        block = self.sys / "block" / name
        link = block / "device"
        if link.is_symlink():
            link.unlink()
        for entry in block.iterdir():
            entry.unlink()
        block.rmdir()
        (self.dev / name).unlink(missing_ok=True)

    def add_multipath(
        self, name: str, uuid: str, paths: list[str], *, size_bytes: int = 1 << 20
    ) -> None:
        block = self.sys / "block" / name
        (block / "dm").mkdir(parents=True)
        (block / "slaves").mkdir()
        (block / "size").write_text(f"{size_bytes // 512}\n")
        (block / "ro").write_text("0\n")
        (block / "dm/uuid").write_text(uuid + "\n")
        for path in paths:
            (block / "slaves" / path).symlink_to(self.sys / "block" / path)


def designator(kind: int, value: bytes, *, association: int = 0) -> bytes:
    """One entry of page 0x83."""
    return bytes([1, association << 4 | kind, 0, len(value)]) + value


def page_83(*designators: bytes) -> bytes:
    body = b"".join(designators)
    return bytes([0, 0x83]) + len(body).to_bytes(2, "big") + body
