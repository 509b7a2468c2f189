"""The main job into a bucket, through the public command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vmhaul_lab.site import LabSite

from tests.support.object_servers import ACCESS_KEY, SECRET_KEY, ObjectServer
from tests.support.s3_front import BUSY, CUT, PASS, front_before

from .platform import Platform, wait_until
from .setup import REPOSITORY_PASSWORD, add_vcenter, assert_restores, create_job, hashes

pytestmark = pytest.mark.lab

MIB = 1 << 20


def test_backup_increment_restore_prune_and_check_in_a_bucket(
    product: Platform, site: LabSite, tmp_path: Path, moto_server: ObjectServer
) -> None:
    """Also with a storage that is busy or cuts the line now and then."""
    secret = tmp_path / "secret-key"
    secret.write_text(SECRET_KEY + "\n")
    with front_before(moto_server.endpoint) as front:
        location = f"s3://{moto_server.new_bucket()}/backups/main?endpoint={front.endpoint}"
        add_vcenter(product, site)
        product.run(
            "repository", "add", "main", location, "--access-key-id", ACCESS_KEY,
            "--secret-access-key-file", str(secret), "--password-stdin", stdin=REPOSITORY_PASSWORD,
        )  # fmt: skip
        shown = product.json("repository", "show", "main")
        assert shown["storage_secrets"] is True
        assert SECRET_KEY not in product.run("repository", "show", "main", "--json").stdout
        create_job(product, "nightly", "--vm", "vm01", "--keep", "2")

        requests = [0]

        def script(_method: str, _path: str) -> str:
            requests[0] += 1
            return {7: BUSY, 19: CUT}.get(requests[0] % 40, PASS)

        front.script = script
        before = hashes(site, "vm01")
        product.backup("nightly")
        site.guest_write(site.disk("vm01", 1), 5 * MIB + 512, os.urandom(3000))
        after = hashes(site, "vm01")
        increment = product.backup("nightly")
        modes = {t["read_mode"] for vm in increment["vms"] for t in vm["tasks"]}
        assert modes == {"increment"}
        assert_restores(product, "vm01@2", "vm01", before, tmp_path)
        assert_restores(product, "vm01@1", "vm01", after, tmp_path)

        product.backup("nightly")  # the first point goes: --keep 2
        # One that the server began by itself may be under way.
        wait_until(
            "a prune ends well",
            lambda: product.run("repository", "prune", "main", check=False).returncode == 0,
            120,
        )
        product.run("repository", "check", "main", "--read-data")
        assert_restores(product, "vm01@1", "vm01", after, tmp_path)
        assert front.seen[BUSY] > 0
        assert front.seen[CUT] > 0
    logs = [
        path for path in product.data.rglob("*") if path.is_file() and path.stat().st_size < 64 * MIB
    ]
    assert not [path for path in [*logs, product.log] if SECRET_KEY.encode() in path.read_bytes()], (
        "the secret key lies in clear text"
    )


def test_keys_that_are_wrong_are_said_to_be(
    product: Platform, tmp_path: Path, moto_server: ObjectServer
) -> None:
    secret = tmp_path / "secret-key"
    secret.write_text(SECRET_KEY)
    refused = product.run(
        "repository", "add", "main", moto_server.location("no-such-bucket"), "--access-key-id", ACCESS_KEY,
        "--secret-access-key-file", str(secret), "--password-stdin",
        stdin=REPOSITORY_PASSWORD, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "create the bucket" in refused.stderr
    assert SECRET_KEY not in refused.stderr
