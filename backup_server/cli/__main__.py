"""Entry point of the `vmhaul` command."""

from __future__ import annotations

from backup_server.cli.app import build


def main() -> None:
    """Run the command line; leaves the process with one of `exits.Exit`."""
    build()(prog_name="vmhaul")


if __name__ == "__main__":
    main()
