"""What the product is asked for during a round: backups while guests write, restores, copies, cancelled sessions."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmhaul_lab.errors import LabError

from tests.chaos.api import AwayError, RefusedError
from tests.chaos.patience import PATIENCE
from tests.chaos.plan import LUN_STORAGE, VMS
from tests.chaos.stand import Stand

_CONFLICT: Final = 409
_ASK_S: Final = 40.0
_LOOK_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A VM that was asked for."""

    name: str
    vm: str
    """The one that the restore point is of."""
    point: str
    session: str


class Workload:
    """`start`, and `stop` when nothing new is to be begun; what was begun goes on."""

    def __init__(self, stand: Stand, say: Callable[[str], None]) -> None:
        self._stand = stand
        self._say = say
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.restores: list[Restore] = []
        self.checks: list[str] = []
        """Sessions that looked at a repository while everything else went on."""
        self.errors: list[str] = []

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._stand.plan.seed} {self._stand.plan.number} {what}")

    # -- asking, whoever is away

    def ask(self, call: Callable[[int], Any], for_s: float = _ASK_S) -> Any:
        """The answer of the first server that gives one; AwayError when none does for so long."""
        until = PATIENCE.now_s() + for_s
        number = 0
        while True:
            try:
                return call(number)
            except AwayError:
                if PATIENCE.now_s() > until:
                    raise
            number += 1
            time.sleep(0.3)

    def get(self, path: str, for_s: float = _ASK_S) -> Any:
        return self.ask(lambda number: self._stand.api(number).get(path), for_s)

    def post(self, path: str, body: Any = None, for_s: float = _ASK_S) -> Any:
        return self.ask(lambda number: self._stand.api(number).post(path, body), for_s)

    def run_job(self, job: str, *, full: bool = False) -> str:
        """Id of its session, also when the answer to an earlier request was lost."""
        try:
            return str(self.post(f"/jobs/{job}/run", {"full": full})["id"])
        except RefusedError as error:
            if error.status == _CONFLICT and "session" in error.details:
                return str(error.details["session"])
            raise

    def wait_for(self, session: str, timeout_s: float) -> dict[str, Any]:
        """The session when it has ended; TimeoutError."""
        until = PATIENCE.now_s() + timeout_s
        while PATIENCE.now_s() < until:
            found: dict[str, Any] = self.get(f"/sessions/{session}", max(5.0, timeout_s))
            if found["state"] == "finished":
                return found
            time.sleep(_LOOK_S)
        raise TimeoutError(f"session {session} did not end within {timeout_s:.0f} s")

    # -- the flows

    def start(self) -> None:
        plan = self._stand.plan
        flows: list[tuple[str, Callable[[], None]]] = [
            (f"backups of {vm}", lambda vm=vm: self._backups(vm))  # type: ignore[misc]
            for vm in VMS
        ]
        if plan.copies:
            flows.append(("copies", self._copies))
        if plan.restores:
            flows.append(("restores", self._restores))
        if plan.cancels:
            flows.append(("cancels", self._cancels))
        if plan.housekeeping:
            flows.append(("housekeeping", self._housekeeping))
        for name, flow in flows:
            thread = threading.Thread(target=self._flow, args=(name, flow), name=name)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._over.set()

    def join(self) -> None:
        """Once every part is well again."""
        for thread in self._threads:
            thread.join()

    def _flow(self, name: str, flow: Callable[[], None]) -> None:
        try:
            flow()
        except Exception as error:  # noqa: BLE001 - told by the round
            self.errors.append(f"{name}: {error!r}")

    def _until_over(self, session: str) -> None:
        """Until the session has ended, or nothing new is to be begun."""
        while not self._over.wait(_LOOK_S):
            if self.get(f"/sessions/{session}")["state"] == "finished":
                return

    def _backups(self, vm: str) -> None:
        rng = self._rng(vm)
        self._over.wait(rng.uniform(0, 1.5))
        while not self._over.is_set():
            try:
                session = self.run_job(f"nightly-{vm}", full=rng.random() < 0.2)
            except RefusedError as error:
                # Its window is closed.
                if "opens_at" not in error.details:
                    raise
                self._over.wait(_LOOK_S)
                continue
            self._say(f"backup of {vm}: session {session[:8]}")
            self._over.wait(rng.uniform(0, 1.0))
            self.write(vm, rng)
            self._until_over(session)
            self.write(vm, rng)
            self._over.wait(rng.uniform(0, 0.5))

    def write(self, vm: str, rng: random.Random) -> None:
        """The guest writes here and there."""
        for disk in self._stand.site.disks(vm):
            for _ in range(rng.choice((0, 1, 3))):
                length = rng.choice((512, 4096, 70_000, 300_000))
                at = rng.randrange(0, (disk.capacity_bytes - length) // 512) * 512
                try:
                    self._stand.site.guest_write(disk, at, rng.randbytes(length))
                except LabError as error:
                    self.errors.append(f"a guest could not write: {error}")

    def _copies(self) -> None:
        rng = self._rng("copies")
        while not self._over.wait(rng.uniform(1, 4)):
            session = self.run_job("copy")
            self._say(f"copy: session {session[:8]}")
            self._until_over(session)

    def _restores(self) -> None:
        rng = self._rng("restores")
        number = 0
        while not self._over.wait(rng.uniform(0.5, 3)):
            points = self.get("/restore-points?limit=100")["items"]
            points = [point for point in points if not point["copy_of"]]
            if not points:
                continue
            number += 1
            point = rng.choice(points[:4])
            name = f"restored{number}"
            try:
                # One request: its repetition would be another restore.
                session = self._stand.api().post(
                    "/restores/vm", {"restore_point": point["id"], "name": name, **self._by()}
                )
            except (AwayError, RefusedError) as error:
                self._say(f"restore of {name} was not begun: {error}")
                continue
            self._say(f"restore of {point['vm']} as {name}: session {session['id'][:8]}")
            self.restores.append(
                Restore(name=name, vm=point["vm"], point=point["id"], session=session["id"])
            )
            self._until_over(session["id"])

    def _by(self) -> dict[str, Any]:
        """The modes of a restore. Where vCenter changes something the lab shows a LUN anew, which is no moment to write
        to it, and here vCenter changes something all the time.
        """
        return {"modes": ["nbdssl"]} if self._stand.plan.storage in LUN_STORAGE else {}

    def _cancels(self) -> None:
        rng = self._rng("cancels")
        while not self._over.wait(rng.uniform(2, 6)):
            running = self.get("/sessions?state=running")["items"]
            if not running:
                continue
            session = rng.choice(running)["id"]
            self._say(f"cancel session {session[:8]}")
            try:
                self.post(f"/sessions/{session}/cancel")
            except RefusedError as error:
                self._say(f"not cancelled: {error}")

    def _housekeeping(self) -> None:
        rng = self._rng("housekeeping")
        while not self._over.wait(rng.uniform(1, 4)):
            what = rng.choice(("prune", "check", "rescan", "delete"))
            path, body = f"/repositories/main/{what}", {}
            if what == "delete":
                points = self.get("/restore-points?limit=100&repository=main")["items"]
                if not points:
                    continue
                path = f"/restore-points/{rng.choice(points)['id']}"
            elif what == "check":
                body = {"read_data": True}
            self._say(f"{what} {path}")
            try:
                if what == "delete":
                    self.ask(lambda number, path=path: self._stand.api(number).call("DELETE", path))  # type: ignore[misc]
                else:
                    self._checks(self.post(path, body))
            except RefusedError as error:
                self._say(f"refused: {error}")

    def _checks(self, session: dict[str, Any]) -> None:
        if session["kind"] == "repository-check":
            self.checks.append(session["id"])
