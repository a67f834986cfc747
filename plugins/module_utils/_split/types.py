# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is in the dicts that rooms pass to each other. Private to this collection.

docs/data_formats.md has an example of each. Sizes are MiB and times milliseconds, unless a name says otherwise.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json
from .._models import types as model_types

#: For the rooms that know models as something to split.
Model = model_types.Model


class ListedDevice(t.TypedDict):
    """A device as an engine lists it; device is llama.cpp's name for it and nothing else."""

    device: str
    backend: str
    description: str
    total_mib: int
    free_mib: int


class Device(ListedDevice):
    """A device with the id that is stored: GPU UUID, RPC endpoint, or the name where there is nothing better."""

    id: str
    budget_mib: int | None


class KnownDevice(Device):
    """A device with what is known of its speed before anything was measured; None where nothing is known."""

    bandwidth_gb_per_s: float | None
    fraction: float
    launch_ms: float
    prefill_tflops: float | None
    sources: list[str]
    link: t.NotRequired[Json]  # of a device of another host: the way to it (network_links.assumed)


class UsedDevice(Device):
    """A device that holds layers of a deployment, under the name that programs see; mib is what the plan counts."""

    layers: int
    mib: int | None


class Serving(t.TypedDict, total=False):
    """Every flag that decides memory or speed. engine is missing for llama.cpp, cache_mode for all but an ExLlama."""

    engine: str
    context_size: t.Required[int]
    parallel_slots: t.Required[int]
    kv_unified: t.Required[bool]
    batch_size: t.Required[int]
    micro_batch_size: t.Required[int]
    flash_attention: t.Required[str]
    cache_type_k: t.Required[str]
    cache_type_v: t.Required[str]
    cache_mode: str
    threads: int
    poll: int
    load_mode: str
    gpu_layers: int


class Placed(t.TypedDict):
    """How many layers the device with this id holds."""

    id: str
    layers: int


class Entry(t.TypedDict, total=False):
    """One recorded deployment. In decision, what stands in fields of the entry is left out; gpu_split_gb,
    tensor_parallel and loaded are of an ExLlama alone, experts_in_ram (expert_placement.as_json) of a deployment with
    experts in RAM."""

    model: t.Required[Json]
    serving: t.Required[Serving]
    environment: t.Required[dict[str, str]]
    devices: t.Required[list[Device]]
    placement: t.Required[list[Placed]]
    split_mode: t.Required[str]
    rpc_endpoints: t.Required[list[str]]
    decision: t.Required[Json]
    dry_run: Json | None
    feasible: list[Json]
    device_probe: Json | None
    fingerprint: t.Required[str]
    fingerprint_parts: t.Required[Json]
    campaign: t.Required[str]
    recorded_at: str
    experts_in_ram: Json
    fallbacks: list[Json]  # fallbacks.of_tuning; where lenders hold layers
    rpc_protocol: str  # network_links.protocol; where lenders were measured with this build
    speculation: Json  # kind, draft, path, device, n_max, cache types; where it is served
    gpu_split_gb: list[float]
    tensor_parallel: str
    loaded: list[Json]
