#!/usr/bin/env bash
# Every test, three at a time: many wait for processes rather than for a processor. One that fails beside the others is
# tried once more, alone on the machine: what passes then is named as unsteady, which is a defect of the test or of what
# it tests, but tells nothing against the change.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
most_repeated=5

rm -f .pytest_cache/v/cache/lastfailed
"$python" -m pytest -q -n 3 --durations=40 --durations-min=5 "$@"
code=$?
[ "$code" = 1 ] || exit "$code"

mapfile -t failed < <("$python" -c '
import json, pathlib
for name in json.loads(pathlib.Path(".pytest_cache/v/cache/lastfailed").read_text()): print(name)')
files=$(printf '%s\n' "${failed[@]}" | cut -d: -f1 | sort -u | wc -l)
# Many of one or two files are one server that did not start.
if [ "${#failed[@]}" = 0 ] || { [ "${#failed[@]}" -gt "$most_repeated" ] && [ "$files" -gt 2 ]; }; then
  exit "$code"
fi
echo "==> once more, alone: ${failed[*]}" >&2
"$python" -m pytest -q "${failed[@]}" || exit 1
echo "==> UNSTEADY, to be mended: failed beside other tests, passed alone: ${failed[*]}" >&2
