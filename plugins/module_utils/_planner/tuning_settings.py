# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables of the role split_tuning, checked and typed. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import fields, variables
from .._base.types import Json
from .._split import known_devices, split_problem, workload
from . import exllama_drafts, speculation_stage, speculation_texts


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field per variable, without C(split_tuning_); roles/split_tuning/meta/argument_specs.yml describes them."""

    model_id: str
    model_path: str
    model_sha256: str
    deployment: str
    active: bool
    retune: bool
    engine: str
    exllama_root: str
    exllama_gpus: list[str]
    exllama_cache_mode: str
    llama_cpp: str
    rpc_endpoints: list[str]
    environment: dict[str, t.Any]
    host_python: str
    state_dir: str
    conflicting_units: list[str]
    fingerprint_extra: dict[str, t.Any]
    context_size: int | str  # or max
    parallel_slots: int
    kv_unified: bool
    batch_size: int
    micro_batch_size: int
    flash_attention: str
    cache_type_k: str
    cache_type_v: str
    threads: int
    poll: int
    load_mode: str
    probe: bool
    probe_model_path: str
    probe_blocks: int
    probe_embedding_length: int
    probe_feed_forward_length: int
    probe_head_count: int
    probe_head_count_kv: int
    probe_type: str
    probe_prompt_tokens: int
    probe_generated_tokens: int
    probe_repetitions: int
    probe_timeout_seconds: int
    device_budget_mib: dict[str, t.Any]
    reserve_mib: int
    modes: list[str]
    exllama_modes: list[str]
    micro_batches: list[int]
    experts_in_ram: str  # auto, never, or a number of blocks
    expert_threads: list[int]
    ram_mib: int  # 0: as the host says
    ram_gb_per_s: float  # what predictions take RAM to reach; 0: not known
    tensor_allreduce: list[str]
    tensor_max_loads: int
    tensor_soak_seconds: int
    tensor_idle_gaps: int
    tensor_idle_seconds: int
    speculation: str | list[str]
    speculation_tokens: int
    drafts: dict[str, t.Any]              # as llm_models_installed; those with draft_for of this model
    texts: list[dict[str, t.Any]]
    objective: str
    prompt_tokens: int
    generated_tokens: int
    depth: int
    bench_prompt_tokens: int
    bench_generated_tokens: int
    bench_repetitions: int
    indifference: float
    max_loads: int
    repeat_disturbed: int
    baseline_max_loads: int
    keep_campaigns: int  # of the store; the role has it pruned afterwards
    baseline_tolerance_percent: float
    load_timeout_seconds: int
    lease_file: str
    lease_idle_seconds: int
    lease_seconds: int
    lease_wait_seconds: int
    profile: str
    lent: list[str]  # of a prediction: cards of lenders, and how each is reached
    shape: str
    predict_only: bool

    @property
    def measurements_dir(self) -> str:
        """The host's store."""
        return f"{self.state_dir}/measurements"

    @property
    def own_drafts(self) -> dict[str, Json]:
        """The models that are to draft for this one, by id: path and sha256."""
        return {
            name: dict(entry)
            for name, entry in self.drafts.items()
            if isinstance(entry, t.Mapping) and entry.get("draft_for") == self.model_id
        }

    @property
    def asked(self) -> Json:
        """The objective, as split_problem.workload takes it."""
        return {
            "name": self.objective,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "depth_tokens": self.depth,
        }

    @property
    def bench(self) -> Json:
        """What each load measures, as split_problem.workload takes it."""
        return {
            "prompt_tokens": self.bench_prompt_tokens,
            "generated_tokens": self.bench_generated_tokens,
            "repetitions": self.bench_repetitions,
        }


_CHOICES: t.Final = {
    "engine": ("llama_cpp", "exllamav2", "exllamav3"),
    "flash_attention": ("on", "off", "auto"),
    "objective": ("decode", "prefill", "ttft", "request", "agent"),
    "probe_type": ("f16", "q8_0", "q4_0"),
}


_TOKENS, _MIB, _SECONDS = (1, workload.MOST_TOKENS), (0, split_problem.MOST_MIB), (0, 366 * 86400)
_LOADS: t.Final = (1, split_problem.MOST_LOADS)
#: The least and the most that a number may be, by its variable.
BOUNDS: t.Final[dict[str, tuple[int, int]]] = {
    f"split_tuning_{name}": bounds
    for names, bounds in (
        ("context_size batch_size micro_batch_size bench_prompt_tokens bench_generated_tokens", _TOKENS),
        ("probe_prompt_tokens probe_generated_tokens", _TOKENS),
        ("prompt_tokens generated_tokens depth", (0, workload.MOST_TOKENS)),
        ("speculation_tokens", (2, workload.MOST_TOKENS)),
        ("parallel_slots", (1, workload.MOST_SLOTS)),
        ("reserve_mib ram_mib", _MIB),
        ("ram_gb_per_s", (0, 1 << 20)),
        ("max_loads tensor_max_loads baseline_max_loads", _LOADS),
        ("bench_repetitions probe_repetitions", (1, workload.MOST_REPETITIONS)),
        ("load_timeout_seconds probe_timeout_seconds", (1, _SECONDS[1])),
        ("tensor_soak_seconds tensor_idle_seconds lease_wait_seconds", _SECONDS),
        ("tensor_idle_gaps repeat_disturbed", (0, 1000)),
        ("users", (1, 1 << 20)),
    )
    for name in names.split()
}


def read(given: t.Mapping[str, t.Any]) -> Settings:
    """Return the settings in variables of the role, named with C(split_tuning_); others are ignored.

    Raises ValueError that names the variable, its value and what it must be.
    """
    settings = variables.read(Settings, given, "split_tuning")
    for field, known in _CHOICES.items():
        value = getattr(settings, field)
        if value not in known:
            raise ValueError(f"split_tuning_{field} is {value!r}: it must be {', '.join(known[:-1])} or {known[-1]}")
    context = settings.context_size
    if isinstance(context, str) and context != "max":
        raise ValueError(f"split_tuning_context_size is {context!r}: it must be a number of tokens, or max")
    for name, (least, most) in BOUNDS.items():
        number = getattr(settings, name.removeprefix("split_tuning_"), least)
        if number != "max":
            fields.check(name, number, least, most)
    for number in settings.micro_batches:
        fields.check("an entry of split_tuning_micro_batches", number, *_TOKENS)
    if context == "max" and settings.engine != "llama_cpp":
        raise ValueError(
            "split_tuning_context_size is max, which llama.cpp's dry run settles, and the engine is"
            f" {settings.engine}: give a number of tokens"
        )
    _check_speculation(settings)
    known_devices.read_lent(settings.lent)
    for name in ("modes", "exllama_modes"):
        unknown = sorted(set(getattr(settings, name)) - {"layer", "tensor"})
        if unknown:
            raise ValueError(f"split_tuning_{name} names {unknown[0]!r}: known are layer and tensor")
    if settings.experts_in_ram not in ("auto", "never") and not settings.experts_in_ram.isdecimal():
        raise ValueError(
            f"split_tuning_experts_in_ram is {settings.experts_in_ram!r}: it must be auto, never or a number of blocks"
        )
    return settings


def _check_speculation(settings: Settings) -> None:
    """Raise ValueError for settings of speculation that are none, or ask for a draft that nobody names."""
    kinds = speculation_stage.kinds(settings.speculation)
    by_tabbyapi = settings.engine != "llama_cpp" and exllama_drafts.kinds(kinds, settings.own_drafts)
    speculation_texts.read(settings.texts, words_only=bool(by_tabbyapi))
    asked = not isinstance(settings.speculation, str) and bool({"draft-simple", "draft-eagle3"} & set(kinds))
    if asked and not settings.own_drafts:
        raise ValueError(
            f"split_tuning_speculation names a draft model, and no entry of llm_models has draft_for"
            f" {settings.model_id}: add one, or take it out"
        )
