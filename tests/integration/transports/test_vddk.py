"""The network modes through VDDK: nbdkit's real plugin, a stand-in for VMware's library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from proxy_worker.config import SETTINGS_FILE, load_settings
from proxy_worker.errors import SetupError
from tests.support.disks import read_all
from tests.support.vddk import PASSWORD, OneServer, StandIn, build, unpack
from transports import registry
from transports.base import DiskReader, ReadRequest, TransportMode
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.registry import Access, ModeOptions
from transports.vddk import NetworkClient, VddkOptions, open_reader, open_writer, vddk_missing
from transports.vddk.disks import VddkReader
from transports.vsphere.api import Vsphere

VCENTER = cast("Any", OneServer())
IMAGE = os.urandom(2 << 20)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vddk"))


@pytest.fixture
def vddk(library: Path, tmp_path: Path) -> StandIn:
    return unpack(library, tmp_path / "vddk", IMAGE)


@pytest.fixture
def reader(vddk: StandIn) -> Iterator[DiskReader]:
    reader = open_reader(VCENTER, vddk.ref(len(IMAGE)), TransportMode.NBDSSL, vddk.options())
    try:
        yield reader
    finally:
        reader.close()


def nbdkit_of(reader: DiskReader) -> int:
    assert isinstance(reader, VddkReader)
    process = reader._disk._process
    assert process is not None
    return process.pid


def test_vddk_is_told_the_snapshot_the_mode_and_the_confirmed_certificate(
    vddk: StandIn, reader: DiskReader
) -> None:
    assert read_all(reader) == IMAGE
    reader.close()
    calls = vddk.calls()
    assert (
        "connect server=vc.lab port=443 user=backup@lab vm=moref=vm-42 snapshot=snapshot-7 transports=nbdssl "
        "thumbprint=AA:BB:CC readonly=1" in calls
    )
    assert any(call.startswith("open [ds 1] db/db.vmdk") for call in calls)
    # Before the snapshot goes, VDDK must have ended its session.
    assert calls.index("close") < calls.index("disconnect")


def test_the_password_is_nobody_elses_to_see(reader: DiskReader) -> None:
    process = Path(f"/proc/{nbdkit_of(reader)}")
    for shown in ("cmdline", "environ"):
        text = (process / shown).read_bytes().replace(b"\0", b" ")
        assert PASSWORD.encode() not in text
    assert b"password=" in (process / "cmdline").read_bytes()


def test_a_write_is_flushed_and_not_for_reading_only(vddk: StandIn) -> None:
    disk = vddk.ref(len(IMAGE), snapshot=None)
    writer = open_writer(VCENTER, disk, TransportMode.NBD, vddk.options())
    try:
        writer.write_from(4096, memoryview(b"n" * 8192))
        writer.flush()
    finally:
        writer.close()
    assert vddk.disk.read_bytes() == IMAGE[:4096] + b"n" * 8192 + IMAGE[12288:]
    assert "flush" in vddk.calls()
    assert any("transports=nbd " in call and call.endswith("readonly=0") for call in vddk.calls())


# ---- refused


def refusal(vddk: StandIn, options: VddkOptions, size: int = len(IMAGE)) -> str:
    with pytest.raises(TransportUnavailableError) as caught:
        open_reader(VCENTER, vddk.ref(size), TransportMode.NBDSSL, options)
    return str(caught.value)


def test_a_wrong_password_is_said_in_vddks_words(vddk: StandIn) -> None:
    (vddk.libdir / "proxy-password").write_text("wrong")
    said = refusal(vddk, vddk.options())
    assert "user name or password is wrong" in said
    assert "VixDiskLib_ConnectEx" in said


def test_a_disk_that_is_gone(vddk: StandIn) -> None:
    vddk.disk.unlink()
    assert "A file was not found" in refusal(vddk, vddk.options())


def test_a_disk_of_another_size(vddk: StandIn) -> None:
    assert f"VDDK sees {len(IMAGE)} bytes" in refusal(vddk, vddk.options(), len(IMAGE) + 512)


def test_a_plugin_that_is_not_there(vddk: StandIn) -> None:
    assert "no-such-plugin" in refusal(vddk, vddk.options(plugin="no-such-plugin"))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"nbdkit": "no-such-nbdkit"}, "nbdkit is not installed"),
        ({"libdir": "/nonexistent"}, "holds no VDDK"),
        ({"password_file": "/nonexistent"}, "cannot be read"),
    ],
)
def test_what_a_machine_lacks(vddk: StandIn, given: dict[str, str], text: str) -> None:
    assert text in vddk_missing(vddk.options(**given))
    assert text in refusal(vddk, vddk.options(**given))


def test_a_password_for_all_to_read_is_refused(vddk: StandIn) -> None:
    (vddk.libdir / "proxy-password").chmod(0o640)
    assert "chmod 600" in vddk_missing(vddk.options())


# ---- in the middle


def requests() -> Iterator[ReadRequest]:
    for offset in range(0, len(IMAGE), 65536):
        yield ReadRequest(offset, memoryview(bytearray(65536)))


def test_an_nbdkit_that_dies_is_a_lost_connection(reader: DiskReader) -> None:
    answers = reader.read_many(requests())
    next(answers)
    os.kill(nbdkit_of(reader), signal.SIGKILL)
    with pytest.raises(TransientTransportError):
        list(answers)


def test_a_read_that_fails_has_vddks_reason(vddk: StandIn, reader: DiskReader) -> None:
    answers = reader.read_many(requests())
    next(answers)
    (vddk.libdir / "broken").touch()
    with pytest.raises(TransientTransportError, match="asynchronous read failed: Error 1"):
        list(answers)


def test_nothing_is_left_running(reader: DiskReader) -> None:
    pid = nbdkit_of(reader)
    answers = reader.read_many(requests())
    next(answers)
    cast("Any", answers).close()
    reader.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_nbdkit_outlives_nobody(vddk: StandIn) -> None:
    """The mover is killed; what it started sees its connection end."""
    script = (
        "import sys, os, signal; from tests.support.vddk import *; from transports.vddk import open_reader\n"
        "from transports.base import TransportMode; from pathlib import Path\n"
        "vddk = StandIn(libdir=Path(sys.argv[1]))\n"
        "reader = open_reader(OneServer(), vddk.ref(int(sys.argv[2])), TransportMode.NBD, vddk.options())\n"
        "print(reader._disk._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    mover = subprocess.run(
        [sys.executable, "-c", script, str(vddk.libdir), str(len(IMAGE))],
        stdout=subprocess.PIPE,
        check=False,
    )
    assert mover.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{int(mover.stdout)}/stat")
    pause = threading.Event()
    for _ in range(3000):
        # A zombie, where nobody on this machine collects it, has ended as well.
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        pause.wait(0.01)
    raise AssertionError("nbdkit goes on without its mover")


# ---- by setting


def test_the_network_modes_go_through_vddk_where_the_setting_says_so(vddk: StandIn) -> None:
    options = ModeOptions(vddk=vddk.options())
    for mode in (TransportMode.NBDSSL, TransportMode.NBD):
        assert registry.offered_modes(options)[mode] == ""
        access = Access(vsphere=VCENTER, options=options)
        reader = registry.open_reader(access, vddk.ref(len(IMAGE)), mode)
        try:
            assert reader.capabilities.mode is mode
            assert read_all(reader) == IMAGE
        finally:
            reader.close()
    lacking = ModeOptions(vddk=replace(vddk.options(), libdir="/nonexistent"))
    assert "holds no VDDK" in registry.offered_modes(lacking)[TransportMode.NBDSSL]
    assert registry.offered_modes(ModeOptions())[TransportMode.NBDSSL] == ""


def test_settings_of_a_proxy(tmp_path: Path, vddk: StandIn) -> None:
    secret = vddk.libdir / "proxy-password"
    (tmp_path / SETTINGS_FILE).write_text(
        f'network_client = "vddk"\nvddk_libdir = "{vddk.libdir}"\nvddk_user = "b"\nvddk_password_file = "{secret}"\n'
        'nfs_client = "mount"\n'
    )
    options = load_settings(tmp_path).mode_options()
    assert options.vddk.client is NetworkClient.VDDK
    assert options.vddk.libdir == str(vddk.libdir)
    assert options.nfs.client == "mount"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('network_client = "other"', "network_client must be one of native, vddk"),
        ('network_client = "vddk"', "needs vddk_libdir"),
        ('nfs_client = "kernel"', "nfs_client must be one of auto, library, mount"),
        ("nfs_connections = 65", "nfs_connections must be from 1 to 64"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(line + "\n")
    with pytest.raises(SetupError, match=text):
        load_settings(tmp_path)


@pytest.mark.lab
def test_vcenter_tells_the_thumbprint_that_vddk_wants(vsphere: Vsphere, site: Any) -> None:
    found = vsphere.server_address()
    assert (found.host, found.port) == (site.vcenter_host, site.vcenter_port)
    assert found.thumbprint_sha1 == site.thumbprint_sha1
