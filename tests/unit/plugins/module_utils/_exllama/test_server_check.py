# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether exllama-server is to serve what was recorded."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_check

DEPLOYMENT = {
    "model": {"path": "/srv/models/m"}, "gpu_split_gb": [21.5, 19.0], "tensor_parallel": "",
    "devices": [{"id": "GPU-1"}, {"id": "GPU-2"}],
    "serving": {"context_size": 8192, "cache_mode": "Q8", "engine": "exllamav2"},
}  # fmt: skip
UNIT = (
    "[Service]\nLoadCredential=config.yml:/etc/mixed_gpu/exllama-server.yml\n"
    "LoadCredential=api_key:/key\nEnvironment=CUDA_DEVICE_ORDER=PCI_BUS_ID\n"
    "Environment=CUDA_VISIBLE_DEVICES=GPU-1,GPU-2\n"
)
MODEL = {
    "model_dir": "/srv/models", "model_name": "m", "backend": "exllamav2", "max_seq_len": 8192, "cache_mode": "Q8",
    "gpu_split": [21.5, 19.0], "tensor_parallel": False, "tensor_parallel_backend": "native",
}  # fmt: skip


def test_the_settings_are_found_in_the_unit():
    assert server_check.config_path(UNIT) == "/etc/mixed_gpu/exllama-server.yml"
    assert server_check.config_path("") == ""


def test_what_is_recorded_deviates_in_nothing():
    assert server_check.deviations(DEPLOYMENT, UNIT, json.dumps({"model": MODEL})) == []


@pytest.mark.parametrize(
    ("unit", "model", "words"),
    [
        (UNIT, {"gpu_split": [19.0, 21.5]}, "with gpu_split [19.0, 21.5]; the facts say [21.5, 19.0]."),
        (UNIT, {"tensor_parallel": True}, "with tensor_parallel True; the facts say False."),
        (UNIT, {"tensor_parallel_backend": "nccl"}, "with tensor_parallel_backend nccl; the facts say native."),
        (UNIT, {"model_name": "other"}, "with model /srv/models/other; the facts say /srv/models/m."),
        (UNIT, {"max_seq_len": 4096}, "with max_seq_len 4096; the facts say 8192."),
        (UNIT.replace("GPU-1,GPU-2", "GPU-2,GPU-1"), {}, "uses the cards GPU-2,GPU-1; the facts say GPU-1,GPU-2."),
        ("", {}, "uses the cards of CUDA; the facts say GPU-1,GPU-2."),
    ],
)
def test_what_differs_is_one_sentence(unit, model, words):
    (sentence,) = server_check.deviations(DEPLOYMENT, unit, json.dumps({"model": {**MODEL, **model}}))
    assert words in sentence


DRAFT = {"kind": "draft-model", "path": "/srv/models/d", "device": "GPU-2", "memory_gb": 2.5, "cache_mode": "Q8"}
DRAFTING = {
    "draft_model_dir": "/srv/models", "draft_model_name": "d", "draft_cache_mode": "Q8", "draft_gpu_split": [0.0, 2.5],
}  # fmt: skip


@pytest.mark.parametrize(
    ("recorded", "drafting", "words"),
    [
        (DRAFT, DRAFTING, None),
        (None, None, None),
        (DRAFT, None, "with draft None; the facts say /srv/models/d."),
        (None, DRAFTING, "with draft /srv/models/d; the facts say None."),
        (DRAFT, {**DRAFTING, "draft_model_name": "e"}, "with draft /srv/models/e; the facts say /srv/models/d."),
        (DRAFT, {**DRAFTING, "draft_gpu_split": []}, "with draft_gpu_split []; the facts say [0.0, 2.5]."),
    ],
)
def test_the_draft_is_compared_too(recorded, drafting, words):
    config = {"model": MODEL} if drafting is None else {"model": MODEL, "draft_model": drafting}
    found = server_check.deviations({**DEPLOYMENT, "speculation": recorded}, UNIT, json.dumps(config))
    assert words is None and found == [] or words in found[0]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_settings_that_cannot_be_read_are_told(text):
    assert server_check.deviations(DEPLOYMENT, UNIT, text) == ["The settings of exllama-server cannot be read."]
