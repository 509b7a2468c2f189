"""Library or mount, and what a machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nfs_disks import mountinfo
from transports import direct_nfs
from transports.base import DatastoreRef
from transports.direct_nfs import NfsClient, NfsOptions
from transports.direct_nfs import clients as clients_module
from transports.direct_nfs.clients import by_client
from transports.direct_nfs.connection import ServerSilentError
from transports.direct_nfs.mounts import NfsMount
from transports.errors import TransportUnavailableError
from transports.machine import Machine

STORAGE = DatastoreRef(name="x", kind="NFS41", nfs_hosts=("nas.lab",), nfs_path="/vol/a")
ABSENT = "libnfs is not installed"


@pytest.fixture
def mounted(tmp_path: Path) -> Machine:
    return Machine(mountinfo_path=str(mountinfo(tmp_path / "m", tmp_path, "nas.lab:/vol/a")))


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    return Machine(mountinfo_path=str(tmp_path / "none"))


def installed(monkeypatch: pytest.MonkeyPatch, *, library: bool) -> None:
    for module in (clients_module, direct_nfs):
        monkeypatch.setattr(module, "library_missing", lambda: "" if library else ABSENT)


class Attempts:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.made: list[str] = []

    def library(self) -> str:
        self.made.append("library")
        if self.error is not None:
            raise self.error
        return "library"

    def mount(self, mount: NfsMount, root: Path) -> str:
        assert root == mount.point
        self.made.append("mount")
        return "mount"

    def run(self, client: NfsClient, machine: Machine) -> str:
        return by_client(
            NfsOptions(client=client), machine, STORAGE, library=self.library, mount=self.mount
        )


@pytest.mark.parametrize(
    ("client", "library", "made"),
    [
        (NfsClient.AUTO, True, ["library"]),
        (NfsClient.AUTO, False, ["mount"]),
        (NfsClient.LIBRARY, True, ["library"]),
        (NfsClient.MOUNT, True, ["mount"]),
    ],
)
def test_the_setting_chooses(
    monkeypatch: pytest.MonkeyPatch,
    mounted: Machine,
    client: NfsClient,
    library: bool,
    made: list[str],
) -> None:
    installed(monkeypatch, library=library)
    attempts = Attempts()
    assert attempts.run(client, mounted) == made[-1]
    assert attempts.made == made


def test_what_the_library_is_refused_is_tried_through_the_mount(
    monkeypatch: pytest.MonkeyPatch, mounted: Machine
) -> None:
    installed(monkeypatch, library=True)
    attempts = Attempts(TransportUnavailableError("refused"))
    assert attempts.run(NfsClient.AUTO, mounted) == "mount"
    assert attempts.made == ["library", "mount"]


def test_a_mount_of_a_silent_server_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, mounted: Machine
) -> None:
    installed(monkeypatch, library=True)
    attempts = Attempts(ServerSilentError("no answer"))
    with pytest.raises(TransportUnavailableError, match="no answer"):
        attempts.run(NfsClient.AUTO, mounted)
    assert attempts.made == ["library"]


@pytest.mark.parametrize("client", [NfsClient.AUTO, NfsClient.LIBRARY])
def test_a_refusal_without_a_mount_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, bare: Machine, client: NfsClient
) -> None:
    installed(monkeypatch, library=True)
    with pytest.raises(TransportUnavailableError, match="refused"):
        Attempts(TransportUnavailableError("refused")).run(client, bare)


@pytest.mark.parametrize(
    ("client", "library", "text"),
    [
        (NfsClient.MOUNT, True, "nas.lab:/vol/a is not mounted here, and nfs_client is set to mount"),
        (NfsClient.AUTO, False, "nas.lab:/vol/a is not mounted here, and libnfs is not installed"),
    ],
)
def test_no_mount_is_said(
    monkeypatch: pytest.MonkeyPatch, bare: Machine, client: NfsClient, library: bool, text: str
) -> None:
    installed(monkeypatch, library=library)
    with pytest.raises(TransportUnavailableError, match=text):
        Attempts().run(client, bare)


@pytest.mark.parametrize(
    ("client", "library", "has_mount", "lacks"),
    [
        (NfsClient.AUTO, True, False, ""),
        (NfsClient.AUTO, False, True, ""),
        (NfsClient.AUTO, False, False, ABSENT),
        (NfsClient.LIBRARY, True, False, ""),
        (NfsClient.LIBRARY, False, True, ABSENT),
        (NfsClient.MOUNT, False, True, ""),
        (NfsClient.MOUNT, True, False, "nfs_client is set to mount, and no NFS export is mounted here"),
    ],
)
def test_what_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
    mounted: Machine,
    bare: Machine,
    client: NfsClient,
    library: bool,
    has_mount: bool,
    lacks: str,
) -> None:
    installed(monkeypatch, library=library)
    found = direct_nfs.missing(NfsOptions(client=client), mounted if has_mount else bare)
    assert found.startswith(lacks) if lacks else found == ""


@pytest.mark.parametrize(
    "wrong",
    [{"connections": 0}, {"connections": 65}, {"request_bytes": 700}, {"connect_timeout_s": 0.0}],
)
def test_options_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        NfsOptions(**wrong)  # type: ignore[arg-type]
