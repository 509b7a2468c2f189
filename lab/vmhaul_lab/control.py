"""Client of the site's control interface: what no real vCenter offers, faults on request included."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmhaul_lab.errors import ControlError

# Loopback is never reached through a proxy, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSnapshot:
    """The frozen file of a disk in one snapshot."""

    moref: str
    name: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabDisk:
    """A disk of a VM as it is now; ask again after a snapshot, a restore or a reconfiguration."""

    vm: str
    vm_moref: str
    key: int
    label: str
    capacity_bytes: int
    thin: bool
    live_file: str
    live_path: Path
    base_file: str
    snapshots: tuple[DiskSnapshot, ...]


class ControlClient:
    """Typed methods for the control interface at `host:port`; every call may raise `ControlError`."""

    def __init__(self, address: str, *, timeout_s: float = 60) -> None:
        self.address = address
        self._timeout_s = timeout_s

    def disks(self, vm: str | None = None) -> list[LabDisk]:
        """The disks of all VMs, or of one, in the order of their keys."""
        found = [_disk(item) for item in self._call("GET", "/disks")]
        return [disk for disk in found if vm is None or disk.vm == vm]

    def vms(self) -> list[dict[str, Any]]:
        """All VMs as the site describes them."""
        answer: list[dict[str, Any]] = self._call("GET", "/vms")
        return answer

    def stats(self) -> dict[str, Any]:
        """What was asked of the site since its start or the last reset."""
        answer: dict[str, Any] = self._call("GET", "/stats")
        return answer

    def reset_stats(self) -> None:
        """Start all counters from zero."""
        self._call("POST", "/stats/reset")

    def fault(self, kind: str, count: int = 1, **params: Any) -> Any:
        """Make the site fail on purpose: `kind`, how often, and what that kind takes."""
        return self._call("POST", "/faults", {"kind": kind, "count": count, **params})

    def faults(self) -> Any:
        """The faults that are armed."""
        return self._call("GET", "/faults")

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._call("DELETE", "/faults")

    def power_loss(self, vm: str) -> None:
        """Take the power from a VM as a failing host does."""
        self._call("POST", f"/vms/{urllib.parse.quote(vm, safe='')}/power-loss")

    def drop_sessions(self) -> None:
        """End all sessions of the vCenter."""
        self._call("POST", "/sessions/drop")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with _OPENER.open(request, timeout=self._timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:500]
            raise ControlError(
                f"{method} {path} at {self.address}: status {error.code}: {said}"
            ) from error
        except OSError as error:
            raise ControlError(
                f"{method} {path}: the site does not answer at {self.address}: {error}; is it up?"
            ) from error
        return json.loads(text) if text.strip() else None


def _disk(item: dict[str, Any]) -> LabDisk:
    return LabDisk(
        vm=item["vm"],
        vm_moref=item["vm_moref"],
        key=item["key"],
        label=item["label"],
        capacity_bytes=item["capacity_bytes"],
        thin=item["thin"],
        live_file=item["live_file"],
        live_path=Path(item["live_path"]),
        base_file=item.get("base_file", ""),
        snapshots=tuple(
            DiskSnapshot(moref=s["moref"], name=s["name"], file=s["file"])
            for s in item.get("snapshots") or ()
        ),
    )
