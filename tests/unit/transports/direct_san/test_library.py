"""The library is optional, and nothing of it is loaded before a LUN is looked at."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager

import pytest

from transports.direct_san import library
from transports.direct_san.errors import DamagedMetadataError, NotForSanError

_WITHOUT = """
import sys
if {blocked}:
    sys.modules["dissect"] = None
from transports import registry
from transports.base import TransportMode
missing = registry.offered_modes(registry.ModeOptions())[TransportMode.DIRECT_SAN]
assert not [name for name in sys.modules if name.startswith("dissect.vmfs.")], "loaded too early"
print(missing)
"""


@pytest.mark.parametrize("blocked", [True, False])
def test_every_other_mode_works_without_it(blocked: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(blocked=blocked)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ("install vmhaul with the extra `san`" in done.stdout) == blocked


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError(3), EOFError(), MemoryError(), RecursionError(), TypeError()]
)
def test_whatever_it_raises_means_that_metadata_is_not_understood(error: Exception) -> None:
    with pytest.raises(DamagedMetadataError, match="the header is not understood"), _reading():
        raise error


def test_what_was_judged_already_stays_so() -> None:
    with pytest.raises(NotForSanError, match="encrypted"), _reading():
        raise NotForSanError("is encrypted")
    with pytest.raises(OSError, match="gone"), _reading():
        raise OSError("gone")


def _reading() -> AbstractContextManager[None]:
    return library.understood("the header")
