# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""docs/support.md says what the code does: what is refused there is refused here, and nothing else."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import cuda_compat, driver_plan, driver_systems
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import host_checks

ROOT = pathlib.Path(__file__).parents[3]
PAGE = (ROOT / "docs/support.md").read_text(encoding="utf-8")


def table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table between its marks, by the names of its columns."""
    shown = PAGE.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.strip().splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def refuses(call: t.Callable[..., t.Any], *arguments: t.Any) -> bool:
    try:
        call(*arguments)
    except UserError:
        return True
    return False


@pytest.mark.parametrize("name", ["systems", "drivers", "cuda", "cards", "llama.cpp"])
def test_every_status_is_one_of_three(name: str) -> None:
    said = [value for row in table(name) for column, value in row.items() if column == "status" or ", " in column]
    assert said and set(said) <= {"tested", "expected", "refused"}


def test_systems_are_what_the_preflight_says() -> None:
    rows = table("systems")
    for row in rows:
        name, _space, version = row["system"].rpartition(" ")
        host = {"id": name.lower(), "version_id": version, "pretty_name": row["system"]}
        check = host_checks.operating_system(host, "")
        assert row["preflight"] == ("ok" if check["ok"] else check["severity"]), row
        assert (row["status"] == "refused") == (row["system"] not in driver_systems.SYSTEMS), row
        assert row["status"] != "tested" or check["ok"]
    assert {row["system"] for row in rows} >= set(driver_systems.SYSTEMS) == set(cuda_compat.OFFERS)


def test_drivers_are_refused_where_the_plan_refuses_them() -> None:
    rows = table("drivers")
    branches = [branch for row in rows for branch in row["branch"].split(", ")]
    assert sorted(branches) == sorted(driver_systems.BRANCHES)
    columns = [column for column in rows[0] if column != "branch"]
    assert len(columns) == sum(len(sources) for sources in driver_systems.SYSTEMS.values())
    for row in rows:
        for branch in row["branch"].split(", "):
            for column in columns:
                system, source = column.split(", ")
                request: t.Any = {"branch": branch, "version": "", "source": source}
                sources = driver_systems.SYSTEMS[system]
                refused = refuses(driver_plan._check_branch, system, sources, request)
                assert (row[column] == "refused") == refused, (branch, column)


def test_toolkits_are_refused_where_the_choice_refuses_them() -> None:
    rows, compilers = table("cuda"), {row["system"]: row for row in table("systems")}
    for row in rows:
        known = compilers[row["system"]]
        host: t.Any = {"system": row["system"], "gcc": int(known["gcc"]), "glibc": known["glibc"], "driver": ""}
        refused = refuses(cuda_compat.choose, row["source"], row["release"], "", host)
        assert (row["status"] == "refused") == refused, row
    offered = {
        (system, source, release)
        for system, sources in cuda_compat.OFFERS.items()
        for source, releases in sources.items()
        for release in releases
    }
    shown = {(row["system"], row["source"], row["release"]) for row in rows if row["status"] != "refused"}
    assert shown == offered


def test_cards_are_refused_where_no_driver_is_maintained() -> None:
    rows = table("cards")
    pairs = [(row["generation"], number) for row in rows for number in row["compute capability"].split(", ")]
    assert sorted(pairs) == sorted({(kind.name, number) for _first, _last, kind, number in card_ages._RANGES})
    generations = {kind.name: (kind, number) for _first, _last, kind, number in card_ages._RANGES}
    seen = (ROOT / "docs/on_real_cards.md").read_text(encoding="utf-8")
    for row in rows:
        card = card_ages.Card("0000:01:00.0", row["for example"], *generations[row["generation"]])
        assert (row["status"] == "refused") == bool(card_ages.needs([card]).problem), row
        if row["status"] == "tested":
            assert all(name in seen for name in row["for example"].split(", ")), row


def test_the_tested_build_is_the_pinned_one() -> None:
    pin = yaml.safe_load((ROOT / "roles/llama_cpp/defaults/main.yml").read_text(encoding="utf-8"))
    (tested,) = [row["build"] for row in table("llama.cpp") if row["status"] == "tested"]
    assert tested == (
        f"b{pin['llama_cpp_sdist_build_number']}, commit {pin['llama_cpp_sdist_build_commit']}, "
        f"of llama-cpp-python {pin['llama_cpp_sdist_version']}"
    )
