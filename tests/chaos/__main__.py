"""`python -m tests.chaos`: many rounds, or one again."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from vmhaul_lab.loops import release_under
from vmhaul_lab.process import labvc_binary

from tests.chaos.draw import draw
from tests.chaos.template import make_template

ROUND_LIMIT_S: Final = 1800
_INSIDE: Final = "--inside"
_NAMESPACES: Final = (
    "unshare", "--net", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child",
    # The shell takes in orphans, whose ends nobody else would collect.
    "sh", "-c", '"$@"; exit $?', "sh",
)  # fmt: skip


def main() -> int:
    options = _options()
    if options.inside:
        return _inside(options)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    base = Path(options.dir or tempfile.mkdtemp(prefix="vmhaul-chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    base.chmod(0o755)  # PostgreSQL runs as another user
    print(f"chaos with seed {seed}; rounds that fail are kept in {base}", flush=True)
    labvc_binary()
    template = base / "template"
    if not template.exists():
        make_template(template)
    failed = _rounds(options, seed, base, template)
    if not failed and not options.keep:
        shutil.rmtree(base)
    for number in failed:
        print(
            f"again: python -m tests.chaos --seed {seed} --round {number}   (logs: {base}/round{number})"
        )
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no more rounds after so many minutes")
    parser.add_argument("--seed", type=int, help="what rounds are drawn from (one that is made up)")
    parser.add_argument("--round", type=int, action="append", help="only this one; may be repeated")
    parser.add_argument("--first", type=int, default=1, help="number of the first round (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="rounds at the same time (%(default)s)")
    parser.add_argument("--dir", help="where rounds are kept that fail (a new temporary directory)")
    parser.add_argument("--keep", action="store_true", help="keep the files of rounds that pass, too")
    parser.add_argument(_INSIDE, help=argparse.SUPPRESS)
    return parser.parse_args()


def _rounds(options: argparse.Namespace, seed: int, base: Path, template: Path) -> list[int]:
    """Numbers of those that failed."""
    began, failed, totals = time.monotonic(), [], {"rounds": 0, "points": 0, "attempts": 0}
    for number, outcome in _outcomes(options, seed, base, template, began):
        totals["rounds"] += 1
        totals["points"] += outcome.get("points", 0)
        totals["attempts"] += outcome.get("attempts", 0)
        findings = outcome["findings"]
        if findings:
            failed.append(number)
        _print_round(number, seed, outcome)
    spent = time.monotonic() - began
    print(f"seed {seed}: {totals['rounds']} rounds in {spent / 60:.1f} min, {len(failed)} failed; "
          f"{totals['points']} restore points compared, {totals['attempts']} attempts at tasks")  # fmt: skip
    return sorted(failed)


def _print_round(number: int, seed: int, outcome: dict[str, Any]) -> None:
    plan = draw(seed, number)
    verdict = "FAILED" if outcome["findings"] else "ok"
    faults = ", ".join(" ".join(str(fault).split()[2:]) for fault in plan.faults)
    print(
        f"{verdict:6} {plan.lines()[0]}; {outcome.get('points', 0)} points; {faults}; "
        f"{outcome.get('sessions')} {outcome.get('modes')} {outcome.get('seconds')}"
    )
    for finding in outcome["findings"]:
        print(f"       {finding}")
    sys.stdout.flush()


def _outcomes(
    options: argparse.Namespace, seed: int, base: Path, template: Path, began: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    numbers = options.round or range(options.first, options.first + options.rounds)
    left = iter(numbers)
    running: dict[Future[dict[str, Any]], int] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        while True:
            while len(running) < options.jobs:
                late = options.minutes and time.monotonic() - began > options.minutes * 60
                number = None if late else next(left, None)
                if number is None:
                    break
                running[pool.submit(_one, options, seed, number, base, template)] = number
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _one(
    options: argparse.Namespace, seed: int, number: int, base: Path, template: Path
) -> dict[str, Any]:
    directory = base / f"round{number}"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    directory.chmod(0o755)
    command = [*_NAMESPACES, sys.executable, "-m", "tests.chaos", "--seed", str(seed)]
    command += ["--round", str(number), "--dir", str(directory), _INSIDE, str(template)]
    with (directory / "runner.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(ROUND_LIMIT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            # With the first of its processes all others end.
            process.kill()
            process.wait()
    release_under(directory)
    result = directory / "outcome.json"
    if not result.exists():
        said = (directory / "runner.log").read_text(errors="replace")[-2000:]
        how = f"took longer than {ROUND_LIMIT_S} s" if code == -1 else f"ended with {code}"
        return {"findings": [f"the round {how}: {said}"]}
    outcome: dict[str, Any] = json.loads(result.read_text())
    if not outcome["findings"] and not options.keep:
        shutil.rmtree(directory)
    return outcome


def _inside(options: argparse.Namespace) -> int:
    from tests.chaos.round import Round

    os.umask(0o022)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    directory = Path(options.dir)
    outcome = Round(draw(options.seed, options.round[0]), directory, Path(options.inside)).run()
    file = directory / "outcome.json.new"
    file.write_text(json.dumps(asdict(outcome)))
    file.rename(directory / "outcome.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
