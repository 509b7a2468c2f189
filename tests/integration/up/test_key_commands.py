"""`vmhaul repository key` and `upgrade`, against a running platform."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.integration.up.running import Up

PASSWORD = "correct horse battery\n"


def test_keys_from_the_first_to_an_import_by_recovery_key(up: Up, tmp_path: Path) -> None:
    place, key_file = tmp_path / "repo", tmp_path / "key.txt"
    named = ("repository", "key")
    up.json(
        "repository", "add", "keyed", str(place), "--block-size", "256KiB", "--password-stdin",
        stdin=PASSWORD,
    )  # fmt: skip
    odd = up.vmhaul(
        "repository", "add", "odd", str(tmp_path / "odd"), "--block-size", "128KiB", "--password-stdin",
        stdin=PASSWORD,
    )  # fmt: skip
    assert odd.returncode != 0
    assert "256 KiB, 512 KiB, 1 MiB, 4 MiB" in odd.stderr

    made = up.json(*named, "add", "keyed", "--key-file", str(key_file), "--label", "USB stick")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.read_text().splitlines()[-1].startswith("vmhaul-key-1 ")
    assert "secret" not in made
    again = up.vmhaul(*named, "add", "keyed", "--key-file", str(key_file))
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    recovery = up.json(*named, "recovery", "keyed", "--label", "in the safe")["secret"]
    shown = up.vmhaul(*named, "list", "keyed").stdout
    assert "USB stick" in shown
    assert "in the safe" in shown
    assert recovery not in shown

    changed = up.vmhaul(*named, "change", "keyed", "--password-stdin", stdin="second password\n")
    assert changed.returncode == 0, changed.stderr
    unsure = up.vmhaul(*named, "revoke", "keyed", made["id"])
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)
    revoked = up.vmhaul(*named, "revoke", "keyed", made["id"][:8], "--yes")
    assert revoked.returncode == 0, revoked.stderr
    assert "key rotate keyed" in revoked.stdout
    assert up.json(*named, "rotate", "keyed") == {"key_epoch": 2}
    assert len(up.json(*named, "list", "keyed")["keys"]) == 2
    upgraded = up.vmhaul("repository", "upgrade", "keyed", "--yes")
    assert "has everything already" in upgraded.stdout

    assert up.vmhaul("repository", "remove", "keyed").returncode == 0
    importing = ("repository", "add", "back", str(place), "--import")
    old = up.vmhaul(*importing, "--password-stdin", stdin=PASSWORD)
    assert old.returncode != 0
    assert "wrong password" in old.stderr
    gone = up.vmhaul(*importing, "--key-file", str(key_file))
    assert "no key file" in gone.stderr
    taken = up.vmhaul(*importing, "--password-stdin", stdin=f"{recovery.lower()}\n")
    assert taken.returncode == 0, taken.stderr
    used = up.vmhaul(*named, "use", "back", "--password-stdin", stdin="second password\n")
    assert used.returncode == 0, used.stderr
    [own] = [key for key in up.json(*named, "list", "back")["keys"] if key["own"]]
    assert own["kind"] == "password"
    for file in up.data.rglob("*"):
        if file.is_file():
            assert recovery.encode() not in file.read_bytes()
    assert up.vmhaul("repository", "remove", "back").returncode == 0
