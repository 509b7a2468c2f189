"""Through a real iSCSI target and a block device of the kernel, for reading and for writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmhaul_lab.guestview import GuestView
from vmhaul_lab.vmfs import Allocation

from tests.support.iscsi import lun_over_iscsi
from tests.support.san import MIB, San, naa, raw_disk, whole
from transports import direct_san
from transports.errors import TransientTransportError, TransportError
from transports.machine import Machine

SIZE = 24 * MIB


@pytest.mark.lab
def test_a_lun_of_an_iscsi_target_is_read_and_written(tmp_path: Path) -> None:
    san = San(tmp_path, luns=1)
    thin = san.add_disk(raw_disk(tmp_path / "raw", SIZE), fragment_blocks=2)
    with (tmp_path / "new").open("wb") as file:
        file.truncate(SIZE)
    new = san.add_disk(tmp_path / "new", "vm/new.vmdk", allocation=Allocation.EAGER)
    content = (tmp_path / "raw").read_bytes()
    with (
        lun_over_iscsi(san.lun_files[0].image, tmp_path) as lun,
        GuestView(tmp_path / "guest", uuid="564d1111-2222-3333-4444-555555555555") as view,
    ):
        view.add_lun(lun.path, wwid=naa(0))
        machine = Machine(sys_path=str(tmp_path / "guest/sys"), dev_path=str(tmp_path / "guest/dev"))
        reader = direct_san.open_reader(machine, thin)
        assert whole(reader) == content
        reader.close()
        writer = direct_san.open_writer(machine, new)
        for at in range(0, SIZE, 4 * MIB):
            writer.write_from(at, memoryview(content)[at : at + 4 * MIB])
        writer.flush()
        writer.close()
    # From the target's own image, past everything in between.
    reader = direct_san.open_reader(san.machine, new)
    assert whole(reader) == content
    reader.close()


@pytest.mark.lab
def test_a_lun_that_is_lost_in_the_middle_of_a_disk_may_come_back(tmp_path: Path) -> None:
    """Nothing wrong is read, and the error is one after which the mover goes on, here or in another mode."""
    san = San(tmp_path, luns=1)
    disk = san.add_disk(raw_disk(tmp_path / "raw", SIZE), allocation=Allocation.EAGER)
    content = (tmp_path / "raw").read_bytes()
    with (
        lun_over_iscsi(san.lun_files[0].image, tmp_path) as lun,
        GuestView(tmp_path / "guest", uuid="564d1111-2222-3333-4444-555555555555") as view,
    ):
        view.add_lun(lun.path, wwid=naa(0))
        machine = Machine(sys_path=str(tmp_path / "guest/sys"), dev_path=str(tmp_path / "guest/dev"))
        reader = direct_san.open_reader(machine, disk)
        buffer = bytearray(MIB)
        for at in range(0, SIZE, MIB):
            if at == SIZE // 2:
                lun.cut()
                with pytest.raises(TransientTransportError, match="reading"):
                    reader.read_into(at, memoryview(buffer))
                break
            reader.read_into(at, memoryview(buffer))
            assert buffer == content[at : at + MIB]
        reader.close()
        # The loop device may still have the metadata, but not the disk.
        with pytest.raises(TransportError):
            whole(direct_san.open_reader(machine, disk))
