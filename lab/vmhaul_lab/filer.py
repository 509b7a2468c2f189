"""A file server whose snapshots are directories of the same export: `.snapshots/NAME` holds what the export held.

Snapshots are made as on btrfs, by the commands that its own program has: `commands` writes programs of that name that a
test lets a storage host's SSH server find. Below is XFS, whose files share blocks: real btrfs has each snapshot as a
file system of its own, and the NFS server of the lab refuses to cross into it (NFS4ERR_XDEV). Two things are not as on
the real one: a snapshot is not one moment for all files, and it takes time for each file (not for its length).
"""

import os
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmhaul_lab import reflink
from vmhaul_lab.errors import LabError

SNAPSHOTS = ".snapshots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filer:
    """The snapshots of one exported folder."""

    folder: Path

    @property
    def directory(self) -> Path:
        """Where snapshots are; within the export."""
        return self.folder / SNAPSHOTS

    def create(self, name: str) -> Path:
        """A read-only snapshot of the folder, its earlier snapshots left out."""
        target = self.directory / name
        copy_tree(self.folder, target)
        return target

    def delete(self, name: str) -> None:
        """Remove a snapshot."""
        remove_tree(self.directory / name)

    def names(self) -> list[str]:
        """All snapshots there are."""
        return sorted(path.name for path in self.directory.glob("*"))

    def commands(self, directory: Path) -> Path:
        """Write the program `btrfs` into a directory; put that in front of the PATH of whoever calls it."""
        directory.mkdir(parents=True, exist_ok=True)
        program = directory / "btrfs"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vmhaul_lab.filer "$@"\n')
        program.chmod(0o755)
        return directory


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder without copying data; read-only, `.snapshots` left out. `LabError` when blocks are not shared."""
    if target.exists():
        raise LabError(f"{target} exists")
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True)
    try:
        _copy_into(part, source)
    except OSError as error:
        # A file that somebody renamed meanwhile, for one.
        remove_tree(part)
        raise LabError(f"{source} could not be copied: {error}") from error
    except LabError:
        remove_tree(part)
        raise
    # Nobody sees a snapshot before it is whole.
    part.rename(target)


def _copy_into(part: Path, source: Path) -> None:
    for folder, names, files in os.walk(source):
        if SNAPSHOTS in names:
            names.remove(SNAPSHOTS)
        below = part / Path(folder).relative_to(source)
        below.mkdir(exist_ok=True)
        for name in files:
            if not reflink.clone_file(Path(folder, name), below / name):
                raise LabError(f"{source}: its file system shares no blocks; take XFS or btrfs")
            shutil.copystat(Path(folder, name), below / name)
            (below / name).chmod(0o400)


def remove_tree(directory: Path) -> None:
    """Remove a snapshot, also when it is gone in parts."""
    if not directory.is_dir():
        raise LabError(f"{directory} is no snapshot")
    for folder, _, _ in os.walk(directory):
        Path(folder).chmod(stat.S_IRWXU)
    shutil.rmtree(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """As `btrfs`: `--version`, `subvolume snapshot -r SOURCE TARGET`, `subvolume delete TARGET...`, `subvolume show TARGET`."""
    words = [
        word for word in (sys.argv[1:] if arguments is None else arguments) if word not in {"-q", "--"}
    ]
    try:
        _perform(words)
    except (LabError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    return 0


def _perform(words: list[str]) -> None:
    match words:
        case ["--version"]:
            print("btrfs-progs v6.2 (of the lab)")
        case ["subvolume", "snapshot", "-r", source, target]:
            copy_tree(Path(source), Path(target))
            print(f"Create a readonly snapshot of '{source}' in '{target}'")
        case ["subvolume", "delete", *targets] if targets:
            for target in targets:
                remove_tree(Path(target))
                print(f"Delete subvolume (no-commit): '{target}'")
        case ["subvolume", "show", target]:
            if not Path(target).is_dir():
                raise LabError(f"not a subvolume: {target}")
            print(f"{Path(target).name}\n\tName: \t\t\t{Path(target).name}")
        case _:
            raise LabError(f"the lab's btrfs does not know: {' '.join(words)}")


if __name__ == "__main__":
    sys.exit(main())
