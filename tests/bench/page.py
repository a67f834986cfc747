"""The page of benchmarks: sections between markers, each written by its own command, so that none touches another's."""

from __future__ import annotations

import datetime
import math
import os
import pathlib
import platform
import re
import typing as t

TITLE = """# Benchmarks

Written by `make bench`, section by section: do not edit by hand. All of it ran without a GPU; what cards gave is in
[on_real_cards.md](on_real_cards.md).

| question | section |
|---|---|
| Is the chosen split the best of all that fit? | [live](#live) |
| How far from the best is a choice, and how many loads does it take? | [planners](#planners), [families of machines](#planner-families-of-machines), [experts in RAM](#planner-experts-in-ram), [earlier costs](#planner-with-the-costs-of-an-earlier-tuning), [speculation](#planner-speculation) |
| Is a slowdown noticed, and is a false alarm given? | [revalidation](#revalidation) |
| Is a hang noticed, and what does looking cost? | [faults](#faults), [watchdog](#watchdog) |
| Is the cost of a lender's network predicted? | [network](#network) |
| How fast are downloads and Ansible's tasks? | [downloads](#downloads), [task cost](#task-cost) |
"""  # noqa: E501

#: The sections in the order of the page.
SECTIONS = (
    "live", "site", "tasks", "planners", "families", "planes", "earlier", "earlier-models", "speculation",
    "revalidation", "downloads", "watchdog", "faults", "network",
)  # fmt: skip


def machine() -> str:
    """Return what this machine is: its cores and processor, and the Python that runs."""
    name = platform.processor() or platform.machine()
    try:
        cpus = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        models = (line.split(":", 1)[1].strip() for line in cpus.splitlines() if line.startswith("model name"))
        name = next(models, name)
    except OSError:
        pass
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


def today() -> str:
    """Return the date of today in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def percentile(values: t.Sequence[float], percent: float) -> float:
    """Return the smallest value that at least C(percent) of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def write_section(page: pathlib.Path, name: str, text: str) -> None:
    """Put C(text) into section C(name) of the page and leave the other sections as they are.

    A page without markers is none of ours and is replaced as a whole. Raises ValueError for an unknown section.
    """
    if name not in SECTIONS:
        raise ValueError(f"unknown section {name!r}: known are {', '.join(SECTIONS)}")
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    found = {
        match[1]: match[2].strip("\n")
        for match in re.finditer(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", before, re.DOTALL)
    }
    found[name] = text.strip("\n")
    parts = [f"<!-- begin {key} -->\n\n{found[key]}\n\n<!-- end {key} -->\n" for key in SECTIONS if key in found]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([TITLE, *parts]), encoding="utf-8")
