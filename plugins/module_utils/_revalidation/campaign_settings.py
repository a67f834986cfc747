# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables of the role revalidate, checked and typed. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import variables
from .._base.types import Json


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field per variable, without C(revalidate_); roles/revalidate/meta/argument_specs.yml describes them."""

    #: Name of the host in the verdict.
    host: str
    deployment: str
    #: Lenders of the deployment (split_record), and what gpu_facts returned in a loop over their names.
    lenders: dict[str, t.Any]
    looks: list[dict[str, t.Any]]
    measure: str
    accept: list[str]
    tolerance_percent: float
    ignore_contention: bool
    min_loads: int
    max_loads: int
    reserve_mib: int
    answers: bool
    answers_days: int
    answers_tokens: int
    answers_text_tokens: int
    answers_tolerance_percent: float
    replace_baseline: bool
    for_baseline: bool
    fingerprint_extra: dict[str, t.Any]
    llama_cpp: str
    server_url: str
    api_key_file: str
    exllama_root: str
    exllama_url: str
    exllama_api_key_file: str
    served_tests: list[dict[str, t.Any]]
    texts: list[dict[str, t.Any]]
    text_tokens: int
    busy_seconds: float
    state_dir: str
    conflicting_units: list[str]
    load_timeout_seconds: int
    lease_seconds: int
    lease_wait_seconds: int

    @property
    def measurements_dir(self) -> str:
        """The host's store."""
        return f"{self.state_dir}/measurements"

    @property
    def limits(self) -> Json:
        """How much to measure, as next_load.step takes it."""
        return {
            "tolerance_percent": self.tolerance_percent,
            "least_loads": self.min_loads,
            "most_loads": self.max_loads,
            "baseline": self.replace_baseline or self.for_baseline,
        }

    @property
    def judging(self) -> Json:
        """What is good enough, as verdict.judge takes it."""
        return {
            "tolerance_percent": self.tolerance_percent,
            "reserve_mib": self.reserve_mib,
            "accept": self.accept,
        }


def read(given: t.Mapping[str, t.Any]) -> Settings:
    """Return the settings in variables of the role, named with C(revalidate_); others are ignored.

    Raises ValueError that names the variable, its value and what it must be.
    """
    settings = variables.read(Settings, given, "revalidate")
    measure = settings.measure.lower()
    if measure not in ("auto", "true", "false"):
        raise ValueError(f"revalidate_measure is {settings.measure!r}: it must be auto, true or false")
    return dataclasses.replace(settings, measure=measure)
