"""Pure Storage FlashArray: storage snapshots of volumes, shown to proxies as clones.

Written against the OpenAPI description of FlashArray REST 2.2. A snapshot's name is the suffix of the array's own
(`VOLUME.NAME`); a clone is a volume named as its exposure and a number. A volume's canonical name is "naa.624a9370"
and its serial number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from transports.errors import PermanentTransportError
from transports.storage_systems.base import (
    Exposed,
    Option,
    StorageAccess,
    StorageDriver,
    StorageSnapshot,
    SystemInfo,
    Volume,
    VolumeKind,
    checked_snapshot,
    is_exposure,
    is_snapshot,
    snapshot_of,
    split_address,
)
from transports.storage_systems.flasharray_session import FlashArraySession, RefusedError
from transports.tls import PeerCertificate

NAME: Final = "flasharray"
HTTPS_PORT: Final = 443
_NAA: Final = "naa.624a9370"
_LIVE: Final = {"destroyed": "false"}


class FlashArray:
    """A StorageSystem."""

    def __init__(self, session: FlashArraySession, *, eradicate: bool = True) -> None:
        self._session = session
        self._eradicate = eradicate

    def describe(self) -> SystemInfo:
        found = next(self._session.items("arrays"), None)
        if found is None:
            raise PermanentTransportError(
                "the array does not tell what it is; check the account's role"
            )
        return SystemInfo(
            model=f"FlashArray {found.get('name', '')}".strip(), version=str(found.get("version", ""))
        )

    def volumes(self) -> tuple[Volume, ...]:
        return tuple(
            Volume(
                id=item["name"],
                name=item["name"],
                kind=VolumeKind.LUN,
                size_bytes=int(item.get("provisioned") or 0),
                lun=_canonical(item),
            )
            for item in self._session.items("volumes", _LIVE)
            if _exposure_of(item["name"]) is None and item.get("subtype", "regular") == "regular"
        )

    def create_snapshot(self, name: str, volume_ids: Sequence[str]) -> None:
        checked_snapshot(name)
        made = {item["source"]["name"] for item in self._snapshots_named(name)}
        missing = [volume for volume in volume_ids if volume not in made]
        if missing:
            self._session.call(
                "POST", "volume-snapshots", {"source_names": ",".join(missing)}, {"suffix": name}
            )

    def snapshots(self, prefix: str) -> tuple[StorageSnapshot, ...]:
        found: dict[str, list[str]] = {}
        for item in self._session.items("volume-snapshots", _LIVE):
            name = _suffix(item)
            if is_snapshot(name, prefix):
                found.setdefault(name, []).append(item["source"]["name"])
        return tuple(
            StorageSnapshot(name=name, volume_ids=tuple(sorted(volumes)))
            for name, volumes in sorted(found.items())
        )

    def delete_snapshot(self, name: str) -> None:
        checked_snapshot(name)
        for item in self._items_to_remove("volume-snapshots"):
            if _suffix(item) == name:
                self._destroy("volume-snapshots", item)

    def expose(self, exposure: str, volume_ids: Sequence[str], host: str) -> tuple[Exposed, ...]:
        snapshot = snapshot_of(exposure)
        if not host:
            raise PermanentTransportError(
                "the array does not know the proxy: name its host with `vmhaul storage edit NAME --proxy PROXY=HOST`"
            )
        return tuple(
            Exposed(
                volume_id=volume,
                lun=self._exposed(f"{exposure}-{number}", f"{volume}.{snapshot}", host),
            )
            for number, volume in enumerate(volume_ids)
        )

    def exposures(self, prefix: str) -> tuple[str, ...]:
        found = {
            exposure
            for item in self._session.items("volumes", _LIVE)
            if (exposure := _exposure_of(item["name"])) is not None and exposure.startswith(prefix)
        }
        return tuple(sorted(found))

    def hide(self, exposure: str) -> None:
        snapshot_of(exposure)
        for item in self._items_to_remove("volumes"):
            if _exposure_of(item["name"]) != exposure:
                continue
            if not item.get("destroyed"):
                self._disconnect(item["name"])
            self._destroy("volumes", item)

    def close(self) -> None:
        self._session.close()

    def _snapshots_named(self, name: str) -> list[dict[str, Any]]:
        return [
            item for item in self._session.items("volume-snapshots", _LIVE) if _suffix(item) == name
        ]

    def _exposed(self, clone: str, source: str, host: str) -> str:
        volume = next((item for item in self._session.items("volumes") if item["name"] == clone), None)
        if volume is None:
            made = self._session.call("POST", "volumes", {"names": clone}, {"source": {"name": source}})
            volume = made["items"][0]
        elif volume.get("destroyed"):
            # Hidden before, and still waiting for its eradication: nobody wrote to it.
            self._session.call("PATCH", "volumes", {"names": clone}, {"destroyed": False})
        if host not in self._hosts_of(clone):
            self._session.call("POST", "connections", {"host_names": host, "volume_names": clone}, {})
        return _canonical(volume)

    def _items_to_remove(self, noun: str) -> list[dict[str, Any]]:
        """Of those that are destroyed already only where they are to be eradicated as well."""
        return list(self._session.items(noun, {} if self._eradicate else _LIVE))

    def _disconnect(self, volume: str) -> None:
        for host in self._hosts_of(volume):
            self._session.call("DELETE", "connections", {"host_names": host, "volume_names": volume})

    def _hosts_of(self, volume: str) -> list[str]:
        return [
            str(item["host"]["name"])
            for item in self._session.items("connections", {"volume_names": volume})
            if (item.get("host") or {}).get("name")
        ]

    def _destroy(self, noun: str, item: dict[str, Any]) -> None:
        name = {"names": str(item["name"])}
        if not item.get("destroyed"):
            self._session.call("PATCH", noun, name, {"destroyed": True})
        if not self._eradicate:
            return
        try:
            self._session.call("DELETE", noun, name)
        except RefusedError:
            # An array in SafeMode eradicates by its own clock alone. It is destroyed, nobody sees it.
            return


def _canonical(volume: dict[str, Any]) -> str:
    return _NAA + str(volume["serial"]).lower()


def _suffix(snapshot: dict[str, Any]) -> str:
    return str(snapshot.get("suffix") or str(snapshot["name"]).rpartition(".")[2])


def _exposure_of(volume: str) -> str | None:
    exposure, dash, number = volume.rpartition("-")
    return exposure if dash and number.isdigit() and is_exposure(exposure) else None


def _connect(access: StorageAccess) -> FlashArray:
    session = FlashArraySession(access.address, access.identity, access.secrets["api_token"])
    return FlashArray(session, eradicate=access.options.get("eradicate", "yes") == "yes")


def _probe(address: str) -> str:
    host, port = split_address(address, HTTPS_PORT)
    return PeerCertificate.fetch(host, port).sha256


DRIVER: Final = StorageDriver(
    name=NAME,
    title="Pure Storage FlashArray",
    options=(
        Option(
            name="eradicate",
            help="Eradicate snapshots and clones at once, or leave that to the array's own delay.",
            choices=("yes", "no"),
            default="yes",
        ),
    ),
    secrets=(("api_token",),),
    needs_host=True,
    probe=_probe,
    connect=_connect,
)
