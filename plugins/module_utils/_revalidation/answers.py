# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When the answers of a placement are checked, and what the result means. Private to this collection. Pure functions.

The module answer_check compares the placement with each device alone (_llama_cpp/answer_check.py).
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import fingerprints, json_file, json_state, unit_end
from .._base.errors import UserError
from .._base.fields import NUMBER, choice
from .._base.steps import Step
from .._base.types import Json, Mapping
from . import checks

SCHEMA: t.Final = 1
#: What a status means for a revalidation. A host that has nobody to compare with is as good as it can be.
VERDICTS: t.Final = {"ok": "ok", "wrong": "broken", "unknown": "inconclusive", "incomparable": "ok"}
#: Name of the step.
STEP: t.Final = "answers"
#: How long the job may wait for the lock of another measurement, beside its own limit.
_WAIT_SECONDS: t.Final = 3600


_SHAPE: t.Final = {
    "status": str, "sentence": str, "checked_at": str, "configuration": {}, "tolerance_percent": NUMBER,
}  # fmt: skip


def _check(data: Json) -> None:
    choice("its status", data["status"], VERDICTS)
    try:
        json_file.utc_time(data["checked_at"])
    except ValueError as exc:
        raise UserError(f"its checked_at is {data['checked_at']!r:.60}, which is no time") from exc


FORM: t.Final = json_state.Form(SCHEMA, "run site again, which checks the answers", _check, _SHAPE)


def path(state_dir: str, deployment: str) -> str:
    """Return the file of a deployment's newest check."""
    return f"{state_dir}/answers/{deployment}.json"


def subject(configuration: Mapping, entry: Mapping) -> Json:
    """Return everything that can change the answers: baselines.configuration, and what the inventory added.

    Drafts only guess, and are left out of the check. The role llama_server, which checks before a start, does not look
    at lenders: with them each start after a revalidation would check again.
    """
    extra = entry["fingerprint_parts"].get("extra", {})
    parts = {name: value for name, value in configuration.items() if name not in ("speculation", "lenders")}
    return {**parts, "experts_in_ram": entry.get("experts_in_ram"), "extra": extra}


def of_today(record: Mapping | None, today: Mapping) -> bool:
    """Return whether a check was made in the configuration that C(today) describes."""
    return record is not None and fingerprints.fingerprint(record["configuration"]) == fingerprints.fingerprint(today)


def due(
    record: Mapping | None, marked: bool, today: Mapping, tolerance_percent: float, now: str, days: int | None = None
) -> str | None:
    """Return why the answers have to be checked, as a clause, or None.

    C(marked): whether unit_end.WRONG_ANSWERS is there. C(days): a check that is older than so many days is made again;
    None where it counts as long as nothing changes.
    """
    if record is None:
        return "the answers of this placement were not checked yet"
    if marked or record["status"] == "wrong":
        return "the last check found wrong answers"
    if record["status"] == "unknown":
        return "the last check could compare nothing"
    if not of_today(record, today):
        return "build, driver, host or placement changed since the answers were checked"
    if record["tolerance_percent"] != tolerance_percent:
        return f"the answers were checked with a tolerance of {record['tolerance_percent']:g} %"
    if days is not None and _days(record["checked_at"], now) >= days:
        return f"the answers were checked {_days(record['checked_at'], now)} days ago"
    return None


def _days(before: str, now: str) -> int:
    # the clock may have been wrong in between
    return abs(json_file.utc_time(now) - json_file.utc_time(before)).days


def check(observed: Mapping) -> Json | None:
    """Does the placement compute what each device alone computes? None where no check speaks of this host as it is."""
    record = observed["answers"]
    if record is None or not of_today(record, subject(observed["configuration"], observed["entry"])):
        return None
    return checks.check("answers", VERDICTS[record["status"]], record["sentence"])


# --- the step --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """What a check is made with; roles/llama_server/meta/argument_specs.yml describes the rest."""

    llama_server: str
    state_dir: str
    text_tokens: int
    generated_tokens: int
    tolerance_percent: float
    load_timeout_seconds: int


def step(host: Mapping, today: Mapping, environment: Mapping, options: Options) -> Step:
    """Return the step that checks the answers. C(host) is what revalidation_info returned, C(today) as of subject."""
    entry = host["entry"]
    layers = [place["layers"] for place in entry["placement"]]
    arguments = {
        "llama_server": options.llama_server,
        "deployment": host["deployment"],
        "entry": dict(entry),
        "load": {"label": "answers of the placement", "split_mode": entry["split_mode"], "layers": layers, "load": 1},
        "configuration": dict(today),
        "serving": entry["serving"],
        "rpc_endpoints": entry["rpc_endpoints"],
        "environment": dict(environment),
        "campaign": "answers",
        "fingerprint": fingerprints.fingerprint(today),
        "text_tokens": options.text_tokens,
        "generated_tokens": options.generated_tokens,
        "tolerance_percent": options.tolerance_percent,
        "answers_dir": f"{options.state_dir}/answers",
        "wrong_file": unit_end.WRONG_ANSWERS,
        "state_dir": f"{options.state_dir}/measurements",
        "load_timeout_seconds": options.load_timeout_seconds,
    }
    seconds = 60.0 * (len(entry["devices"]) + 1)
    limit = options.load_timeout_seconds * (len(entry["devices"]) + 2) + _WAIT_SECONDS
    label = "compare the placement with each device alone"
    return Step(STEP, "answer_check", arguments, label, seconds, limit, tolerated=True)
