# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the done steps of a revalidation say of the host. Private to this collection. Pure functions only.

The names of the steps are those of campaign_steps.py; verdict.py describes C(observed).
"""

from __future__ import annotations

import functools
import typing as t

from .._base.steps import Done, Mapping, result_of
from .._base.types import Json
from .._measuring import contention
from .._planner import probe_stage
from .._split import allreduce, fact_record, lent_devices
from . import acceptance_check, answers, baselines, campaign_engines
from .campaign_settings import Settings

#: First words of the names of the steps that measure a device alone, and the recorded split.
PROBE: t.Final = "probe of "
LOAD: t.Final = "load "
_FINE: t.Final = "real completions went through all layers"


class Observation:
    """One moment of a revalidation. Each property needs the steps that it is made of."""

    def __init__(self, settings: Settings, done: t.Sequence[Done]) -> None:
        self.settings = settings
        self.done = done

    def result(self, name: str) -> Mapping | None:
        """Return what a step returned, or None while it was not done."""
        return result_of(self.done, name)

    @property
    def host(self) -> Mapping:
        """What revalidation_info returned."""
        found = self.result("host")
        if found is None:
            raise ValueError("the host was not looked at")
        return found

    @property
    def entry(self) -> Mapping:
        """The recorded entry."""
        return t.cast(Mapping, self.host["entry"])

    @property
    def baseline(self) -> Mapping | None:
        """The baseline, of whose loads those count beside which nothing else computed."""
        found = self.host["baseline"]
        if found is None:
            return None
        # other programs change times and no answer
        told = {**found, "all_loads": found["loads"]}
        return told if self.settings.ignore_contention else {**told, "loads": contention.calm(found["loads"])}

    @property
    def began_at(self) -> str:
        """When the host was looked at."""
        return self.done[0].at

    @functools.cached_property
    def configuration(self) -> Json:
        """Everything that can move the speed, as it is today."""
        host = self.host
        entry = allreduce.with_seen(self.entry, self.added_up)
        today = baselines.configuration(
            entry, host["build"], host["gpus"], host["host"], host["versions"], self.lenders
        )
        return {**today, "model_sha256": host["model"]["sha256"]}

    @property
    def lenders(self) -> Json:
        """What can move the speed of hosts that lend devices, by name."""
        return lent_devices.configuration(self.settings.lenders, self._looks.gpus)

    @property
    def _looks(self) -> lent_devices.Looks:
        return lent_devices.looks(self.settings.looks)

    @property
    def added_up(self) -> Mapping | None:
        """What cards that share layers add up with, as the server says; None where that is what was recorded."""
        served = self.result("server again") or self.result("server") or {}
        seen = (served.get("server") or {}).get("allreduce")
        recorded = allreduce.recorded(self.entry)
        return None if not seen or recorded is None or allreduce.same(recorded, seen) else seen

    @property
    def environment(self) -> Json:
        """The environment of everything that measures: the recorded one, and what the inventory added then."""
        added = self.entry["fingerprint_parts"].get("environment", {})
        return {**self.entry["environment"], **self.family.environment(), **added}

    @property
    def family(self) -> campaign_engines.Family:
        """What the recorded engine does in its own way."""
        return campaign_engines.of(self)

    # --- measurements ------------------------------------------------------------------------------------------------

    @property
    def loads(self) -> list[Json]:
        """The loads of the recorded split, in their order."""
        return [
            {**item.result["load"], "contention": self._counted(item.result["load"].get("contention"))}
            for item in self.done
            if item.step.name.startswith(LOAD) and not item.result.get("failed")
        ]

    def _counted(self, seen: Json | None) -> Json | None:
        """What else computed, None where it is not to count."""
        return None if self.settings.ignore_contention else seen

    @property
    def failure(self) -> str | None:
        """What ended measuring, or None: what could not be listed, checked or measured."""
        for item in self.done:
            if item.result.get("failed") and _ends_measuring(item.step.name):
                return str(item.result.get("msg") or f"{item.step.label} failed")
        return None

    @property
    def probe_failed(self) -> bool:
        """Whether the device probe could not be repeated; the verdict lacks the explanation then, and nothing else."""
        return any(
            item.result.get("failed") and (item.step.name == "probe sizes" or item.step.name.startswith(PROBE))
            for item in self.done
        )

    @property
    def recorded_probe(self) -> Mapping | None:
        """The recorded device probe where it says how it was made, else None."""
        return fact_record.repeatable_probe(self.entry)

    @property
    def probe_contention(self) -> list[Json | None]:
        """What else computed beside each load of the device probe."""
        return [self._counted(load.get("contention")) for load in self._probe_loads]

    @property
    def _probe_loads(self) -> list[Json]:
        return [item.result["load"] for item in self.done if item.step.name.startswith(PROBE) and "load" in item.result]

    @functools.cached_property
    def device_probe(self) -> Json | None:
        """The devices, ranked by the probe of today; None where it was not or not wholly repeated."""
        sizes, listed = self.result("probe sizes"), self.result("devices")
        measured = self._probe_loads
        if self.probe_failed or sizes is None or listed is None or not measured:
            return None
        return probe_stage.assess(
            measured, listed["devices"], sizes["model"], self.settings.reserve_mib, self.host["gpus"].get("gpus", [])
        )

    @property
    def answers(self) -> Mapping | None:
        """The newest check of the answers: that of today, or the recorded one."""
        today = self.result(answers.STEP)
        found = today.get("answers") if today is not None else self.host["answers"]
        return t.cast("Mapping | None", found)

    @property
    def wrong_answers(self) -> bool:
        """Whether the check of today found wrong answers."""
        found = (self.result(answers.STEP) or {}).get("answers")
        return found is not None and found["status"] == "wrong"

    # --- the whole ---------------------------------------------------------------------------------------------------

    def _completion(self, answer: Mapping | None) -> Json | None:
        if answer is None:
            return None
        fine = "tests" in answer
        return {"ok": fine, "detail": _FINE if fine else str(answer.get("msg") or "no answer")}

    @property
    def observed(self) -> Json:
        """What the verdict rests on (verdict.py). The restarted server counts where it was looked at again."""
        host, served, use = self.host, self.result("served"), self.result("use") or {}
        again = self.result("server again")
        answer = self.result("completion again") if again is not None else served
        return {
            "at": self.began_at,
            "host": self.settings.host,
            "deployment": host["deployment"],
            "entry": host["entry"],
            "baseline": self.baseline,
            "configuration": self.configuration,
            "gpus": host["gpus"],
            "server": again if again is not None else self.result("server"),
            "completion": self._completion(answer),
            "served": served.get("tests") if served is not None else None,
            "served_answer": (answer or {}).get("answer"),
            "acceptance": (self.result(acceptance_check.NAME) or {}).get("acceptance"),
            "busy": {"busy": bool(use.get("busy")), "why": str(use.get("why", ""))},
            "model": host["model"],
            "loads": self.loads,
            "device_probe": self.device_probe,
            "contention": {"served": self._counted((served or {}).get("contention")), "probe": self.probe_contention},
            "answers": self.answers,
            "links": (self.result("links") or {}).get("links") or {},
            "unseen_lenders": self._looks.unseen,
            "failure": self.failure,
        }


def _ends_measuring(name: str) -> bool:
    return name in ("devices", "weigh", answers.STEP) or name.startswith(LOAD)
