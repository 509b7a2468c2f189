"""`python -m proxy_worker --data DIR`: run this machine's proxy.

With `--join URL` (join token on standard input) it only enrols; `--join token` takes the server's address from
the token. A proxy that lives in a server's data
directory enrols itself with the token file that the server put there.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from proxy_worker.config import (
    ProxyConfig,
    broker_login,
    load_enrolment,
    load_settings,
    local_enrolment,
    local_log_format,
    local_server_url,
)
from proxy_worker.contracts.logs import set_up_logging
from proxy_worker.enrol import enrol_with_file, join, join_patiently
from proxy_worker.errors import ProxyError
from proxy_worker.trust import check_server_url

JOIN_BY_TOKEN: Final = "token"  # noqa: S105 - a word of the command line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m proxy_worker", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the proxy's directory")
    parser.add_argument(
        "--join",
        metavar="URL",
        help="only enrol, token on stdin: at this server, or `token`: at the token's",
    )
    parser.add_argument(
        "--name", help="its name at the server; default: the token's, or the directory's"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="in place of DIR/proxy.toml")
    parser.add_argument(
        "--join-file",
        type=Path,
        metavar="FILE",
        help="where not enrolled yet: join with the token in this file, however long it takes, "
        "then run; the name is the machine's host name by default",
    )
    given = parser.parse_args(argv)
    data_dir: Path = given.data.absolute()
    try:
        if given.join:
            token = sys.stdin.readline().strip()
            if given.join == JOIN_BY_TOKEN:
                taken = join(data_dir, token, name=given.name or "")
            else:
                taken = join(data_dir, token, name=given.name or "", server_url=given.join)
            print(f"enrolled as {taken.name} ({taken.proxy_id})")  # noqa: T201 - the answer
            return 0
        return _run(data_dir, given.settings, given.join_file, given.name or socket.gethostname())
    except ProxyError as error:
        print(f"proxy in {data_dir}: {error}", file=sys.stderr)  # noqa: T201 - for who started it
        return 1


def _run(data_dir: Path, settings_file: Path | None, join_file: Path | None, name: str) -> int:
    settings = load_settings(data_dir, settings_file)
    form = local_log_format(data_dir) or settings.log_format
    set_up_logging(level=settings.log_level, form=form)
    enrolment = enrol_with_file(data_dir) or load_enrolment(data_dir)
    if enrolment is None and join_file is not None:
        enrolment = join_patiently(data_dir, join_file, name, log=structlog.get_logger())
    if enrolment is None:
        print(  # noqa: T201 - for who started it
            f"proxy in {data_dir}: not enrolled yet; join a server with `vmhaul proxy join`",
            file=sys.stderr,
        )
        return 1
    set_up_logging(level=settings.log_level, form=form, always={"proxy": enrolment.name})
    if sys.platform == "win32":
        structlog.get_logger().warning(
            "proxy.untried",
            text="this worker runs on Windows, where no release of vmhaul was ever run: trust no backup of it that "
            "was not checked by a proxy on Linux",
        )
    from proxy_worker.app import run_worker

    if local_server_url(data_dir) is None:
        for url in (enrolment.server_url, *enrolment.more_server_urls):
            check_server_url(url)
    config = ProxyConfig(
        data_dir=data_dir,
        enrolment=broker_login(data_dir, local_enrolment(data_dir, enrolment)),
        settings=settings,
    )
    return run_worker(config, time.time, structlog.get_logger())  # noqa: TID251 - composition root


if __name__ == "__main__":
    sys.exit(main())
