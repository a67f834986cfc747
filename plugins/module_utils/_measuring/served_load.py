# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules have in common that measure with a private server. Private to this collection.

It acts on the host on behalf of a module, as run.py does.
"""

from __future__ import annotations

import time
import typing as t

from .._base.errors import UserError
from .._base.types import Json
from . import run
from .types import Load

#: Options of the modules whose server answers texts (doc_fragments/_measuring.py has most of them).
TEXT_ARGUMENTS: dict[str, Json] = {
    "model_path": {"type": "path", "required": True},
    "load": {"type": "dict", "required": True},
    "devices": {"type": "list", "elements": "dict", "required": True},
    "texts": {
        "type": "list", "elements": "dict", "required": True,
        "options": {"name": {"type": "str", "required": True}, "prompt": {"type": "raw", "required": True}},
    },
    "generated_tokens": {"type": "int", "default": 192, "no_log": False},
    "prompt_tokens": {"type": "int", "default": 0, "no_log": False},
    "load_timeout_seconds": {"type": "int", "default": 900},
    "request_timeout_seconds": {"type": "int", "default": 300},
    **run.ARGUMENTS,
}  # fmt: skip


class EndedError(Exception):
    """The load is over: the server did not come up, died, hangs or answers wrongly; carries status and reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class ServedLoad(run.StoredLoad):
    """One load of a private server, whose end is a result. Subclasses say what it is asked."""

    def __init__(self, module: t.Any, load: Json) -> None:
        """As of every stored load; C(results) is what was found, as far as it came, C(command) what was run."""
        super().__init__(module, load)
        self.results: list[Json] = []
        self.command: list[str] = []

    def ask(self, lock: int) -> None:
        """Start the server, ask it, and keep what was found in C(results). Raises EndedError and UserError."""
        raise NotImplementedError

    def answers(self, stored: Load) -> bool:
        return stored["status"] != "device_lost"

    def measure(self, lock: int) -> Json:
        status, reason = "ok", None
        started = time.monotonic()
        with self.leased():
            try:
                self.ask(lock)
            except EndedError as end:
                status, reason = end.status, end.reason
            except UserError as exc:
                self.fail(f"{self.load.get('label')} cannot be measured: {exc}.")
        load = {
            **self.load, "status": status, "reason": reason, "results": self.results,
            "wall_ms": round((time.monotonic() - started) * 1000),
        }  # fmt: skip
        return self.store(load, self.command)


class TextsLoad(ServedLoad):
    """One load of a private server that answers texts."""

    def __init__(self, module: t.Any, more: t.Sequence[str] = ()) -> None:
        """Take an AnsibleModule with TEXT_ARGUMENTS; its load has to have the keys C(more), too."""
        load, params = module.params["load"], module.params
        for key in ("label", "split_mode", "layers", "load", "speculation", *more):
            if key not in load:
                module.fail_json(msg=f"load.{key} is missing.")
        for name, least in (("generated_tokens", 2), ("load_timeout_seconds", 1), ("request_timeout_seconds", 1)):
            if params[name] < least:
                module.fail_json(msg=f"{name} is {params[name]}: that is too few.")
        if not params["texts"]:
            module.fail_json(msg="texts is empty: give at least one text.")
        super().__init__(module, load)

    def answers(self, stored: Load) -> bool:
        if stored["status"] != "ok":
            return super().answers(stored)
        rows = t.cast("list[Json]", stored["results"])
        return {text["name"] for text in self.params["texts"]} <= {row.get("text") for row in rows}
