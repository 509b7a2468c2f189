"""Runs a proxy's worker in a process of its own, with the test's data mover.

Arguments: data directory, file for the mover's marks.
"""

import sys
import time
from pathlib import Path

import structlog

from proxy_worker.app import run_worker
from proxy_worker.config import ProxyConfig, load_enrolment, load_settings
from proxy_worker.contracts.logs import set_up_logging

data_dir, marks = Path(sys.argv[1]), sys.argv[2]
enrolment = load_enrolment(data_dir)
assert enrolment is not None
set_up_logging(form="json", always={"proxy": enrolment.name})
config = ProxyConfig(
    data_dir=data_dir,
    enrolment=enrolment,
    settings=load_settings(data_dir),
    mover_command=(sys.executable, str(Path(__file__).with_name("mover.py")), marks),
)
sys.exit(run_worker(config, time.time, structlog.get_logger()))
