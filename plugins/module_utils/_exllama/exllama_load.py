# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One load of an ExLlama, for the module split_benchmark. Private to this collection. It runs a program on the host."""

from __future__ import annotations

import contextlib
import json
import os
import time
import typing as t

from .._base.errors import UserError
from .._base.types import Json
from .._measuring import run, store
from .._measuring.types import Load
from .._split import allreduce
from . import exllama_bench

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


class ExllamaLoad(run.StoredLoad):
    """One load of an ExLlama."""

    def __init__(self, module: AnsibleModule, cards: contextlib.AbstractContextManager[Json]) -> None:
        """Take the module, and what watches the cards meanwhile (_hardware/card_watch.py)."""
        load, given = module.params["load"], module.params["exllama"]
        if given is None:
            engine = module.params["serving"]["engine"]
            module.fail_json(msg=f"serving.engine is {engine}, which requires the option exllama.")
        try:
            self.order = exllama_bench.measure_order(
                load, given["devices"], module.params["serving"], given["model"], given["reserve_mib"]
            )
        except UserError as exc:
            module.fail_json(msg=f"This load cannot be measured: {exc}.")
        super().__init__(module, load)
        self.cards = cards

    def answers(self, stored: Load) -> bool:
        return store.reusable(stored, self.order["tests"])

    def check_programs(self) -> None:
        given = self.params["exllama"]
        self.need(given["python"], "Python", "install ExLlama (role exllamav2), or set exllama.python", os.X_OK)
        self.need(given["worker"], "worker", "copy it from the role split_tuning, or set exllama.worker")
        folder = self.order["model"]
        self.need(f"{folder}/config.json", "readable model", "fetch it (role llm_models), or set model_path")

    def measure(self, lock: int) -> Json:
        given = self.params["exllama"]
        command = [given["python"], given["worker"], json.dumps(self.order)]
        limit = self.params["timeout_seconds"]
        files = [given["python"], given["worker"], f"{self.order['model']}/config.json"]
        mode = self.order["split_mode"]
        sandbox = self.sandbox(["CUDA"], mode, files, "exllama")
        telling = allreduce.NCCL_TELLS if mode == "tensor" else {}
        with self.leased():
            started = time.monotonic()
            with self.cards as conditions:
                ended = self.run_limited(
                    [*self.params["wrapper"], *command], sandbox, {**telling, **self.params["environment"]}, limit, lock
                )
            wall_ms = round((time.monotonic() - started) * 1000)
        after = limit if ended.timed_out else None
        verdict, more = exllama_bench.judge(ended.rc, ended.stdout, ended.stderr, after, self.order)
        self.build = verdict.build
        load = {
            **self.load,
            "status": verdict.status,
            "reason": verdict.reason,
            "results": verdict.results,
            **more,
            "conditions": conditions,
            "wall_ms": wall_ms,
        }
        return self.store(load, command)
