"""Proxies that are VMs of the site: what a plan says of them, and how a test reaches them."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmhaul_lab.content import MIB
from vmhaul_lab.guestview import Appearance
from vmhaul_lab.hardware import Guest, HardwareClient
from vmhaul_lab.images import Content, DiskPlan
from vmhaul_lab.state import write_private


def _system_disk() -> tuple[DiskPlan, ...]:
    return (
        DiskPlan(
            label="system",
            capacity_bytes=8 * MIB,
            layout="raw",
            contents=(Content(maker="texts", budget_bytes=MIB),),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlan:
    """A VM in which a backup proxy could run: its disks, and those attached to it, appear as block devices."""

    name: str
    host: str = ""
    """The plan's first host when empty."""
    folder: str = "Proxies"
    disks: tuple[DiskPlan, ...] = ()
    """Its own; a small one of bare blocks when empty."""
    uuid: str = ""
    """BIOS UUID; made from the name when empty."""
    swapped: bool = False
    """The guest shows the first three groups of the UUID in the other byte order."""
    enable_uuid: bool = True
    """disk.EnableUUID: without it disks show no identity."""
    appearance: Appearance = Appearance.AT_ONCE
    hardware: str = "vmx-19"
    datacenter: str = ""
    key_id: str = ""
    """Encrypted with this key, as a VM must be that is to be given encrypted disks."""

    @property
    def bios_uuid(self) -> str:
        """The BIOS UUID, as vCenter has it."""
        if self.uuid:
            return self.uuid
        return "42" + str(uuid.uuid5(uuid.NAMESPACE_OID, f"vmhaul-lab/{self.name}"))[2:]

    @property
    def own_disks(self) -> tuple[DiskPlan, ...]:
        """The disks that the VM has when the site starts."""
        return self.disks or _system_disk()

    def directory(self, site: Path) -> Path:
        """Where its tree of devices stands."""
        return site / "proxies" / self.name

    def guest(self, site: Path) -> Guest:
        """The order to the hardware process."""
        return Guest(
            name=self.name,
            directory=str(self.directory(site)),
            uuid=self.bios_uuid,
            swapped=self.swapped,
            appearance=self.appearance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabProxy:
    """A proxy VM of a running site."""

    plan: ProxyPlan
    directory: Path
    hardware: HardwareClient

    @property
    def name(self) -> str:
        """Its name in vCenter."""
        return self.plan.name

    @property
    def uuid(self) -> str:
        """Its BIOS UUID, as vCenter has it."""
        return self.plan.bios_uuid

    @property
    def sys_path(self) -> Path:
        """What is /sys in it."""
        return self.directory / "sys"

    @property
    def dev_path(self) -> Path:
        """What is /dev in it."""
        return self.directory / "dev"

    def devices(self) -> list[dict[str, Any]]:
        """Everything that is attached; see `HardwareClient.listed`."""
        return self.hardware.listed(self.name)

    def add_lun(self, backing: Path, *, wwid: str, read_only: bool = False) -> str:
        """Zone a LUN to it; its SCSI address."""
        return self.hardware.add_lun(self.name, backing, wwid=wwid, read_only=read_only)

    def remove_lun(self, *, wwid: str) -> None:
        """Take the LUN away."""
        self.hardware.remove_lun(self.name, wwid=wwid)

    def set_appearance(self, appearance: Appearance) -> None:
        """When the guest sees disks that are attached from now on."""
        self.hardware.set_appearance(self.name, appearance)

    def settings(self) -> dict[str, str]:
        """The settings with which a vmhaul proxy takes itself for the one in this VM."""
        return {"sys_path": str(self.sys_path), "dev_path": str(self.dev_path)}

    def write_settings(self, data_dir: Path) -> None:
        """Add these settings to `proxy.toml` in a proxy's data directory; a proxy reads them when it starts."""
        path = data_dir / "proxy.toml"
        have = path.read_text() if path.exists() else ""
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in self.settings().items()]
        write_private(path, have + "".join(lines))
