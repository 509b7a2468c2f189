"""The first process of a guest made by `realguest.py`: mounts, drivers, one Python program, power off.

Runs inside the guest, where there is nothing but the kernel, Python and what that program imports.
"""

import ctypes
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

PREFIX = "vmhaul-guest: "
MODULES_FILE = "/modules.json"
_FINIT_MODULE = 313  # x86-64
_POWER_OFF = 0x4321FEDC
_C = ctypes.CDLL(None, use_errno=True)


def _mount(kind: str, where: str) -> None:
    Path(where).mkdir(exist_ok=True)
    if _C.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {kind}")


def _load(module: str) -> None:
    fd = os.open(module, os.O_RDONLY)
    try:
        if _C.syscall(_FINIT_MODULE, fd, b"", 0):
            raise OSError(ctypes.get_errno(), f"load {module}")
    finally:
        os.close(fd)


def say(word: str, value: object = None) -> None:
    """One line to the host: a word, and a value as JSON."""
    print(f"{PREFIX}{json.dumps([word, value])}", flush=True)


def ask(word: str, value: object = None) -> object:
    """Say something and wait for the host's answer."""
    say(word, value)
    return json.loads(sys.stdin.readline())


def main() -> None:
    """Never returns: the guest's power goes off."""
    try:
        for kind, where in (
            ("proc", "/proc"),
            ("sysfs", "/sys"),
            ("devtmpfs", "/dev"),
            ("tmpfs", "/tmp"),
        ):
            _mount(kind, where)
        order = json.loads(Path(MODULES_FILE).read_text())
        for module in order["drivers"]:
            _load(module)
        program: Callable[[], object] = importlib.import_module(order["program"]).main
        say("end", program())
    except BaseException:  # noqa: BLE001 - whatever it is, the host must be told before the power goes
        say("failed", traceback.format_exc())
    finally:
        os.sync()
        _C.reboot(_POWER_OFF)
