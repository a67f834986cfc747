# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Filters of the report; their documentation is in files of their names."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

Json = t.Mapping[str, t.Any]
#: How an input ends that has other types, or fewer fields, than what it should be.
_DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def split_report(
    entry: Json,
    template: str,
    server: Json | None = None,
    gpus: Json | None = None,
    machine: Json | None = None,
    served: Json | None = None,
    expectations: t.Sequence[Json] | None = None,
    panels: t.Sequence[str] = ("decode", "prefill", "objective"),
    host: str = "",
    url: str = "",
    recorded: Json | None = None,
    connect: str = "",
) -> str:
    """Return the page of a recorded entry. Raises AnsibleFilterError for an entry or a template that cannot be read."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import page, view
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment

    try:
        entry = deployment.expand(entry)
        seen = view.Seen(server, gpus, machine, served, recorded)
        return page.render(entry, template, seen, expectations or (), panels, host, url, connect)
    except UserError as error:
        raise AnsibleFilterError(f"split_report: {error}.") from None
    except _DAMAGED as error:
        raise AnsibleFilterError(_no_entry("split_report", error)) from None


def split_summary(
    entry: Json,
    server: Json | None = None,
    served: Json | None = None,
) -> list[str]:
    """Return the summary of a recorded entry as lines. Raises AnsibleFilterError when the entry is no such entry."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import summary, view
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment

    try:
        entry = deployment.expand(entry)
        return summary.summary_lines(entry, served, view.Seen(server).devices, (server or {}).get("chats"))
    except _DAMAGED as error:
        raise AnsibleFilterError(_no_entry("split_summary", error)) from None


def split_closing(
    entry: Json, page: str, server: Json | None = None, served: Json | None = None, url: str = "", connect: str = ""
) -> list[str]:
    """Return the last lines of a run. Raises AnsibleFilterError when the entry is no entry of the record."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import closing, connecting
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment

    try:
        sentence = connecting.connection(server, url, "", connect)["sentence"]
        return closing.lines(deployment.expand(entry), served, sentence, page)
    except _DAMAGED as error:
        raise AnsibleFilterError(_no_entry("split_closing", error)) from None


def plan_page(plan: Json, template: str) -> str:
    """Return the page of a plan. Raises AnsibleFilterError for what is no plan, or a template that cannot be read."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import page, plan_view

    try:
        return page.filled(template, view=plan_view.view(plan))
    except UserError as error:
        raise AnsibleFilterError(f"plan_page: {error}.") from None
    except _DAMAGED as error:
        raise AnsibleFilterError(f"plan_page: the input is no result of the planner planning ({error}).") from None


def fleet_table(results: t.Mapping[str, Json]) -> dict[str, t.Any]:
    """Return the table over many hosts. Raises AnsibleFilterError for what are no results by host."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import fleet_table as fleet

    try:
        return fleet.table(results)
    except _DAMAGED:
        raise AnsibleFilterError("fleet_table: the input is no dict of results by host.") from None


def fleet_page(report: Json, template: str) -> str:
    """Return the page of a fleet. Raises AnsibleFilterError for what is none, or a template that cannot be read."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import fleet_table as fleet
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import page

    try:
        return page.filled(template, view=fleet.view(report))
    except UserError as error:
        raise AnsibleFilterError(f"fleet_page: {error}.") from None
    except _DAMAGED as error:
        raise AnsibleFilterError(f"fleet_page: the input is no report of fleet_table ({error}).") from None


def _no_entry(name: str, error: Exception) -> str:
    """Return what a malformed entry lacks, and the cure."""
    lacks = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return (
        f"{name}: the input is no entry of ansible_local.mixed_gpu.models ({lacks}); run split_tuning again to record"
        " an entry."
    )


class FilterModule:
    """Filters that write pages and summaries."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {
            "split_report": split_report, "split_summary": split_summary, "split_closing": split_closing,
            "plan_page": plan_page, "fleet_table": fleet_table, "fleet_page": fleet_page,
        }  # fmt: skip
