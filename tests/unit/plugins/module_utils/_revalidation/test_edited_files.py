# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A record or a baseline that somebody edited is refused in one sentence, or does for all that read it."""

from __future__ import annotations

import contextlib
import copy
import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server, served_store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, fact_record, kept_loads
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import watchdog_plan
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    ENTRY,
    baseline,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import (
    DRAFT,
    Host,
    counted,
    play,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._split.test_fallbacks import (
    SETTINGS,
    tuning,
)

Json = dict[str, t.Any]
SERVING = {"batch_size": 2048, "micro_batch_size": 512}


def edited(data: t.Any) -> t.Iterator[tuple[str, t.Any]]:
    """Yield (where, a copy with another value there, or none), for each field below; of a list for its first item."""
    items = list(data.items() if isinstance(data, dict) else enumerate(data[:1]))
    for key, value in items:
        for other in (None, "x", []):
            changed = copy.copy(data)
            changed[key] = other
            yield f"{key}: {other}", changed
        if isinstance(data, dict):
            yield f"{key} is not there", {name: value for name, value in items if name != key}
        if isinstance(value, (dict, list)):
            for where, inner in edited(value):
                changed = copy.copy(data)
                changed[key] = inner
                yield f"{key}.{where}", changed


def crashes(data: Json, form: t.Any, read: t.Callable[[Json], t.Any]) -> list[str]:
    """Return the edits that the form takes, and with which a reader fails otherwise than with a sentence."""
    found = []
    for where, changed in edited(data):
        try:
            read(form.data(json.dumps(changed)))
        except UserError:
            pass
        except Exception as error:
            found.append(f"{where}: {error!r}")
    return found


@pytest.mark.parametrize("kind", ["plain", "drafting"])
def test_an_edited_baseline(kind: str) -> None:
    speculation = {} if kind == "plain" else {"speculation": DRAFT}
    entry = {**ENTRY, **speculation}
    whole = baseline(acceptance=counted(360) if speculation else None)
    whole["configuration"] |= speculation

    class Edited(Host):
        def _revalidation_info(self, step: t.Any) -> Json:
            return {**super()._revalidation_info(step), "baseline": self.known}

    def read(known: Json) -> None:
        host = Edited(entry=entry)
        host.known = known
        play(host)
        watchdog_plan.plan("auto", {**ENTRY, "serving": SERVING}, known["loads"], 60)
        kept_loads.superfluous([], fact_record.empty(), [known], 3)

    assert crashes(whole, baselines.FORM, read) == []


@pytest.mark.parametrize("kind", ["plain", "drafting"])
def test_an_edited_record_is_revalidated(kind: str) -> None:
    entry = {**ENTRY, **({} if kind == "plain" else {"speculation": DRAFT})}
    record = {"schema": fact_record.SCHEMA, "active": "d", "models": {"d": entry}}
    assert crashes(record, fact_record.FORM, lambda known: play(Host(entry=known["models"]["d"]))) == []


def test_an_edited_record_with_lenders_is_served_and_watched() -> None:
    served = {"kind": "draft-simple", "draft": "small", "device": "GPU-3090", "n_max": 4, "path": "/d.gguf"}
    draft = {"served": {**served, "cache_type_k": "f16", "cache_type_v": "f16"}}
    entry = {**deployment.build(tuning(speculation=draft)), "recorded_at": "2026-11-20T10:00:00Z"}
    record = {"schema": fact_record.SCHEMA, "active": "d", "models": {"d": entry}}

    def read(known: Json) -> None:
        entry = known["models"]["d"]
        fact_record.find(known, "/fact")
        with contextlib.suppress(KeyError):  # of which the module makes a sentence
            watchdog_plan.plan("auto", entry, [], 60)
        watchdog_plan.lender_placements(entry)
        served_store.configuration(entry)
        kept_loads.superfluous([], known, [], 3)
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of which the filter makes a sentence
            llama_server.command(entry, SETTINGS)

    assert crashes(record, fact_record.FORM, read) == []
