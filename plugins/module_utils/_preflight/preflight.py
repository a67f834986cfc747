# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole preflight of a host: checks, claims of guides, and their lines of text. Private. Pure functions only."""

from __future__ import annotations

import textwrap
import typing as t

from .._base.checks import check
from .._base.types import Json
from .._hardware import known_cards, pcie, power_budget
from . import card_checks, host_checks, model_checks

Check = dict[str, t.Any]

#: Ansible's own output breaks longer lines.
WIDTH: t.Final = 74
WIDEST_NAME: t.Final = 24
MIB: t.Final = 1 << 20
#: The report names the source alike.
CLAIMS_SOURCE: t.Final = "Rule of thumb in guides for an RTX 4090 and a 3090"
PEAK_KEYS: t.Final = ("peak_low_watts", "peak_high_watts")


def judge(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> Json:
    """Return {checks, claims, lines, problem} of one host.

    `lines` show both; `problem` is one sentence with everything that cannot work, and None where all can.

    `host` is what host.describe returns, with `gpus` (the fact mixed_gpu_gpus, or None where nothing could ask the
    driver), `engines` (other_engines.running), `recorded` (the host fact mixed_gpu, or None), `revalidation` and
    `upgrade` (each {needed, why, cure}).

    `wanted` holds port, memory_mib, disk ([{path, needed_mib}]), gpus_expected (UUIDs or parts of names),
    models (model_checks.read_models), psu_watts (0 where unknown), rest_of_machine_watts, power_limits_watts and
    locked_clocks_mhz (what is to be set, by UUID or end of the name), budgets_mib (of memory, by UUID or llama.cpp's
    name), and power_budget_policy (warn, fail or ignore). Raises KeyError for a missing key. It may hold
    slots_left_out, PCI addresses of cards that need no driver, and system,
    whose packages are tried on a host of another one.
    """
    found, claimed = checks(host, wanted), claims(host, wanted)
    errors = [f"{row['name']}: {row['detail']}; {row['cure']}." for row in found if is_error(row)]
    return {
        "checks": found,
        "claims": claimed,
        "lines": [*table(found), *claims_table(claimed)],
        "problem": " ".join(errors) or None,
    }


def is_error(row: t.Mapping[str, t.Any]) -> bool:
    """Return whether a check says that the host cannot work."""
    return not row["ok"] and row["severity"] == "error"


def checks(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """Return all checks of one host, in the order in which they are shown."""
    expected = wanted["gpus_expected"]
    known = model_checks.sizes(host, wanted["models"])
    disks = [model_checks.disk_wanted(want, wanted["models"], known) for want in wanted["disk"]]
    return [
        host_checks.operating_system(host["os"], wanted.get("system") or ""),
        host_checks.architecture(host["machine"]),
        host_checks.python(host["python_version"]),
        host_checks.root(host["uid"]),
        host_checks.systemd(host["init"]),
        *host_checks.kernel(host),
        *card_checks.machine(host, expected),
        *host_checks.secure_boot(host),
        host_checks.memory(host, wanted["memory_mib"]),
        *model_checks.memory(host, known),
        host_checks.swap(host),
        *model_checks.entries(wanted["models"], known),
        *host_checks.disks(list(zip(host["disks"], disks, strict=True))),
        *model_checks.slow_disk(host, wanted),
        *([host_checks.port(host["listeners"], wanted["port"])] if wanted["port"] else []),
        *card_checks.binding(host, expected),
        card_checks.expected_cards(host, expected),
        *card_checks.ages(host, wanted.get("slots_left_out") or ()),
        *pcie.links(host),
        *card_checks.resizable_bar(host),
        *card_checks.iommu(host),
        *card_checks.power(host, wanted),
        *card_checks.others_on_the_cards(host),
        *card_checks.budgets(host, wanted["budgets_mib"]),
        *card_checks.tensor_parallel(host),
        *_pending("revalidation", host["revalidation"]),
        *_pending("upgrade", host["upgrade"]),
    ]


def _pending(name: str, found: t.Mapping[str, t.Any]) -> list[Check]:
    """Return the warning about work that was left unfinished on the host, where there is any."""
    return [check(name, False, "warning", found["why"], found["cure"])] if found["needed"] else []


def claims(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Json]:
    """Return what guides say of such a box, beside what this one has: {name, claim, found, source}.

    Nothing is judged by a claim, and none was measured for this collection. Empty where no card is there or expected.
    """
    known = known_cards.of_host(host)
    if not known and not wanted["gpus_expected"]:
        return []
    budget = power_budget.budget(known, wanted["psu_watts"], wanted["rest_of_machine_watts"])
    disk = model_checks.disk_of(host, wanted)
    widths = [gpu.get("pcie_width") for gpu in known]
    medium = {"nvme": "NVMe", "ssd": "SSD", "disk": "spinning disk", None: "kind unknown"}
    rows = {
        "power supply": ("1300 W", f"{wanted['psu_watts']} W" if wanted["psu_watts"] else "not known"),
        "peaks": (
            "600 + 450 W at once",
            "{} to {} W, unverified".format(*(budget[key] - budget["rest_watts"] for key in PEAK_KEYS))
            if known and budget["peak_low_watts"] is not None else "not known",
        ),
        "memory": ("64 to 128 GB", f"{host['memory_total_mib'] * MIB / 1e9:.0f} GB"),
        "disk": (
            "1 TB NVMe",
            f"{disk['total_mib'] * MIB / 1e12:.1f} TB, {medium[disk['medium']]}" if disk else "not looked at",
        ),
        "PCIe": (
            "4.0 x8 for both is enough",
            ", ".join(f"x{width}" for width in widths if width) or "not known",
        ),
    }
    return [
        {"name": name, "claim": claim, "found": found, "source": CLAIMS_SOURCE} for name, (claim, found) in rows.items()
    ]


def claims_table(rows: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return the claims as lines of text."""
    if not rows:
        return []
    width = max(len(row["name"]) for row in rows)
    claim = max(len(row["claim"]) for row in rows)
    return [
        f"{rows[0]['source']}, and what is here:",
        *(f"     {row['name']:<{width}}  {row['claim']:<{claim}}  {row['found']}" for row in rows),
    ]


def table(found: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return the checks as lines of at most WIDTH columns: verdict, name, what was seen, and below that the cure.

    Only a word that is longer than its column is wider, such as the UUIDs of two cards in a row.
    """
    width = min(WIDEST_NAME, max((len(row["name"]) for row in found), default=0))
    lines = []
    for row in found:
        verdict = "ok" if row["ok"] else {"error": "FAIL", "warning": "warn"}.get(row["severity"], "note")
        text = row["detail"] if row["ok"] or row["cure"] is None else f"{row['detail']}; {row['cure']}"
        start, indent = f"{verdict:<5}{row['name']:<{width}}  ", " " * (width + 7)
        if len(row["name"]) > width:  # a deep path: the text begins below it
            lines.append(start.rstrip())
            start = indent
        lines += textwrap.wrap(
            text, width=WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
