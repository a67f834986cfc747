# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The steps of a revalidation with their arguments. Private to this collection. Pure functions only."""

from __future__ import annotations

import statistics
import typing as t

from .._base import fingerprints
from .._base.steps import Mapping, Step
from .._base.types import Json
from .._split import acceptance, engines
from . import acceptance_check, campaign_engines
from . import answers as answer_checks
from .observation import LOAD, PROBE, Observation

#: How long a job may wait for the lock of another measurement, beside its own limit.
_WAIT_SECONDS: t.Final = 3600
#: Seconds that a load takes of which the baseline does not say.
_USUAL_SECONDS: t.Final = 60.0
#: Seconds that answers to all texts take.
_TEXTS_SECONDS: t.Final = 60.0


def host(seen: Observation) -> Step:
    """Gather what is compared without touching a device."""
    settings = seen.settings
    arguments = {
        "deployment": settings.deployment,
        "llama_cpp": settings.llama_cpp,
        "exllama_root": settings.exllama_root,
        "state_dir": settings.state_dir,
    }
    return Step("host", "revalidation_info", arguments, "compare the host with the baseline", 5)


def server(seen: Observation, name: str = "server", wait_seconds: int = 0) -> Step:
    """Read where the server put the model; wait while it loads."""
    arguments = {**seen.family.server(), "deployment": dict(seen.entry), "wait_seconds": wait_seconds}
    return Step(name, "llama_server_info", arguments, "wait for the server" if wait_seconds else "read the server", 10)


def use(seen: Observation) -> Step:
    """Check whether the server or a card is in use."""
    settings = seen.settings
    arguments = {**seen.family.client(), "seconds": settings.busy_seconds}
    return Step("use", "llama_server_busy_info", arguments, "check whether the server is in use", 10)


def served(seen: Observation, again: bool = False) -> Step:
    """Measure completions of the server; nothing is stored, so each run asks anew."""
    tests = campaign_engines.AGAIN_TESTS if again else seen.settings.served_tests
    return seen.family.served("completion again" if again else "served", tests)


def drafted(seen: Observation) -> Step | None:
    """Count how many drafted tokens are right; None where the record does not draft, or others use the server."""
    settings, use = seen.settings, seen.result("use") or {}
    if use.get("busy") or not settings.text_tokens or not acceptance.comparable(seen.entry):
        return None
    arguments = {
        **seen.family.client(),
        "entry": dict(seen.entry),
        "texts": settings.texts,
        "generated_tokens": settings.text_tokens,
    }
    label = "count how many drafted tokens are right"
    return Step(acceptance_check.NAME, "draft_acceptance_info", arguments, label, _TEXTS_SECONDS, tolerated=True)


def before_loads(seen: Observation) -> list[Step]:
    """Return what is asked under the lease before the first load."""
    return seen.family.before_loads(seen.environment)


def probe_sizes(seen: Observation, probe: Mapping) -> Step:
    """Read the layer sizes of the probe model."""
    label = "read the layer sizes of the probe model"
    return Step("probe sizes", "gguf_info", {"path": probe["model_path"]}, label, 5, tolerated=True)


def answers(seen: Observation) -> Step | None:
    """Check the answers, or None where the last check still counts."""
    settings, host = seen.settings, seen.host
    today = answer_checks.subject(seen.configuration, seen.entry)
    tolerance, days = settings.answers_tolerance_percent, settings.answers_days
    if not settings.answers or engines.of(seen.entry["serving"]).family != "llama_cpp":
        return None
    if answer_checks.due(host["answers"], host["wrong_answers"], today, tolerance, seen.began_at, days) is None:
        return None
    options = answer_checks.Options(
        f"{settings.llama_cpp}/bin/llama-server", settings.state_dir, settings.answers_text_tokens,
        settings.answers_tokens, tolerance, settings.load_timeout_seconds,
    )  # fmt: skip
    return answer_checks.step(host, today, seen.environment, options)


def _measuring(seen: Observation) -> Json:
    """Return the arguments that every measurement has. Each revalidation is a campaign of its own."""
    settings = seen.settings
    listed = seen.result("devices") or {"devices": []}
    return {
        **seen.family.bench(),
        "devices": [device["device"] for device in listed["devices"]],
        "rpc_endpoints": seen.entry["rpc_endpoints"],
        "environment": seen.environment,
        "campaign": f"revalidation of {settings.host} {seen.began_at}",
        "state_dir": settings.measurements_dir,
        "timeout_seconds": settings.load_timeout_seconds,
    }


def probe(seen: Observation, recorded: Mapping, wanted: Mapping) -> Step:
    """Measure one device alone, as the tuning did."""
    arguments = {
        **_measuring(seen),
        "model_path": recorded["model_path"],
        "load": dict(wanted),
        "serving": recorded["serving"],
        "fingerprint": fingerprints.fingerprint({"probe of": seen.configuration}),
    }
    label = str(wanted["label"])
    return Step(f"{PROBE}{label}", "split_benchmark", arguments, label, 30, _limit(seen), tolerated=True)


def load(seen: Observation, wanted: Mapping) -> Step:
    """Measure one load of the recorded split."""
    arguments = {
        **_measuring(seen),
        "model_path": seen.entry["model"]["path"],
        "load": {**wanted, **seen.family.load()},
        "serving": seen.entry["serving"],
        "fingerprint": fingerprints.fingerprint(seen.configuration),
    }
    baseline = seen.host["baseline"]
    known = [one["wall_ms"] / 1000 for one in (baseline["loads"] if baseline else []) if one.get("wall_ms")]
    seconds = statistics.median(known) if known else _USUAL_SECONDS
    name, label = f"{LOAD}{wanted['load']}", str(wanted["label"])
    return Step(name, "split_benchmark", arguments, label, seconds, _limit(seen), tolerated=True)


def _limit(seen: Observation) -> int:
    return seen.settings.load_timeout_seconds + _WAIT_SECONDS
