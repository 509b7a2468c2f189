"""A child that does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends.

    A parent that ended before the call is noticed by what everybody here watches besides: standard
    input that ends.

    "Parent" is the thread that started us, so a worker's pool threads have to live as long as their
    movers: they do, each waits for its own.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended just before the call
