"""The LUNs of a site in its hardware process: rendered and collected around every change that vCenter makes.

`labvc` says "storage-before" and waits, changes files, and says "storage-after" and waits. Between the two nobody else
changes files of that datastore: a rendering in the middle of a change would show what never was.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmhaul_lab.errors import LabError
from vmhaul_lab.guestview import GuestView
from vmhaul_lab.luns import LunStore, LunStoreSpec

_WAIT_S = 45


@dataclass(slots=True)
class _Held:
    """A datastore and who changes its files, who may do so in steps."""

    store: LunStore
    free: threading.Condition = field(default_factory=threading.Condition)
    owner: str = ""
    depth: int = 0

    def take(self, owner: str) -> None:
        with self.free:
            if not self.free.wait_for(lambda: self.owner in {"", owner}, _WAIT_S):
                raise LabError(
                    f"{self.owner} has been changing datastore {self.store.spec.name} for {_WAIT_S} s"
                )
            self.owner, self.depth = owner, self.depth + 1

    def give(self) -> None:
        with self.free:
            self.depth -= 1
            if not self.depth:
                self.owner = ""
                self.free.notify_all()


class LunService:
    """The datastores on LUNs of a site; every method may be called by several threads."""

    def __init__(self, specs: Sequence[LunStoreSpec], views: Mapping[str, GuestView]) -> None:
        self._views = views
        self._held = {spec.name: _Held(LunStore(spec)) for spec in specs}
        for spec in specs:
            for guest in spec.zoned:
                self.zone(spec.name, guest)

    def orders(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """What the process does on request, by the path of the request."""
        return {
            "storage-before": lambda body: self.before(body["vm"], body["datastores"]),
            "storage-after": lambda body: self.after(body["vm"], body["datastores"], body["disks"]),
            "luns": lambda body: self.described(body["datastore"]),
            "luns-render": lambda body: self.render(body["datastore"]),
            "luns-collect": lambda body: self.collect(body["datastore"]),
            "luns-zone": lambda body: self.zone(body["datastore"], body["guest"]),
            "luns-unzone": lambda body: self.unzone(body["datastore"], body["guest"]),
        }

    def before(self, owner: str, names: Sequence[str]) -> None:
        """Somebody is about to change files: take what was written to the LUNs first."""
        taken: list[_Held] = []
        try:
            for held in self._named(names):
                held.take(owner)
                taken.append(held)
                if held.depth == 1:
                    held.store.collect()
        except BaseException:
            for held in taken:
                held.give()
            raise

    def after(self, owner: str, names: Sequence[str], disks: Sequence[Mapping[str, Any]]) -> None:
        """They have changed: show what is there now, once the last step is done."""
        problems: list[str] = []
        for held in self._named(names):
            if held.owner != owner:  # the VM came to the datastore in between
                held.take(owner)
            try:
                held.store.allocate(disks)
                if held.depth == 1:
                    held.store.render()
            except (LabError, OSError) as error:
                problems.append(f"{held.store.spec.name}: {error}")
            finally:
                held.give()
        if problems:
            raise LabError("; ".join(problems))

    def render(self, name: str) -> None:
        """Show the datastore as it is now."""
        self.before("render", [name])
        self.after("render", [name], [])

    def collect(self, name: str) -> int:
        """Take what was written to the LUNs into the files; how many bytes."""
        (held,) = self._named([name])
        held.take("collect")
        try:
            return held.store.collect()
        finally:
            held.give()

    def zone(self, name: str, guest: str) -> None:
        """Let a guest see the LUNs."""
        (held,) = self._named([name])
        for lun in held.store.spec.luns:
            self._view(guest).add_lun(Path(lun.image), wwid=lun.naa)

    def unzone(self, name: str, guest: str) -> None:
        """Take them away from it."""
        (held,) = self._named([name])
        for lun in held.store.spec.luns:
            self._view(guest).remove_lun(lun.naa)

    def described(self, name: str) -> dict[str, Any]:
        """Where the files of the datastore lie on its LUNs, and what was written where no file is."""
        (held,) = self._named([name])
        return {
            "stray": held.store.stray,
            "files": {
                file.path: [
                    (
                        run.file_offset_bytes,
                        run.lun,
                        run.offset_bytes,
                        run.length_bytes,
                        run.to_be_zeroed,
                    )
                    for run in file.runs
                ]
                for file in held.store.volume.files.values()
            },
        }

    def store(self, name: str) -> LunStore:
        """One datastore."""
        (held,) = self._named([name])
        return held.store

    def _named(self, names: Sequence[str]) -> list[_Held]:
        # In the order of names, so that two who want the same two do not wait for each other.
        with suppress(KeyError):
            return [self._held[name] for name in sorted(names)]
        raise LabError(f"among {', '.join(names)} is a datastore without LUNs")

    def _view(self, guest: str) -> GuestView:
        if guest not in self._views:
            raise LabError(f"the site has no proxy VM {guest!r} with devices")
        return self._views[guest]
