"""A disk array that is slow, busy, forgetful, or not the one it was."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from vmhaul_lab.array_api import Fault

from tests.support.arrays import API_TOKEN, HOST, RunningArray, driver, running_array
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
)
from transports.storage_systems import flasharray
from transports.storage_systems.base import Volume
from transports.storage_systems.flasharray_session import FlashArraySession
from transports.testing.storage_systems import EXPOSURE, NAME, OURS
from transports.vsphere.model import Secret


@pytest.fixture
def array(tmp_path: Path) -> Iterator[RunningArray]:
    with running_array(tmp_path) as array:
        yield array


@pytest.fixture
def system(array: RunningArray) -> Iterator[flasharray.FlashArray]:
    system = driver(array)
    yield system
    system.close()


def test_a_session_that_ended_is_renewed(system: flasharray.FlashArray, array: RunningArray) -> None:
    system.create_snapshot(NAME, ["vmfs1"])
    array.state.sessions.clear()
    system.create_snapshot(NAME, ["vmfs1", "vmfs2"])
    [found] = system.snapshots(OURS)
    assert found.volume_ids == ("vmfs1", "vmfs2")
    assert sum("/login" in call for call in array.state.calls) == 2
    system.close()
    assert array.state.sessions == set()


def test_an_array_that_forgets_every_session_is_not_asked_for_ever(array: RunningArray) -> None:
    array.server.fault = lambda method, path: (
        (401, {}) if "/login" not in path and "2.2" in path else None
    )
    with pytest.raises(TransientTransportError, match="401"), closing(driver(array)) as system:
        system.volumes()
    assert sum("/login" in call for call in array.state.calls) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_array_is_worth_another_try(
    system: flasharray.FlashArray, array: RunningArray, status: int
) -> None:
    system.volumes()  # logged in
    failing = iter([(status, {"retry-after": "1"})])
    array.server.fault = lambda method, path: next(failing, None) if method == "POST" else None
    with pytest.raises(TransientTransportError, match=str(status)):
        system.create_snapshot(NAME, ["vmfs1"])
    system.create_snapshot(NAME, ["vmfs1"])
    assert [one.name for one in system.snapshots(OURS)] == [NAME]


def test_a_login_that_fails_for_now_is_worth_another_try(
    system: flasharray.FlashArray, array: RunningArray
) -> None:
    failing = iter([(503, {})])
    array.server.fault = lambda method, path: next(failing, None) if "/login" in path else None
    with pytest.raises(TransientTransportError):
        system.volumes()
    assert len(system.volumes()) == 2


def test_a_slow_array_is_given_up_for_now(array: RunningArray) -> None:
    done = threading.Event()

    def slow(method: str, path: str) -> None:
        if "volume-snapshots" in path:
            done.wait(60)

    array.server.fault = slow
    session = FlashArraySession(array.address, array.thumbprint, Secret(API_TOKEN), timeout_s=0.5)
    system = flasharray.FlashArray(session)
    try:
        with pytest.raises(TransientTransportError, match="in time"):
            system.snapshots(OURS)
    finally:
        done.set()
        system.close()


def test_nobody_there_is_worth_another_try(array: RunningArray) -> None:
    with closing(driver(array)) as system:
        array.server.stop()
        with pytest.raises(TransientTransportError, match="cannot be reached"):
            system.volumes()


def test_a_wrong_token_is_said_without_repeating_it(array: RunningArray) -> None:
    with (
        closing(flasharray.DRIVER.connect(array.access(token="not-the-token"))) as system,
        pytest.raises(PermanentTransportError, match="refused the API token") as caught,
    ):
        system.describe()
    assert "not-the-token" not in str(caught.value)


def test_another_certificate_ends_it_before_anything_is_sent(array: RunningArray) -> None:
    access = array.access(thumbprint=":".join(["00"] * 32))
    with closing(flasharray.DRIVER.connect(access)) as system, pytest.raises(PeerIdentityError):
        system.describe()
    assert array.state.calls == []


def test_an_old_array_is_refused(array: RunningArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmhaul_lab.array_api.VERSIONS", ["1.17", "2.0"])
    with pytest.raises(PermanentTransportError, match=r"Purity 6\.0"), closing(driver(array)) as system:
        system.describe()


def test_lists_come_in_pages(system: flasharray.FlashArray, array: RunningArray) -> None:
    for number in range(3, 12):
        array.state.add_volume(f"vmfs{number}", 1 << 30)
    array.state.page_items = 4
    assert len(system.volumes()) == 11
    system.create_snapshot(NAME, [volume.id for volume in system.volumes()])
    [found] = system.snapshots(OURS)
    assert len(found.volume_ids) == 11


@pytest.mark.parametrize("hook", ["fault", "lost"])
def test_whichever_call_fails_repeating_and_cleaning_up_work(
    system: flasharray.FlashArray, array: RunningArray, hook: str
) -> None:
    """Every call in its turn changes nothing (`fault`), or is carried out and its answer is lost."""
    volume = next(one for one in system.volumes() if one.id == "vmfs1")

    attempt_again(system, array, volume)
    calls = len(array.state.calls)
    for failing in range(1, calls + 1):
        setattr(array.server, hook, fail_at(failing))
        for _ in range(2):
            try:
                attempt_again(system, array, volume)
                break
            except TransientTransportError:
                continue
        setattr(array.server, hook, None)
        assert (system.exposures(""), system.snapshots("")) == ((), ())
        assert array.state.connections == {("esx1", "vmfs1"), ("esx1", "vmfs2")}
        assert set(array.state.volumes) == {"vmfs1", "vmfs2"}


def fail_at(turn: int) -> Fault:
    turns = itertools.count(1)
    return lambda method, path: (503, {}) if next(turns) == turn else None


def attempt_again(system: flasharray.FlashArray, array: RunningArray, volume: Volume) -> None:
    """What the server does: everything of the name goes, then it is made anew."""
    system.hide(EXPOSURE)
    system.delete_snapshot(NAME)
    array.write(volume, b"content")
    system.create_snapshot(NAME, ["vmfs1", "vmfs2"])
    array.write(volume, b"changed")
    [first, _] = system.expose(EXPOSURE, ["vmfs1", "vmfs2"], HOST)
    assert array.read(first) == b"content"
    system.hide(EXPOSURE)
    system.delete_snapshot(NAME)
