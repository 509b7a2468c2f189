"""The LUNs of a running site, as tests reach them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmhaul_lab.hardware import HardwareClient
from vmhaul_lab.luns import LunStoreSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LabLuns:
    """A datastore's LUNs; every method may raise `ControlError`."""

    spec: LunStoreSpec
    hardware: HardwareClient

    @property
    def vmfs_uuid(self) -> str:
        """The VMFS volume's identity, as vCenter has it."""
        return self.spec.vmfs_uuid

    @property
    def naas(self) -> list[str]:
        """Identities of the LUNs in the order of the volume: "naa.…"."""
        return [lun.naa for lun in self.spec.luns]

    @property
    def images(self) -> list[Path]:
        """What is behind them."""
        return [Path(lun.image) for lun in self.spec.luns]

    def render(self) -> None:
        """Let the LUNs show what the datastore holds now, guests' writes since the last change included."""
        self.hardware.order("luns-render", datastore=self.spec.name)

    def collect(self) -> int:
        """Take what was written to the LUNs into the datastore's files, as vCenter's next change would; bytes."""
        taken: int = self.hardware.order("luns-collect", datastore=self.spec.name)
        return taken

    def zone(self, proxy: str) -> None:
        """Let a proxy see the LUNs."""
        self.hardware.order("luns-zone", datastore=self.spec.name, guest=proxy)

    def unzone(self, proxy: str) -> None:
        """Take the LUNs away from a proxy."""
        self.hardware.order("luns-unzone", datastore=self.spec.name, guest=proxy)

    def stray_writes(self) -> list[tuple[int, int, int]]:
        """(LUN, offset, length) of what was collected but belongs to no disk: somebody wrote where he must not."""
        return [tuple(item) for item in self._described()["stray"]]

    def runs(self, path: str) -> list[tuple[int, int, int, int, bool]]:
        """(offset in the file, LUN, offset in its image, length, to be zeroed) of a file "vm01/vm01-flat.vmdk"."""
        return [tuple(item) for item in self._described()["files"][path]]

    def _described(self) -> dict[str, Any]:
        found: dict[str, Any] = self.hardware.order("luns", datastore=self.spec.name)
        return found
