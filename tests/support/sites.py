"""Servers that integration tests of vSphere calls start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmhaul_lab.process import Child

from transports.vsphere.model import Endpoint


@contextmanager
def plain_simulator(binary: Path, directory: Path) -> Iterator[Endpoint]:
    """The simulator of Debian's govmomi package as it is: no change tracking, no NFC."""
    child = Child((binary, "-plain", "-stdinexit"), directory / "plain.log")
    try:
        ready = child.ready()
        host, _, port = ready["vcenter"].rpartition(":")
        yield Endpoint(host=host, port=int(port), thumbprint_sha256=ready["thumbprint_sha256"])
    finally:
        child.stop()
