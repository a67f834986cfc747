# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import llama_cpp

DEPLOYMENT = {
    "model": {"id": "x", "path": "/srv/my models/x.gguf"},
    "serving": {
        "context_size": 8192,
        "parallel_slots": 1,
        "kv_unified": True,
        "batch_size": 2048,
        "micro_batch_size": 512,
        "flash_attention": "on",
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "threads": 1,
        "poll": 0,
        "load_mode": "auto",
        "gpu_layers": 99,
    },
    "devices": [
        {"device": "CUDA0", "id": "GPU-aaaa", "backend": "CUDA", "description": "NVIDIA GeForce RTX 4090"},
        {"device": "CUDA1", "id": "GPU-bbbb", "backend": "CUDA", "description": "NVIDIA GeForce RTX 3090"},
    ],
    "environment": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-bbbb"},
    "placement": [{"id": "GPU-aaaa", "layers": 45}, {"id": "GPU-bbbb", "layers": 36}],
    "split_mode": "layer",
    "rpc_endpoints": [],
    "decision": {"mib": [23689, 19587]},
}
SETTINGS = {
    "host": "127.0.0.1",
    "port": 8080,
    "alias": "x",
    "cache_ram_mib": 0,
    "cors_origins": "localhost",
    "log_verbosity": 4,
    "extra_arguments": [],
    "allowed_networks": [],
    "load_timeout_seconds": 900,
}

command = llama_cpp.FilterModule().filters()["llama_server_command"]


def test_words_are_quoted_for_the_unit():
    result = command(DEPLOYMENT, SETTINGS)
    assert "/srv/my models/x.gguf" in result["arguments"]
    assert '"/srv/my models/x.gguf"' in result["exec_start"]
    assert result["layers"] == [45, 36]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"serving": {}}, "has no 'gpu_layers'"),
        ({"model": {}}, "has no 'path'"),
        ({"placement": [{"id": "GPU-cccc", "layers": 81}]}, "not among the recorded devices"),
        ({"placement": 7}, "run the tuning play again"),
    ],
)
def test_broken_deployment_is_one_sentence(change, words):
    with pytest.raises(AnsibleFilterError, match=words):
        command({**DEPLOYMENT, **change}, SETTINGS)


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("192.168.1.5", "192.168.1.5"),
        ("fd00::5", "[fd00::5]"),
    ],
)
def test_a_server_is_asked_where_it_listens(host, where):
    assert llama_cpp.FilterModule().filters()["llama_server_url"](host, 8080) == f"http://{where}:8080"
