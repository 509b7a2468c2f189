"""From an empty platform to a job over a site, through the command line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmhaul_lab.site import LabSite
from vmhaul_lab.verify import sha256

from .platform import Platform

REPOSITORY_PASSWORD = "correct horse battery"


def add_vcenter(product: Platform, site: LabSite, name: str = "lab") -> None:
    product.run(
        "vcenter", "add", name, site.address, "--user", site.user,
        "--password-stdin", "--thumbprint", site.thumbprint_sha256, stdin=site.password,
    )  # fmt: skip


def add_repository(product: Platform, path: Path, name: str = "main") -> None:
    product.run("repository", "add", name, str(path), "--password-stdin", stdin=REPOSITORY_PASSWORD)


def connect(product: Platform, site: LabSite, repository: Path) -> None:
    add_vcenter(product, site)
    add_repository(product, repository)


def create_job(product: Platform, name: str, *options: str) -> None:
    product.run("job", "create", name, "--vcenter", "lab", "--repository", "main", *options)


def hashes(site: LabSite, *vms: str) -> dict[tuple[str, int], str]:
    """SHA-256 of what each guest has on its disks now, by (VM, number from 1)."""
    found: dict[tuple[str, int], str] = {}
    for vm in vms:
        for number, disk in enumerate(sorted(site.disks(vm), key=lambda d: d.key), 1):
            found[vm, number] = site.live_sha256(disk)
    return found


def restored_hash(product: Platform, point: str, number: int, target: Path) -> str:
    target.unlink(missing_ok=True)
    product.run("restore", "disk", point, "--disk", str(number), "--to", str(target))
    digest = sha256(target)
    target.unlink()
    return digest


def assert_restores(
    product: Platform, point: str, vm: str, expected: dict[tuple[str, int], str], scratch: Path
) -> None:
    """Each disk of `vm` in `expected` comes out of `point` as it was. All at a time: most of a restore of so little is
    waiting.
    """
    wanted = {number: digest for (name, number), digest in expected.items() if name == vm}
    assert wanted

    def restored(number: int) -> str:
        return restored_hash(product, point, number, scratch / f"{vm}-{number}.raw")

    with ThreadPoolExecutor(len(wanted)) as pool:
        got = dict(zip(wanted, pool.map(restored, wanted), strict=True))
    assert got == wanted
