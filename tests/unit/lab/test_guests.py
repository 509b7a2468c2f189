"""Pure parts of what shows proxies their disks: identities, addresses, a guest's first files, exports."""

import stat
from pathlib import Path

import pytest
from vmhaul_lab.errors import LabError
from vmhaul_lab.guestview import ScsiAddress, naa_of_uuid, vpd_page_83
from vmhaul_lab.hardware import HardwareClient, parse_address
from vmhaul_lab.nfs import NfsExport
from vmhaul_lab.plan import DatacenterPlan, DatastorePlan, SitePlan, VmPlan
from vmhaul_lab.proxies import LabProxy, ProxyPlan
from vmhaul_lab.realguest import InitialFiles


def test_an_address_reads_as_linux_writes_it() -> None:
    address = ScsiAddress(host=2, target=64)
    assert str(address) == "2:0:64:0"
    assert parse_address("2:0:64:0") == address


@pytest.mark.parametrize(
    ("wwid", "page"),
    [
        ("naa.5000c29000000001", "0083000c010300085000c29000000001"),
        ("eui.0011223344556677", "0083000c010200080011223344556677"),
        ("t10.LAB", "00830007020100034c4142"),
    ],
)
def test_identities_become_pages(wwid: str, page: str) -> None:
    assert vpd_page_83(wwid).hex() == page


def test_a_name_of_no_kind_is_refused() -> None:
    with pytest.raises(LabError, match="disk7"):
        vpd_page_83("disk7")


def test_a_virtual_disk_is_named_by_its_uuid() -> None:
    assert naa_of_uuid("6000C290-1111-2222-3333-444455556666") == "naa.6000c290111122223333444455556666"


def test_first_files_are_an_archive_with_all_directories() -> None:
    files = InitialFiles()
    files.add("usr/bin/python3", b"program", mode=0o755)
    files.add("usr/bin/python3", b"another")
    files.add_character_device("dev/console", (5, 1))
    assert _entries(files.archive()) == [
        ("usr", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("usr/bin", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("usr/bin/python3", stat.S_IFREG | 0o755, b"program", (0, 0)),
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]


def _entries(archive: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Of a cpio archive of the kind "newc", as the kernel's documentation has it."""
    found = []
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, major, minor, name_size = (numbers[n] for n in (1, 6, 9, 10, 11))
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        found.append((name, mode, archive[at : at + size], (major, minor)))
        at = (at + size + 3) // 4 * 4
    return found


def test_a_plan_with_everything_becomes_a_site_file(tmp_path: Path) -> None:
    plan = SitePlan(
        vms=(VmPlan(name="far-vm", disks=(), datacenter="DC2", host="esx9.lab", folder="Prod"),),
        proxies=(ProxyPlan(name="proxy1", key_id="key-1"), ProxyPlan(name="proxy2", datacenter="DC2")),
        datastores=(DatastorePlan(name="nfs1", kind="NFS41", served=True, hosts=("esx1.lab",)),),
        more_datacenters=(
            DatacenterPlan(name="DC2", hosts=("esx9.lab",), datastores=(DatastorePlan(name="far"),)),
        ),
    )
    site = plan.site_json(tmp_path, {}, "secret", "127.0.0.1:0", hardware="h:1", nfs_host="127.1.2.3")
    first, second = site["datacenters"]
    assert (first["folders"], second["folders"]) == (["Proxies"], ["Prod", "Proxies"])
    assert second["clusters"][0]["pools"] == []
    store = first["datastores"][0]
    assert (store["remote_host"], store["remote_path"]) == ("127.1.2.3", "/vol/nfs1")
    assert store["hosts"] == ["esx1.lab"]
    vms = {vm["name"]: vm for vm in site["vms"]}
    assert vms["proxy1"]["guest_view"] == "proxy1"
    assert vms["proxy1"]["key_id"] == "key-1"
    assert vms["proxy1"]["extra_config"] == {"disk.EnableUUID": "TRUE"}
    assert (vms["proxy2"]["host"], vms["proxy2"]["disks"][0]["datastore"]) == ("esx9.lab", "far")
    assert site["hardware"] == "h:1"
    assert [store.name for store in plan.all_datastores()] == ["nfs1", "far"]


def test_exports_are_of_the_version_of_their_kind(tmp_path: Path) -> None:
    three = DatastorePlan(name="a", kind="NFS", export_options={"Access_Type": "RO"}).export(tmp_path)
    assert three == NfsExport(
        name="a", directory=str(tmp_path / "datastores/a"), version=3, options={"Access_Type": "RO"}
    )
    assert DatastorePlan(name="b", kind="NFS41").export(tmp_path).version == 4


def test_settings_are_added_to_those_of_a_proxy(tmp_path: Path) -> None:
    proxy = LabProxy(
        plan=ProxyPlan(name="p"), directory=tmp_path / "tree", hardware=HardwareClient("127.0.0.1:9")
    )
    (tmp_path / "proxy.toml").write_text('log_level = "debug"\n')
    proxy.write_settings(tmp_path)
    assert (tmp_path / "proxy.toml").read_text().splitlines() == [
        'log_level = "debug"',
        f'sys_path = "{tmp_path}/tree/sys"',
        f'dev_path = "{tmp_path}/tree/dev"',
    ]
    assert proxy.uuid == ProxyPlan(name="p").bios_uuid != ProxyPlan(name="q").bios_uuid
