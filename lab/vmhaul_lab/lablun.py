"""The LUNs of a running site and its disk array, as tests reach them."""

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LabArray:
    """The array of a running site, as tests reach it."""

    hardware: HardwareClient

    def describe(self) -> dict[str, Any]:
        """Everything of the below at once."""
        found: dict[str, Any] = self.hardware.order("array")
        return found

    @property
    def address(self) -> str:
        """`host:port` of its API."""
        return str(self.describe()["address"])

    @property
    def api_token(self) -> str:
        """With which its user logs in."""
        return str(self.describe()["token"])

    @property
    def thumbprint(self) -> str:
        """SHA-256 of its certificate."""
        return str(self.describe()["thumbprint"])

    def volumes(self) -> dict[str, str]:
        """Identity by name: "naa.624a9370…"."""
        return dict(self.describe()["volumes"])

    def snapshots(self) -> list[str]:
        """Full names, "VOLUME.SUFFIX"."""
        return list(self.describe()["snapshots"])

    def connections(self) -> list[tuple[str, str]]:
        """(host, volume) pairs."""
        return [(host, volume) for host, volume in self.describe()["connections"]]

    def files(self) -> list[str]:
        """What it keeps for snapshots and clones: nothing, when all of them are gone."""
        return list(self.describe()["files"])

    def calls(self) -> Sequence[str]:
        """Every call of its API so far."""
        return list(self.describe()["calls"])

    def fault(self, call: str, *, status: int, count: int = 1) -> None:
        """The next `count` calls that begin so ("POST /api/2.2/volumes") are answered with that status."""
        self.hardware.order("array-fault", call=call, status=status, count=count)
