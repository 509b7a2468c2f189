"""What administrators do while everything runs, and take back a little later."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.chaos.api import Api, AwayError, RefusedError
from tests.chaos.patience import PATIENCE
from tests.chaos.plan import Fault, FaultKind
from tests.chaos.stand import Stand

_TRY_S: Final = 10.0
"""So long somebody tries to do a thing while servers are away, and then leaves it."""
_BACK_S: Final = 120.0
"""So long to take it back."""
_PAUSE_S: Final = 0.4
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404
_RATES: Final = ("2Mbit", "4Mbit", "16Mbit")


class Deeds:
    """One method for each kind; each returns when all is as it was before, or raises what kept it from that."""

    def __init__(self, stand: Stand, say: Callable[[str], None]) -> None:
        self._stand = stand
        self._say = say
        # Two people do not work at one proxy, or at one job, at a time.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def kinds(self) -> dict[FaultKind, Callable[[Fault], None]]:
        return {
            FaultKind.PROXY_DISABLED: self._disable,
            FaultKind.PROXY_REMOVED: self._remove,
            FaultKind.PROXY_REVOKED: self._revoke,
            FaultKind.WINDOW_CLOSED: self._close_window,
            FaultKind.RULES_CHANGED: self._change_rules,
        }

    def _ask(self, call: Callable[[Api], Any], for_s: float) -> Any:
        """The answer of whichever server is there. AwayError; RefusedError for what none will ever do."""
        until = PATIENCE.now_s() + for_s
        number = 0
        while True:
            try:
                return call(self._stand.api(number))
            except AwayError:
                if PATIENCE.now_s() > until:
                    raise
            except RefusedError as error:
                # Something runs there: that ends.
                if error.status != _CONFLICT or PATIENCE.now_s() > until:
                    raise
            number += 1
            time.sleep(_PAUSE_S)

    def _done(self, what: str, call: Callable[[Api], Any]) -> bool:
        """Whether it was done; where that is not known it may have been."""
        try:
            self._ask(call, _TRY_S)
        except (AwayError, RefusedError) as error:
            self._say(f"{what}: not done, or nobody said so: {error}")
            return False
        return True

    def _disable(self, fault: Fault) -> None:
        def enabled(api: Api, *, on: bool) -> None:
            api.call("PATCH", f"/proxies/{fault.part}", {"enabled": on})

        with self._locks[fault.part]:
            self._done(f"disable {fault.part}", lambda api: enabled(api, on=False))
            time.sleep(fault.lasts_s)
            self._ask(lambda api: enabled(api, on=True), _BACK_S)

    def _remove(self, fault: Fault) -> None:
        path = f"/proxies/{fault.part}"
        with self._locks[fault.part]:
            self._done(f"remove {fault.part}", lambda api: api.call("DELETE", f"{path}?force=true"))
            time.sleep(fault.lasts_s)
            self._join_again(fault.part, anew=True)

    def _revoke(self, fault: Fault) -> None:
        path = f"/proxies/{fault.part}/revoke"
        with self._locks[fault.part]:
            self._done(f"revoke {fault.part}", lambda api: api.post(path))
            time.sleep(fault.lasts_s)
            self._join_again(fault.part, anew=False)

    def _join_again(self, name: str, *, anew: bool) -> None:
        part = self._stand.parts[name]
        part.take_out()
        try:
            until = PATIENCE.now_s() + _BACK_S
            while True:
                token = self._ask(lambda api: _new_token(api, name), _BACK_S)
                try:
                    self._stand.join(name, token, anew=anew)
                except (subprocess.SubprocessError, OSError) as error:
                    # Its cables are pulled, or the server went away in the middle.
                    if PATIENCE.now_s() > until:
                        said = getattr(error, "stderr", "")
                        raise RuntimeError(f"{name} could not join again: {error} {said}") from error
                    time.sleep(_PAUSE_S)
                else:
                    break
        finally:
            part.put_back()

    def _close_window(self, fault: Fault) -> None:
        path = f"/jobs/nightly-{fault.part}"
        now = datetime.now(UTC)
        opens, closes = ((now + timedelta(hours=hours)).strftime("%H:00") for hours in (4, 6))
        window = {"time_zone": "UTC", "rule": "allowed", "text": f"{opens}-{closes}"}
        with self._locks[path]:
            self._done(
                f"close the window of {fault.part}",
                lambda api: api.call("PATCH", path, {"window": window}),
            )
            time.sleep(fault.lasts_s)
            self._ask(lambda api: api.call("PATCH", path, {"window": None}), _BACK_S)

    def _change_rules(self, fault: Fault) -> None:
        name = f"rule-{fault.at_s:.3f}".replace(".", "-")
        first, second = (_RATES[int(fault.at_s * 1000 + n) % len(_RATES)] for n in (0, 1))
        rule = {"name": name, "source": "any", "target": "any", "rate": first, "restores": True}
        self._done(f"make {name}", lambda api: api.post("/traffic-rules", rule))
        time.sleep(fault.lasts_s / 2)
        path = f"/traffic-rules/{name}"
        self._done(f"change {name}", lambda api: api.call("PATCH", path, {"rate": second}))
        time.sleep(fault.lasts_s / 2)
        try:
            self._ask(lambda api: api.call("DELETE", path), _BACK_S)
        except RefusedError as error:
            if error.status != _NOT_FOUND:  # it was never made, or an earlier answer was lost
                raise


def _new_token(api: Api, name: str) -> str:
    """A join token of that proxy, which is made where there is none of that name."""
    try:
        return str(api.post(f"/proxies/{name}/join-token")["join_token"])
    except RefusedError as error:
        if error.status != _NOT_FOUND:
            raise
    return str(api.post("/proxies", {"name": name, "slots": 2})["join_token"])
