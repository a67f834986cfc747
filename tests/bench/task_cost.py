"""task_cost.py [--before COMMIT] PAGE: what a task costs with a filter of the collection and without.

Ansible looks filters up in every fork, and a look-up imports every filter file of the collection. A play of no-op tasks
is run with a filter in each task and without, in turns, for this checkout and for the commit of before.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

import page

ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
TASKS: t.Final = 20
TURNS: t.Final = 3
WITHOUT: t.Final = "[45, 36] | join(',')"
WITH: t.Final = "[45, 36] | homelab.mixed_gpu.tensor_split('llama_server')"


class Cost(t.NamedTuple):
    """Seconds of one task: on the clock, and of processors."""

    wall: float
    cpu: float


def write_play(path: pathlib.Path, expression: str, tasks: int) -> None:
    """Write a play of no-op tasks on localhost, each with this expression."""
    task = f'    - {{name: Show a split, ansible.builtin.debug: {{msg: "{{{{ {expression} }}}}"}}}}\n'
    head = "- name: Show splits\n  hosts: localhost\n  gather_facts: false\n  tasks:\n"
    path.write_text(head + tasks * task, encoding="utf-8")


def run(play: pathlib.Path, collections: pathlib.Path) -> Cost:
    """Run a play to its end; CalledProcessError where it fails."""
    environment = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_LOCALHOST_WARNING": "0"}
    environment.pop("ANSIBLE_CONFIG", None)
    before, began = os.times(), time.monotonic()
    subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", str(play)],
        cwd=play.parent, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu)


def measure(collections: t.Sequence[pathlib.Path], tasks: int, turns: int) -> list[tuple[Cost, Cost]]:
    """Return, per folder of collections, the median cost of a task without a filter and with one.

    The start of ansible-playbook is left out: a play of one task is subtracted. One turn measures everything once.
    """
    taken: dict[tuple[int, str, int], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder:
        play = pathlib.Path(folder, "play.yml")
        for _turn in range(turns):
            for number, path in enumerate(collections):
                for expression in (WITHOUT, WITH):
                    for count in (1, tasks + 1):
                        write_play(play, expression, count)
                        taken.setdefault((number, expression, count), []).append(run(play, path))

    def cost(number: int, expression: str) -> Cost:
        few, many = taken[number, expression, 1], taken[number, expression, tasks + 1]
        pairs = list(zip(few, many, strict=True))
        return Cost(*(statistics.median((b[kind] - a[kind]) / tasks for a, b in pairs) for kind in (0, 1)))

    return [(cost(number, WITHOUT), cost(number, WITH)) for number in range(len(collections))]


def text_of(names: t.Sequence[str], costs: t.Sequence[tuple[Cost, Cost]]) -> str:
    """Return the section."""
    lines = [
        "## Task cost", "",
        "Written by `make bench-tasks`. Ansible looks a filter up in every fork, and the look-up imports every filter",
        f"file of the collection. Seconds per no-op task, median of {TURNS} turns over {TASKS} tasks; in parentheses"
        " the seconds of processors. The bar: a filter adds less than 0.1 s.", "",
        f"Measured {page.today()} on {page.machine()}.", "",
        "| | without a filter | with a filter | the filter adds |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, (without, with_filter) in zip(names, costs, strict=True):
        added = Cost(*(b - a for a, b in zip(without, with_filter, strict=True)))
        cells = [f"{cost.wall:.2f} s ({cost.cpu:.2f} s)" for cost in (without, with_filter, added)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure this checkout, and that of before where its collections folder is given; write the section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--before", nargs=2, metavar=("COMMIT", "COLLECTIONS"))
    options = parser.parse_args()
    names, paths = ["this checkout"], [ROOT / ".venv/collections"]
    if options.before:
        names, paths = [f"before (`{options.before[0]}`)", *names], [pathlib.Path(options.before[1]), *paths]
    text = text_of(names, measure(paths, TASKS, TURNS))
    page.write_section(options.page, "tasks", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
