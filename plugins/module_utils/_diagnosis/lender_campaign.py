# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The campaign of the role diagnose, where devices of a deployment are lent. Private to this collection. Pure.

    (the box was diagnosed) -> (lease) links -> (no lease) server again -> the diagnosis with the lenders

An RPC server has one client at a time, so the server has to be stopped while a link is measured: only where it is
slower than recorded, or as asked for.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import steps, variables
from .._base.types import Json, Mapping
from .._split import engines, lent_devices, link_changes
from . import diagnosis, lender_findings, lines

_CONFLICTS: t.Final = list(dict.fromkeys(engine.unit for engine in engines.TABLE.values()))
#: The measurement takes seconds; the lease ends at the latest then.
_LEASE_SECONDS: t.Final = 1800


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field per variable, without C(diagnose_); those of the role in roles/diagnose/meta/argument_specs.yml."""

    #: What split_record, llama_server_info and llama_server_diagnosis returned; for the lenders, what the start of
    #: gpu_facts returned and what became of it.
    recorded: dict[str, t.Any]
    server: dict[str, t.Any]
    diagnosed: dict[str, t.Any]
    watches: list[dict[str, t.Any]]
    looks: list[dict[str, t.Any]]
    links: str
    tolerance_percent: float
    server_url: str
    state_dir: str
    load_timeout_seconds: int
    lease_wait_seconds: int


def planner(settings: Mapping) -> Diagnosis:
    """Return the planner for variables of the role. Raises ValueError naming the variable that is wrong."""
    read = variables.read(Settings, settings, "diagnose")
    links = read.links.lower()
    if links not in ("auto", "true", "false"):
        raise ValueError(f"diagnose_links is {read.links!r}: it must be auto, true or false")
    return Diagnosis(dataclasses.replace(read, links=links))


class Diagnosis:
    """The planner of one box with lenders."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def _entry(self) -> Mapping:
        return t.cast(Mapping, self.settings.recorded["entry"])

    def plan(self, done: t.Sequence[steps.Done]) -> steps.Plan:
        """Return what comes next."""
        wanted, why = self._wish()
        links, measured = link_changes.step(self._entry), steps.result_of(done, "links")
        if links is None or not wanted:
            return self._judged(None, self.settings.server, why)
        if measured is None:
            return steps.Plan((links,), why, self._lease)
        again = steps.result_of(done, "server again")
        if again is None:
            return steps.Plan((self._server(),), release=True)
        return self._judged(measured, again, why)

    def predict(self, done: t.Sequence[steps.Done]) -> steps.Plan:
        """Return the diagnosis without a measurement."""
        del done
        return self._judged(None, self.settings.server, "The links to the lenders are not measured in check mode.")

    def line(self, done: steps.Done) -> str:
        """Return nothing: the diagnosis shows the links."""
        del done
        return ""

    def _wish(self) -> tuple[bool, str]:
        """Return whether to measure the links, and a sentence about it."""
        judged, asked = self.settings.diagnosed["diagnosis"], self.settings.links
        untouched = "The links to the lenders were not measured"
        again = "-e diagnose_links=true measures them, and stops the server for one load of the model"
        if not link_changes.recorded(self._entry):
            return False, f"{untouched}: the record has none to compare with; a retune records them."
        if asked == "false":
            return False, f"{untouched}: that was not asked for (diagnose_links)."
        if self.settings.server["state"] != "ready":
            return False, f"{untouched}: the server does not run."
        if (self.settings.server.get("without_lenders") or {}).get("absent"):
            return False, f"{untouched}: the server does without a lender."
        if judged["busy"]:
            return False, f"{untouched}: the server is in use."
        if asked == "true":
            return True, "The server is stopped to measure the links to the lenders, as asked for."
        slower = [phase for phase in judged["phases"] if self._slower(phase)]
        if not slower:
            return False, f"{untouched}, since nothing is slower than recorded: {again}."
        said = " and ".join(f"{phase['kind']} takes {phase['change_percent']:.0f} % more time" for phase in slower)
        return True, f"{said}: the server is stopped to measure the links to the lenders."

    def _slower(self, phase: Mapping) -> bool:
        """Return whether a phase is slower than recorded, also where that may be noise: a link is measured for sure."""
        more = phase["change_percent"]
        return more is not None and more > self.settings.tolerance_percent

    @property
    def _lease(self) -> steps.Lease:
        options = {
            "conflicts": _CONFLICTS, "max_seconds": _LEASE_SECONDS, "wait_seconds": self.settings.lease_wait_seconds,
            "lock_file": f"{self.settings.state_dir}/measurements/.lock",
        }  # fmt: skip
        return steps.Lease("diagnosis of", options)

    def _server(self) -> steps.Step:
        arguments = {
            "url": self.settings.server_url, "deployment": dict(self._entry),
            "wait_seconds": self.settings.load_timeout_seconds,
        }  # fmt: skip
        return steps.Step("server again", "llama_server_info", arguments, "wait for the server", 30)

    def _judged(self, measured: Mapping | None, server: Mapping, why: str) -> steps.Plan:
        judged = self.settings.diagnosed["diagnosis"]
        unreached = [one for one in self.settings.watches if "ansible_job_id" not in one]
        looks = lent_devices.looks([*unreached, *self.settings.looks])
        recorded = self.settings.recorded["lenders"]
        group = lender_findings.Group(recorded, judged["lenders_before"], looks, measured, why)
        told: Json = lender_findings.added(judged, self._entry, group, self.settings.tolerance_percent)
        failure = diagnosis.failure(dict(server))
        return steps.Plan(result={"told": {"diagnosis": told, "failure": failure, "lines": lines.table(told)}})
