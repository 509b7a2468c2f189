from __future__ import annotations

import pytest

from transports.vsphere.places import Place, Places, unescape
from transports.vsphere.session import choose_version


def offer(*versions: str) -> str:
    first, *prior = versions
    return (
        '<?xml version="1.0"?><namespaces version="1.0">'
        "<namespace><name>urn:sms</name><version>9.9</version></namespace>"
        f"<namespace><name>urn:vim25</name><version>{first}</version><priorVersions>"
        + "".join(f"<version>{version}</version>" for version in prior)
        + "</priorVersions></namespace></namespaces>"
    )


@pytest.mark.parametrize(
    ("document", "chosen"),
    [
        (offer("8.0.3.0", "8.0.2.0", "7.0.3.2"), "vim.version.v8_0_3_0"),
        (offer("7.0.3.0", "6.7.3"), "vim.version.v7_0_3_0"),
        (offer("6.7.3", "6.5"), "vim.version.version15"),
        # A newer server offers older versions, and one of those is spoken.
        (offer("9.0.0.0", "8.0.3.1", "8.0.3.0"), "vim.version.v8_0_3_1"),
        (offer("10.1.0.0", "9.1.0.0", "8.0.1.0"), "vim.version.v8_0_1_0"),
        (offer("1.2.3.4"), "vim.version.version10"),
        ("this is no XML", "vim.version.version10"),
    ],
)
def test_the_newest_version_that_both_know(document: str, chosen: str) -> None:
    assert choose_version(document) == chosen


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("db01", "db01"),
        ("a%2fb", "a/b"),
        ("a%5cb", "a\\b"),
        ("100%25", "100%"),
        ("a%252fb", "a%2fb"),
        ("%2f%25%5c", "/%\\"),
        ("%41", "%41"),
    ],
)
def test_names_are_unescaped_for_people(name: str, plain: str) -> None:
    assert unescape(name) == plain


def place(moref: str, kind: str, name: str, parent: str) -> Place:
    return Place(moref=moref, kind=kind, name=name, parent=parent, properties={})


def test_paths_of_places() -> None:
    places = Places(
        [
            place("f-0", "Folder", "Europe", "root"),
            place("dc-1", "Datacenter", "DC1", "f-0"),
            place("f-1", "Folder", "vm", "dc-1"),
            place("f-2", "Folder", "Prod", "f-1"),
            place("f-3", "Folder", "Web", "f-2"),
            place("f-4", "Folder", "host", "dc-1"),
            place("c-1", "ClusterComputeResource", "Cluster1", "f-4"),
            place("r-1", "ResourcePool", "Resources", "c-1"),
            place("r-2", "ResourcePool", "Gold", "r-1"),
            place("v-1", "VirtualApp", "Shop", "r-2"),
            place("h-1", "HostSystem", "esx1", "c-1"),
        ]
    )
    assert places.path("f-3") == ("DC1", "vm", "Prod", "Web")
    assert places.vm_folder_path("f-3") == "DC1/Prod/Web"
    assert places.vm_folder_path("f-1") == "DC1"
    assert places.datacenter_path("h-1") == "Europe/DC1"
    assert places.pool_path("r-2") == "DC1/Cluster1/Resources/Gold"
    assert places.pool_path("v-1") == "DC1/Cluster1/Resources/Gold/Shop"
    assert places.cluster("h-1") == "Cluster1"
    assert places.datacenter("h-1") == "DC1"
    assert places.datacenter("nowhere") == ""
    compute = places.compute_of("r-2")
    assert compute is not None
    assert compute.name == "Cluster1"
