"""A disk array: the LUNs of a site's datastores are its volumes; snapshots and clones share their blocks.

Its REST API is `array_api.py`; contents are files on the site's own file system, so that a snapshot and a clone take no
time and no space whatever they hold. A host of the array is a proxy VM of the site: a volume that is connected to it
appears in its tree as a disk.
"""

import hashlib
import secrets
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmhaul_lab import reflink
from vmhaul_lab.array_api import ArrayServer, ArrayState
from vmhaul_lab.commands import run
from vmhaul_lab.errors import LabError
from vmhaul_lab.guestview import GuestView
from vmhaul_lab.lunservice import LunService

MAKER = "naa.624a9370"
"""What identities of the array's volumes begin with; their serial number follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """The array of a site."""

    directory: str
    """On the file system of its volumes."""
    hosts: tuple[str, ...]
    """Its hosts, each named as the guest that it is."""
    stores: tuple[str, ...]
    """Datastores whose LUNs are its volumes."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @staticmethod
    def of(values: Mapping[str, Any]) -> "ArraySpec":
        """From what `dataclasses.asdict` made of it."""
        hosts, stores = tuple(values["hosts"]), tuple(values["stores"])
        return ArraySpec(**{**values, "hosts": hosts, "stores": stores})


def naa_of_serial(serial: str) -> str:
    """How a host names a volume of that serial number."""
    return MAKER + serial.lower()


class _Contents:
    """What lies behind the names of the API."""

    def __init__(
        self,
        directory: Path,
        luns: LunService,
        stores: Mapping[str, str],
        views: Mapping[str, GuestView],
    ) -> None:
        self._directory = directory
        self._luns = luns
        self._stores = stores
        self._views = views
        self._images: dict[str, Path] = {}
        self._serials: dict[str, str] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def own(self, volume: str, image: Path, serial: str) -> None:
        """A volume that was there before."""
        self._images[volume], self._serials[volume] = image, serial

    def freeze(self, volume: str, snapshot: str) -> None:
        if volume in self._stores:
            # The array has what hosts wrote up to now, guests' last writes included.
            self._luns.render(self._stores[volume])
        _share(self._images[volume], self._file(snapshot))

    def forget(self, snapshot: str) -> None:
        self._file(snapshot).unlink()

    def clone(self, snapshot: str, volume: str, serial: str) -> None:
        self.own(volume, self._file(volume), serial)
        _share(self._file(snapshot), self._file(volume))

    def remove(self, volume: str) -> None:
        self._images.pop(volume).unlink()
        del self._serials[volume]

    def connect(self, volume: str, host: str, serial: str) -> None:
        self._view(host).add_lun(self._images[volume], wwid=naa_of_serial(serial))

    def disconnect(self, volume: str, host: str) -> None:
        self._view(host).remove_lun(naa_of_serial(self._serials[volume]))

    def files(self) -> list[str]:
        """What the array keeps beside the volumes that were there before."""
        return sorted(path.name for path in self._directory.glob("*.img"))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.img"

    def _view(self, host: str) -> GuestView:
        return self._views[host]


def _share(source: Path, target: Path) -> None:
    if not reflink.clone_file(source, target):
        raise LabError(f"{source}: its file system shares no blocks; take XFS or btrfs")


class Array:
    """The running array; used by the hardware process. `stop` it."""

    def __init__(self, spec: ArraySpec, luns: LunService, views: Mapping[str, GuestView]) -> None:
        directory = Path(spec.directory)
        volumes = {
            volume_name(store, number): (store, lun)
            for store in spec.stores
            for number, lun in enumerate(luns.store(store).spec.luns)
        }
        stores = {volume: store for volume, (store, _) in volumes.items()}
        self._contents = _Contents(directory / "contents", luns, stores, views)
        self.state = ArrayState(backend=self._contents, api_token=spec.token, hosts=list(spec.hosts))
        for volume, (store, lun) in volumes.items():
            if not lun.naa.startswith(MAKER):
                raise LabError(f"{lun.naa} of {store} is no volume of this array: its maker is {MAKER}")
            serial = lun.naa.removeprefix(MAKER).upper()
            self._contents.own(volume, Path(lun.image), serial)
            self.state.add_volume(volume, lun.size_bytes, serial=serial)
            zoned = set(luns.store(store).spec.zoned)
            self.state.connections |= {(host, volume) for host in spec.hosts if host in zoned}
        certificate, key = make_certificate(directory)
        self.thumbprint = thumbprint(certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._server = ArrayServer(self.state, context=context, fault=self._fault)
        self._server.__enter__()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._server.port}"

    def stop(self) -> None:
        """End the API; contents stay."""
        self._server.stop()

    def orders(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """What the process does on request, by the path of the request."""
        return {
            "array": lambda _: self._described(),
            "array-fault": self._add_fault,
        }

    def _described(self) -> dict[str, Any]:
        with self.state.lock:
            return {
                "address": self.address,
                "token": self.state.api_token,
                "thumbprint": self.thumbprint,
                "volumes": {
                    name: naa_of_serial(item["serial"]) for name, item in self.state.volumes.items()
                },
                "snapshots": sorted(self.state.snapshots),
                "connections": sorted(self.state.connections),
                "files": self._contents.files(),
                "calls": list(self.state.calls),
            }

    def _add_fault(self, body: dict[str, Any]) -> None:
        with self._lock:
            self._faults.append({"left": body["count"], **body})

    def _fault(self, method: str, path: str) -> tuple[int, dict[str, str]] | None:
        with self._lock:
            for fault in self._faults:
                if fault["left"] > 0 and f"{method} {path}".startswith(fault["call"]):
                    fault["left"] -= 1
                    return fault["status"], {}
        return None


def volume_name(store: str, number: int) -> str:
    """What the array calls LUN `number` (from 0) of a datastore."""
    return f"{store}-{number}"


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) that the array signed itself."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "array.crt", directory / "array.key"
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", "/CN=array.lab", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "30")
    run("openssl", *words, *names, "-keyout", key, "-out", certificate)
    return certificate, key


def thumbprint(certificate: Path) -> str:
    """SHA-256 of a certificate as people compare it: "AB:CD:…"."""
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return hashlib.sha256(der).digest().hex(":").upper()
