"""Finding the disk that was attached, and never another one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hotadd import NAME, TreePresenter, disk_ref
from tests.support.sysfs import SysTree
from transports import block_devices, direct_file, hotadd
from transports.base import ReadRequest, TransportMode
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.hotadd import arrival
from transports.machine import Machine
from transports.wrappers import ReconnectingReader

MIB = 1 << 20
MODE = TransportMode.HOTADD


@pytest.fixture
def tree(tmp_path: Path) -> SysTree:
    tree = SysTree(tmp_path)
    tree.add_host(0, "ata_piix")
    tree.add_host(2)
    tree.add_host(3)
    return tree


@pytest.fixture
def presenter(tree: SysTree, tmp_path: Path) -> TreePresenter:
    content = tmp_path / "disk"
    content.write_bytes(b"d" * MIB)
    return TreePresenter(tree, content, disk_ref(MIB))


def another(tree: SysTree, name: str, content: bytes, **attributes: str) -> Path:
    path = tree.dev.parent / f"content-{name}"
    path.write_bytes(content)
    return tree.add_disk(name, path, **attributes)  # type: ignore[arg-type]


def first_bytes(presenter: TreePresenter, *, wait_s: float = 30.0) -> bytes:
    reader = hotadd.open_reader(presenter, presenter.tree.machine, presenter.disk, wait_s=wait_s)
    buffer = bytearray(512)
    reader.read_into(0, memoryview(buffer))
    reader.close()
    return bytes(buffer)


def test_the_device_is_deleted_before_the_disk_is_withdrawn(presenter: TreePresenter) -> None:
    assert first_bytes(presenter) == b"d" * 512
    assert presenter.asked == ["present hotadd read", "withdraw hotadd delete=1"]


def test_a_writer_lets_go_in_the_same_order(presenter: TreePresenter) -> None:
    writer = hotadd.open_writer(presenter, presenter.tree.machine, presenter.disk)
    writer.write_from(0, memoryview(b"w" * 512))
    writer.flush()
    writer.close()
    writer.close()
    assert presenter.content.read_bytes()[:513] == b"w" * 512 + b"d"
    assert presenter.asked == ["present hotadd write", "withdraw hotadd delete=1"]


def test_it_is_found_by_its_name_among_disks_of_the_same_size(presenter: TreePresenter) -> None:
    another(presenter.tree, "sda", b"a" * MIB, wwid="naa.6000c29f", address="2:0:0:0")
    assert first_bytes(presenter) == b"d" * 512


def test_a_disk_that_comes_after_a_scan_is_waited_for(presenter: TreePresenter) -> None:
    scan = presenter.tree.sys / "class/scsi_host/host2/scan"
    ended = threading.Event()

    def kernel() -> None:
        while not ended.wait(0.01):
            if scan.read_text():
                presenter.show()
                return

    thread = threading.Thread(target=kernel)
    presenter.appears = thread.start
    assert first_bytes(presenter) == b"d" * 512
    ended.set()
    thread.join()


def test_a_disk_that_never_comes_is_withdrawn(presenter: TreePresenter) -> None:
    presenter.appears = lambda: None
    with pytest.raises(
        TransportUnavailableError, match=r"db01.vmdk was attached as disk 0:1, but .*EnableUUID"
    ):
        first_bytes(presenter, wait_s=0.3)
    assert presenter.asked == ["present hotadd read", "withdraw hotadd delete=-"]


def test_a_disk_that_is_not_presented_is_not_withdrawn(presenter: TreePresenter) -> None:
    presenter.error = TransportUnavailableError("no free slots")
    with pytest.raises(TransportUnavailableError, match="no free slots"):
        first_bytes(presenter)
    assert presenter.asked == ["present hotadd read"]


@pytest.mark.parametrize("write", [False, True])
def test_a_disk_of_another_size_is_refused(presenter: TreePresenter, write: bool) -> None:
    wrong = replace(presenter.disk, capacity_bytes=2 * MIB)
    opening = hotadd.open_writer if write else hotadd.open_reader
    with pytest.raises(
        TransportUnavailableError, match=r"1048576 bytes and .* 2097152: it is another disk"
    ):
        opening(presenter, presenter.tree.machine, wrong)
    assert presenter.asked[-1] == "withdraw hotadd delete=1"


def test_a_device_that_the_kernel_did_not_forget_is_not_taken_for_the_new_one(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(presenter.tree, "sda", b"o" * MIB, wwid=NAME, address="2:0:5:0")
    assert first_bytes(presenter) == b"d" * 512
    # Presented again within the attempt: the one at the right unit was there before, and is the one.
    monkeypatch.setattr(arrival, "_SETTLE_S", 0.1)
    assert first_bytes(presenter) == b"d" * 512


@pytest.mark.parametrize("was_there", [False, True])
def test_another_disk_with_the_same_name_and_size_at_another_unit_is_not_it(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch, was_there: bool
) -> None:
    """A copy of the VM keeps the names of its disks; two tasks may read both at a time."""
    monkeypatch.setattr(arrival, "_SETTLE_S", 0.1)

    def copy() -> None:
        another(presenter.tree, "sda", b"o" * MIB, wwid=NAME, address="2:0:5:0")

    if was_there:
        copy()
    presenter.appears = (lambda: None) if was_there else copy
    with pytest.raises(TransportUnavailableError, match="did not show it"):
        first_bytes(presenter, wait_s=0.5)
    presenter.appears = None
    assert first_bytes(presenter) == b"d" * 512


def test_targets_of_a_sas_controller_say_nothing_of_units(presenter: TreePresenter) -> None:
    presenter.tree.add_host(4, "mptsas")
    presenter.address = "4:0:9:0"
    assert first_bytes(presenter) == b"d" * 512


def test_a_name_that_passes_to_another_device_while_it_is_opened(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def slow(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith("dev/sdb"):
            (presenter.tree.sys / "block/sdb/diskseq").write_text("12\n")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", slow)
    with pytest.raises(TransientTransportError, match="became another device"):
        first_bytes(presenter)
    assert presenter.asked[-1].startswith("withdraw")


def test_two_that_cannot_be_told_apart_are_refused(presenter: TreePresenter) -> None:
    def appear() -> None:
        presenter.show()
        another(presenter.tree, "sdc", b"c" * MIB, wwid=NAME, address="3:0:1:0")

    presenter.appears = appear
    with pytest.raises(TransportUnavailableError, match=r"sdb, .*sdc may each be"):
        first_bytes(presenter)


class TestWithoutIdentity:
    """disk.EnableUUID is not set: the guest's disks have no names."""

    @pytest.fixture(autouse=True)
    def nameless(self, presenter: TreePresenter) -> None:
        presenter.wwid = ""

    def test_it_is_found_by_its_place(self, presenter: TreePresenter) -> None:
        another(presenter.tree, "sda", b"a" * MIB, address="2:0:0:0")
        assert first_bytes(presenter) == b"d" * 512

    def test_on_the_second_controller(self, presenter: TreePresenter) -> None:
        presenter.bus, presenter.address = 1, "3:0:1:0"
        assert first_bytes(presenter) == b"d" * 512

    def test_one_that_was_there_before_is_not_it(self, presenter: TreePresenter) -> None:
        presenter.show()
        presenter.appears = lambda: None
        with pytest.raises(TransportUnavailableError, match="did not show it"):
            first_bytes(presenter, wait_s=0.3)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"address": "2:0:2:0"},
            {"address": "3:0:1:0"},
            {"address": "2:0:1:0", "wwid": "naa.6000c29f"},
            {},
        ],
    )
    def test_a_new_disk_elsewhere_or_with_a_name_is_not_it(
        self, presenter: TreePresenter, attributes: dict[str, str]
    ) -> None:
        presenter.appears = lambda: another(presenter.tree, "sdb", b"x" * MIB, **attributes) and None
        with pytest.raises(TransportUnavailableError, match="did not show it"):
            first_bytes(presenter, wait_s=0.3)

    def test_one_of_another_size_is_not_it(self, presenter: TreePresenter) -> None:
        presenter.appears = lambda: (
            another(presenter.tree, "sdb", b"x" * 2 * MIB, address="2:0:1:0") and None
        )
        with pytest.raises(TransportUnavailableError, match="did not show it"):
            first_bytes(presenter, wait_s=0.3)

    def test_two_new_ones_that_differ_in_their_host_alone_are_refused(
        self, presenter: TreePresenter
    ) -> None:
        def appear() -> None:
            presenter.show()
            another(presenter.tree, "sdc", b"c" * MIB, address="3:0:1:0")

        presenter.appears = appear
        with pytest.raises(TransportUnavailableError, match="may each be"):
            first_bytes(presenter)


def test_a_disk_that_lvm_took_is_not_written_to(presenter: TreePresenter) -> None:
    def appear() -> None:
        presenter.show()
        (presenter.tree.sys / "block/sdb/sdb1/holders/dm-3").mkdir(parents=True)

    presenter.appears = appear
    with pytest.raises(TransportUnavailableError, match=r"sdb is used by dm-3 .*LVM"):
        hotadd.open_writer(presenter, presenter.tree.machine, presenter.disk)
    assert presenter.content.read_bytes() == b"d" * MIB


def test_a_node_of_another_device_is_refused(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    presenter.appears = lambda: (
        presenter.tree.add_disk("sdb", presenter.content, wwid=NAME, address="2:0:1:0", number="8:16")
        and None
    )
    monkeypatch.setattr(direct_file.DirectFile, "device_number", lambda _: (8, 32))
    with pytest.raises(TransportUnavailableError, match="is not the device that the kernel lists"):
        first_bytes(presenter)


def test_a_lost_device_may_come_back(presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = hotadd.open_reader(presenter, presenter.tree.machine, presenter.disk)

    def lost(*_: object) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr("os.preadv", lost)
    with pytest.raises(TransientTransportError, match="No such device"):
        reader.read_into(0, memoryview(bytearray(512)))
    reader.close()
    assert presenter.asked[-1] == "withdraw hotadd delete=1"


@pytest.mark.parametrize("cut_at", [0, 3, 7], ids=["start", "middle", "end"])
def test_a_disk_that_is_cut_off_is_attached_anew_and_read_on(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    step = MIB // 8
    content = random.Random(cut_at).randbytes(MIB)
    presenter.content.write_bytes(content)
    real, cuts = os.preadv, [cut_at * step]

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset in cuts:
            cuts.remove(offset)
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    def gone(_: TransportMode) -> None:
        presenter.asked.append("withdraw")
        presenter.tree.remove_disk("sdb")
        shutil.rmtree(presenter.tree.sys / "devices")

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(presenter, "withdraw", gone)
    reader = ReconnectingReader(
        lambda: hotadd.open_reader(presenter, presenter.tree.machine, presenter.disk), 3, lambda _: None
    )
    got = bytearray(MIB)
    requests = [ReadRequest(at, memoryview(got)[at : at + step]) for at in range(0, MIB, step)]
    assert len(list(reader.read_many(requests))) == 8
    reader.close()
    assert bytes(got) == content
    assert cuts == []
    assert presenter.asked == ["present hotadd read", "withdraw"] * 2


def test_a_kernel_that_does_not_let_go_does_not_keep_the_disk_attached(
    presenter: TreePresenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TransportUnavailableError("busy")

    reader = hotadd.open_reader(presenter, presenter.tree.machine, presenter.disk)
    monkeypatch.setattr(block_devices, "delete", refuse)
    reader.close()
    assert presenter.asked[-1] == "withdraw hotadd delete="


class TestMissing:
    @pytest.fixture(autouse=True)
    def dmi(self, tree: SysTree) -> Path:
        dmi = tree.sys / "class/dmi/id"
        dmi.mkdir(parents=True)
        (dmi / "product_uuid").write_text("4220F2B6-0F4C-2C6B-9B2C-3D1B2F7D2A11\n")
        (dmi / "sys_vendor").write_text("VMware, Inc.\n")
        return dmi

    def test_nothing_in_a_vm_of_vsphere(self, tree: SysTree) -> None:
        assert hotadd.missing(tree.machine) == ""

    def test_the_uuid(self, tree: SysTree, dmi: Path) -> None:
        (dmi / "product_uuid").unlink()
        assert "no SMBIOS UUID" in hotadd.missing(tree.machine)

    def test_a_vm_of_another_hypervisor(self, tree: SysTree, dmi: Path) -> None:
        (dmi / "sys_vendor").write_text("QEMU\n")
        assert "its vendor is QEMU" in hotadd.missing(tree.machine)
        named = replace(tree.machine, vm_uuid="4220f2b6-0f4c-2c6b-9b2c-3d1b2f7d2a11")
        assert hotadd.missing(named) == ""

    def test_block_devices(self, tree: SysTree) -> None:
        machine = Machine(sys_path=str(tree.sys), vm_uuid="4220f2b6-0f4c-2c6b-9b2c-3d1b2f7d2a11")
        (tree.sys / "block").rmdir()
        assert "cannot be read" in hotadd.missing(machine)
