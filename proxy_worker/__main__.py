"""`python -m proxy_worker --data DIR`: run this machine's proxy.

With `--join URL` (join token on standard input) it only enrols; `--join token` takes the server's address from
the token. A proxy that lives in a server's data
directory enrols itself with the token file that the server put there.
"""

from __future__ import annotations

import argparse
import logging
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
    local_server_url,
)
from proxy_worker.enrol import enrol_with_file, join
from proxy_worker.errors import ProxyError
from proxy_worker.trust import check_server_url

JOIN_BY_TOKEN: Final = "token"  # noqa: S105 - a word of the command line


def set_up_logging(level: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # a line for every request would drown the rest
    logging.getLogger("httpx").setLevel(logging.WARNING)


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
        return _run(data_dir)
    except ProxyError as error:
        print(f"proxy in {data_dir}: {error}", file=sys.stderr)  # noqa: T201 - for who started it
        return 1


def _run(data_dir: Path) -> int:
    settings = load_settings(data_dir)
    set_up_logging(settings.log_level)
    enrolment = enrol_with_file(data_dir) or load_enrolment(data_dir)
    if enrolment is None:
        print(  # noqa: T201 - for who started it
            f"proxy in {data_dir}: not enrolled yet; join a server with `vmhaul proxy join`",
            file=sys.stderr,
        )
        return 1
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
