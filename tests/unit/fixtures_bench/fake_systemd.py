# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for systemd: a unit is active while a file of its name exists; the lease's program really runs.

What systemd does when the lease's program ends is done by the stand-in: it starts what ExecStopPost= names. The same
against a real systemd is in the Molecule scenario.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal

SYSTEMCTL = """#!/bin/sh
for unit; do :; done
case "$1" in
show)
  if [ -e "$UNITS/$unit" ]; then
    echo "LoadState=loaded"; echo "ActiveState=active"; echo "InvocationID=$(cat "$UNITS/.pid")"
  else echo "LoadState=not-found"; echo "ActiveState=inactive"; fi ;;
list-jobs)
  for job in "$UNITS"/*.job; do
    [ -e "$job" ] && name=${job##*/} && echo "71 ${name%.job} start running"
  done; true ;;
cancel)
  rm "$UNITS/llama-server.service.job" ;;
stop)
  kill "$(cat "$UNITS/.pid")"
  while [ -e "$UNITS/$unit" ]; do sleep 0.05; done ;;
esac
"""
SYSTEMD_RUN = """#!/bin/sh
[ -e "$UNITS/refuse" ] && { echo "Access denied" >&2; exit 1; }
[ -e "$UNITS/llama-server.service.job" ] && { echo "Transaction for unit/start is destructive" >&2; exit 1; }
unit=mixed-gpu-lease.service
: > "$UNITS/$unit"
: > "$UNITS/.restart"
while [ $# -gt 0 ]; do
  case "$1" in
  -p)
    case "$2" in
    Conflicts=*) rm -f "$UNITS/${2#Conflicts=}" ;;
    ExecStopPost=*start*) echo "${2##* }" >> "$UNITS/.restart" ;;
    esac
    shift 2 ;;
  --*) shift ;;
  *) break ;;
  esac
done
echo "$@" > "$UNITS/.command"
# shellcheck disable=SC2016
setsid sh -c '
  "$@" & echo $! > "$UNITS/.pid"; wait
  while read -r name; do : > "$UNITS/$name"; done < "$UNITS/.restart"
  rm -f "$UNITS/mixed-gpu-lease.service"
' sh "$@" < /dev/null > "$UNITS/.log" 2>&1 &
while [ ! -s "$UNITS/.pid" ]; do sleep 0.05; done
"""


def install(folder: pathlib.Path) -> dict[str, str]:
    """Put the stand-ins into a folder; return the environment with them, whose UNITS is the folder of the units."""
    units, programs = folder / "units", folder / "bin"
    for directory in (units, programs):
        directory.mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("systemd-run", SYSTEMD_RUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "UNITS": str(units)}


def end(units: pathlib.Path) -> None:
    """End the lease's program, if one runs."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((units / ".pid").read_text()), signal.SIGKILL)
