"""The hardware of a site around vCenter, as a process of its own: devices of proxy VMs, and the NFS server.

`labvc` tells it what a proxy VM's configuration holds after each change and waits for the answer; it makes the
guests' trees (`guestview.py`) agree. A process, so that it serves a site that goes on without the program that
started it, and so that the kernel takes every loop device back when it is killed.
"""

import argparse
import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vmhaul_lab.array import Array, ArraySpec
from vmhaul_lab.errors import ControlError, LabError
from vmhaul_lab.guestview import Appearance, GuestView, ScsiAddress, naa_of_uuid, polling
from vmhaul_lab.luns import LunStoreSpec
from vmhaul_lab.lunservice import LunService
from vmhaul_lab.nfs import NfsExport, NfsServer
from vmhaul_lab.storage import detach

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A proxy VM whose devices are shown below `directory`."""

    name: str
    directory: str
    uuid: str
    swapped: bool = False
    appearance: str = Appearance.AT_ONCE


class Hardware:
    """The guests of a site; every method may be called by several threads."""

    def __init__(
        self,
        guests: Sequence[Guest],
        nfs: NfsServer | None = None,
        stores: Sequence[LunStoreSpec] = (),
        array: ArraySpec | None = None,
    ) -> None:
        self.nfs = nfs
        self._lock = threading.RLock()
        self._views: dict[str, GuestView] = {}
        self._buses: dict[tuple[str, int], int] = {}
        for guest in guests:
            view = GuestView(Path(guest.directory), uuid=guest.uuid, swapped=guest.swapped)
            view.appearance = Appearance(guest.appearance)
            self._views[guest.name] = view
        self.luns = LunService(stores, self._views)
        self.array = None if array is None else Array(array, self.luns, self._views)

    def close(self) -> None:
        """Give everything back."""
        if self.nfs is not None:
            self.nfs.stop()
        if self.array is not None:
            self.array.stop()
        for view in self._views.values():
            view.close()

    def views(self) -> list[GuestView]:
        """All views."""
        return list(self._views.values())

    def set_devices(self, name: str, wanted: dict[str, Any]) -> None:
        """Let a guest have exactly these controllers and disks (beside its LUNs), as its VM's configuration says.

        When something cannot be attached, nothing new stays and what was there before remains.
        """
        view = self._view(name)
        with self._lock:
            for bus in wanted["buses"]:
                if (name, bus) not in self._buses:
                    self._buses[name, bus] = view.add_host()
            disks = {self._address(name, disk): disk for disk in wanted["disks"]}
            new: list[ScsiAddress] = []
            try:
                for address, disk in disks.items():
                    there = view.device_at(address)
                    if there is not None and there.shows(Path(disk["file"])):
                        continue
                    view.remove_disk(address)
                    view.add_disk(
                        Path(disk["file"]),
                        address=address,
                        wwid=naa_of_uuid(disk["uuid"]) if wanted["identities"] else "",
                        size_bytes=disk["capacity_bytes"],
                        read_only=disk["read_only"],
                    )
                    new.append(address)
            except (LabError, OSError):
                for address in new:
                    view.remove_disk(address)
                raise
            self._remove_others(name, view, set(disks), set(wanted["buses"]))

    def _remove_others(
        self, name: str, view: GuestView, kept: set[ScsiAddress], buses: set[int]
    ) -> None:
        own = {host for (guest, _), host in self._buses.items() if guest == name}
        for item in view.listed():
            address = parse_address(str(item["address"]))
            if address.host in own and address not in kept:
                view.remove_disk(address)
        for guest, bus in list(self._buses):
            if guest == name and bus not in buses:
                view.remove_host(self._buses.pop((guest, bus)))

    def _address(self, name: str, disk: dict[str, Any]) -> ScsiAddress:
        host = self._buses.get((name, disk["bus"]))
        if host is None:
            raise LabError(f"{name} has no SCSI controller {disk['bus']}")
        return ScsiAddress(host=host, target=disk["unit"])

    def add_lun(self, name: str, backing: str, wwid: str, *, read_only: bool) -> str:
        """Let a LUN appear in a guest."""
        return self._view(name).add_lun(Path(backing), wwid=wwid, read_only=read_only)

    def remove_lun(self, name: str, wwid: str) -> None:
        """Take it away again."""
        self._view(name).remove_lun(wwid)

    def set_appearance(self, name: str, appearance: str) -> None:
        """When that guest sees disks that are attached from now on."""
        self._view(name).appearance = Appearance(appearance)

    def listed(self, name: str) -> list[dict[str, str | int | bool]]:
        """What is attached to a guest."""
        return self._view(name).listed()

    def nfs_server(self) -> NfsServer:
        """The site's NFS server."""
        if self.nfs is None:
            raise LabError("no datastore of the site is served by NFS")
        return self.nfs

    def _view(self, name: str) -> GuestView:
        view = self._views.get(name)
        if view is None:
            raise LabError(f"the site has no proxy VM {name!r} with devices")
        return view


def parse_address(text: str) -> ScsiAddress:
    """The value of "2:0:1:0"."""
    host, channel, target, lun = (int(part) for part in text.split(":"))
    return ScsiAddress(host=host, channel=channel, target=target, lun=lun)


class HardwareClient:
    """Orders to the hardware of a site at `host:port`; every method may raise `ControlError`."""

    def __init__(self, address: str, *, timeout_s: float = 60) -> None:
        self.address = address
        self._timeout_s = timeout_s

    def listed(self, guest: str) -> list[dict[str, Any]]:
        """What is attached to a guest: address, name, wwid, backing, size_bytes, read_only, loop."""
        found: list[dict[str, Any]] = self._call("list", guest=guest)
        return found

    def add_lun(self, guest: str, backing: Path, *, wwid: str, read_only: bool = False) -> str:
        """Let a LUN appear in a guest; its SCSI address."""
        address: str = self._call(
            "add-lun", guest=guest, backing=str(backing), wwid=wwid, read_only=read_only
        )
        return address

    def remove_lun(self, guest: str, *, wwid: str) -> None:
        """Take a LUN away from a guest."""
        self._call("remove-lun", guest=guest, wwid=wwid)

    def set_appearance(self, guest: str, appearance: Appearance) -> None:
        """When that guest sees disks that are attached from now on."""
        self._call("appearance", guest=guest, appearance=str(appearance))

    def stop_nfs(self) -> None:
        """Kill the site's NFS server in the middle of whatever it does."""
        self._call("nfs-stop")

    def start_nfs(self) -> None:
        """Start it again at the same address."""
        self._call("nfs-start")

    def order(self, order: str, **values: Any) -> Any:
        """Any other order, see `orders`."""
        return self._call(order, **values)

    def _call(self, order: str, **values: Any) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}/{order}",
            data=json.dumps(values).encode(),
            method="POST",
            headers={"Content-Type": "application/json"},
        )
        try:
            with _OPENER.open(request, timeout=self._timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:500]
            raise ControlError(f"the lab's hardware refused {order}: {said}") from error
        except OSError as error:
            raise ControlError(
                f"the lab's hardware does not answer at {self.address}: {error}"
            ) from error


def orders(hardware: Hardware) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What the process does on request, by the path of the request."""
    return {
        "devices": lambda body: hardware.set_devices(body["guest"], body),
        "list": lambda body: hardware.listed(body["guest"]),
        "add-lun": lambda body: hardware.add_lun(
            body["guest"], body["backing"], body["wwid"], read_only=body["read_only"]
        ),
        "remove-lun": lambda body: hardware.remove_lun(body["guest"], body["wwid"]),
        "appearance": lambda body: hardware.set_appearance(body["guest"], body["appearance"]),
        "nfs-stop": lambda _: hardware.nfs_server().stop(),
        "nfs-start": lambda _: hardware.nfs_server().start(),
        **hardware.luns.orders(),
        **({} if hardware.array is None else hardware.array.orders()),
    }


def _handler(known: dict[str, Callable[[dict[str, Any]], Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            order = known.get(urllib.parse.urlsplit(self.path).path.strip("/"))
            raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if order is None:
                self._send(404, {"error": f"there is no order {self.path}"})
                return
            try:
                answer = order(json.loads(raw))
            except (LabError, OSError, LookupError, TypeError, ValueError) as error:
                self._send(400, {"error": f"{type(error).__name__}: {error}"})
            else:
                self._send(200, answer)

        def _send(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Only errors are worth a line."""

    return Handler


def _await_end_of_input(ended: threading.Event, orphaned: threading.Event) -> None:
    # Not sys.stdin: the lock that it holds while it waits is in the way when the interpreter ends.
    while os.read(0, 4096):
        pass
    orphaned.set()
    ended.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until standard input closes; prints one JSON line when ready."""
    parser = argparse.ArgumentParser(prog="vmhaul_lab.hardware", description=__doc__)
    parser.add_argument("config", type=Path, help="JSON: {guests: [...], exports: [...]}")
    parser.add_argument("--stdinexit", action="store_true")
    options = parser.parse_args(arguments)
    config = json.loads(options.config.read_text())
    exports = [NfsExport(**item) for item in config["exports"]]
    nfs = NfsServer(options.config.parent / "nfs", exports) if exports else None
    stores = [LunStoreSpec.of(item) for item in config.get("stores", ())]
    array = ArraySpec.of(config["array"]) if config.get("array") else None
    hardware = Hardware([Guest(**item) for item in config["guests"]], nfs, stores, array)
    ended, orphaned = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if options.stdinexit:
        threading.Thread(target=_await_end_of_input, args=(ended, orphaned), daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(orders(hardware)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        if nfs is not None:
            nfs.start()
        with polling(hardware.views):
            host, port = server.server_address[:2]
            ready = {"ready": True, "address": f"{host!s}:{port}", "nfs_host": nfs.host if nfs else ""}
            print(json.dumps(ready), flush=True)
            ended.wait()
    finally:
        server.shutdown()
        server.server_close()
        hardware.close()
        if orphaned.is_set() and config.get("storage"):
            # Whoever mounted it is gone; a mount would stay for ever and be in the way of all who clean up.
            detach(Path(config["storage"]))
    return 0


def config_json(
    guests: Sequence[Guest],
    exports: Sequence[NfsExport],
    stores: Sequence[LunStoreSpec] = (),
    array: ArraySpec | None = None,
    storage: str = "",
) -> str:
    """The file that `main` reads."""
    config = {
        "guests": [asdict(guest) for guest in guests],
        "exports": [asdict(export) for export in exports],
        "stores": [asdict(store) for store in stores],
        "array": None if array is None else asdict(array),
        "storage": storage,
    }
    return json.dumps(config, indent=1)


if __name__ == "__main__":
    sys.exit(main())
