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
class LabSnapshot:
    """A snapshot; of a disk: with its frozen file and change id."""

    moref: str
    name: str
    file: Path | None = None
    change_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabDisk:
    """A disk of a VM as it is now; ask again after a snapshot, a restore or a reconfiguration."""

    vm: str
    vm_moref: str
    key: int
    label: str
    capacity_bytes: int
    thin: bool
    mode: str
    uuid: str
    eager: bool
    live_file: Path
    """The file that the guest writes, on this machine."""
    live_path: str
    """The same as vCenter names it: `[datastore] folder/name.vmdk`."""
    base_file: Path
    snapshots: tuple[LabSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabVm:
    """A VM as the site knows it."""

    name: str
    moref: str
    datacenter: str
    host: str
    power: str
    annotation: str
    cbt: bool
    consolidation_needed: bool
    snapshots: tuple[LabSnapshot, ...]
    files: tuple[str, ...]


class ControlClient:
    """Typed methods for the control interface at `host:port`; every call may raise `ControlError`."""

    def __init__(self, address: str, *, timeout_s: float = 60) -> None:
        self.address = address
        self._timeout_s = timeout_s

    def disks(self, vm: str | None = None) -> list[LabDisk]:
        """The disks of all VMs, or of one, in the order of their keys."""
        found = [_disk(item) for item in self._call("GET", "/disks")]
        return [disk for disk in found if vm is None or disk.vm == vm]

    def vms(self) -> list[LabVm]:
        """All VMs, by name."""
        return [_vm(item) for item in self._call("GET", "/vms")]

    def stats(self) -> dict[str, Any]:
        """What was asked of the site since its start or the last reset."""
        answer: dict[str, Any] = self._call("GET", "/stats")
        return answer

    def reset_stats(self) -> None:
        """Start all counters from zero."""
        self._call("POST", "/stats/reset")

    def fault(self, kind: str, count: int = 1, **params: Any) -> int:
        """Make the site fail on purpose; returns the fault's number.

        `kind` and `params` are those of lab/labvc/README.md; `count` 0 means until it is cleared.
        """
        return int(self._call("POST", "/faults", {"kind": kind, "count": count, **params})["id"])

    def faults(self) -> list[dict[str, Any]]:
        """The faults ordered so far with how often each has `fired`."""
        answer: list[dict[str, Any]] = self._call("GET", "/faults")
        return answer

    def clear_faults(self) -> None:
        """Take all faults back."""
        self._call("DELETE", "/faults")

    def power_loss(self, vm: str) -> None:
        """Take the power from a VM as a failing host does: its change tracking starts anew."""
        self._call("POST", f"/vms/{urllib.parse.quote(vm, safe='')}/power-loss")

    def latency(
        self,
        datastore: str,
        read_ms: int,
        *,
        reads_per_s: int = 10,
        host: str = "",
        unmeasured: bool = False,
        age_s: int = 0,
    ) -> None:
        """From now on the hosts' performance counters show this read latency of a datastore.

        `host`: only that host's; `unmeasured`: none at all; `age_s`: how old the newest sample is.
        """
        body = {"datastore": datastore, "read_ms": read_ms, "reads_per_s": reads_per_s}
        more = {"host": host, "unmeasured": unmeasured, "age_s": age_s}
        self._call(
            "POST", "/latency", {**body, **{name: value for name, value in more.items() if value}}
        )

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
        mode=item["mode"],
        uuid=item["uuid"],
        eager=item["eager"],
        live_file=Path(item["live_file"]),
        live_path=item["live_path"],
        base_file=Path(item["base_file"]),
        snapshots=_snapshots(item),
    )


def _vm(item: dict[str, Any]) -> LabVm:
    return LabVm(
        name=item["name"],
        moref=item["moref"],
        datacenter=item["datacenter"],
        host=item.get("host", ""),
        power=item["power"],
        annotation=item["annotation"],
        cbt=item["cbt"],
        consolidation_needed=item["consolidation_needed"],
        snapshots=_snapshots(item),
        files=tuple(item["files"]),
    )


def _snapshots(item: dict[str, Any]) -> tuple[LabSnapshot, ...]:
    return tuple(
        LabSnapshot(
            moref=found["moref"],
            name=found["name"],
            file=Path(found["file"]) if found.get("file") else None,
            change_id=found.get("change_id", ""),
        )
        for found in item["snapshots"]
    )
