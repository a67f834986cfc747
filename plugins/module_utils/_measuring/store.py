# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files that hold measured loads: their keys, names and form. Private to this collection. Pure functions only.

docs/data_formats.md describes the dicts.
"""

from __future__ import annotations

import typing as t

from .._base import fields, fingerprints, json_state
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import outcome, types
from .types import Load

SCHEMA: t.Final = 1
#: What tells the tests of one load apart.
_SHAPE: t.Final = ("kind", "n_prompt", "n_gen", "n_depth", "micro_batch_size", "threads")
FORM: t.Final = json_state.Form(SCHEMA, "run the play again: the load is measured again")


def load_key(fingerprint: str, campaign: str, load: Mapping) -> Json:
    """Return the key of one load, as docs/data_formats.md names it."""
    key = {
        "fingerprint": fingerprint,
        "campaign": campaign,
        "split_mode": load["split_mode"],
        "layers": list(load["layers"]),
        "load": load["load"],
    }
    # only where they say something, so that older loads keep their keys
    names = ("environment", "reference", "micro_batch_size", "experts_in_ram", "speculation")
    more = {name: load[name] for name in names if load.get(name)}
    return {**key, **more}


def file_name(key: Mapping) -> str:
    """Return the name of the file that stores the load with this key."""
    return f"{fingerprints.fingerprint(key)}.json"


def stored_form(key: Mapping, load: Mapping, build: str | None, command: t.Sequence[str],
                warnings: t.Sequence[str]) -> Json:
    """Return what is written to the store for a measured load."""
    return {
        "schema": SCHEMA,
        "key": dict(key),
        "load": dict(load),
        "llama_cpp_build": build,
        "command": list(command),
        "warnings": list(warnings),
    }


def read_stored(text: str, key: Mapping) -> Load:
    """Return the load in a stored file, or raise UserError when the file is damaged or belongs to something else."""
    data = FORM.data(text)
    if data.get("key") != dict(key):
        raise UserError("it belongs to another load")
    load: t.Any = data.get("load")
    fields.check_shape("load", load, {"status": str, "results": [types.RESULT]})
    fields.choice("load.status", load["status"], (*outcome.STATUSES, *outcome.TRIAL_STATUSES))
    if load["status"] == "ok" and not load["results"]:
        raise UserError("it holds a load that is ok and has no results")
    return t.cast(Load, load)


def reusable(stored: Load, tests: t.Sequence[Mapping]) -> bool:
    """Return whether a stored load answers these tests, so that it need not be measured again."""
    if stored["status"] not in outcome.REUSABLE:
        return False
    if stored["status"] != "ok":
        return True

    def shape(entry: Mapping) -> tuple[t.Any, ...]:
        return tuple(entry.get(field) for field in _SHAPE)

    return {shape(test) for test in tests} <= {shape(result) for result in stored["results"]}
