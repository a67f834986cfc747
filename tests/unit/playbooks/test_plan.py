# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plan.yml through the real ansible-playbook: for cards by name, and for two cards that a stand-in for NVML reports."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library, environment
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.local_hub import quants, server


@pytest.fixture
def plan(playbook: t.Callable[..., tuple[int, str]]) -> t.Callable[..., tuple[int, str]]:
    return functools.partial(playbook, "homelab.mixed_gpu.plan")


def test_for_cards_by_name_and_a_shape(plan: t.Callable[..., tuple[int, str]]) -> None:
    rc, output = plan("-e", "mixed_gpu_profile=rtx4090_rtx3090", "-e", "model_shape=llama_3_3_70b_q4_k_m")
    assert rc == 0, output
    assert "PREDICTION, nothing was measured: Llama 3.3 70B Instruct Q4_K_M" in output
    assert "43/38 is predicted to be the fastest of 6 splits that fit" in output
    assert "changed=0" in output


def test_for_cards_by_name_and_a_file(plan: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path) -> None:
    record.header_only(tmp_path / "m.gguf", "gemma_3_27b_it_q4_k_m")
    rc, output = plan(
        "-e", "mixed_gpu_profile=rtx3090_rtx3060", "-e", f"model_gguf={tmp_path}/m.gguf",
        "-e", "split_tuning_context_size=16384", "-e", "split_tuning_objective=decode",
    )
    assert rc == 0, output
    assert "Gemma 3 27B it Q4_K_M" in output and "context 16384 tokens" in output
    assert "63/0 is predicted to be the fastest" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["-e", "mixed_gpu_profile=rtx4090_voodoo2", "-e", "model_shape=llama_3_3_70b_q4_k_m"],
            "known are rtx4090_rtx3090",
        ),
        (["-e", "mixed_gpu_profile=rtx4090", "-e", "model_shape=llama_9"], "known are gemma_3_27b_it_q4_k_m"),
        (["-e", "mixed_gpu_profile=rtx4090"], "Nothing says which model to plan for"),
        (
            ["-e", "mixed_gpu_profile=rtx4090", "-e", "split_tuning_contxt_size=4096"],
            "split_tuning_contxt_size is no variable of this collection; did you mean split_tuning_context_size?",
        ),
        (
            ["-e", "mixed_gpu_profile=rtx4090", "-e", '{"mixed_gpu_lent": ["rtx3090@1gbe"]}'],
            "mixed_gpu_lent is rtx3090@1gbe, which adds to the cards of a host, and mixed_gpu_profile names all cards",
        ),
    ],
)
def test_says_what_is_known(plan: t.Callable[..., tuple[int, str]], words: list[str], sentence: str) -> None:
    rc, output = plan(*words)
    said = " ".join(output.split())
    assert rc == 2 and sentence in said
    # once by the task, once by the summary of its failure
    assert said.count(sentence) <= 2


def test_for_the_cards_of_a_host(plan: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path) -> None:
    record.header_only(tmp_path / "m.gguf", "llama_3_3_70b_q4_k_m")
    box = {
        "ansible_connection": "local", "split_tuning_state_dir": str(tmp_path / "state"),
        "split_tuning_model_id": "m", "llm_models": [{"id": "m", "path": str(tmp_path / "m.gguf")}],
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"mixed_gpu": {"hosts": {"box": box}}}))
    (tmp_path / "nvml").mkdir()
    library = build_library(tmp_path / "nvml")
    rc, output = plan(
        inventory=str(tmp_path / "hosts.json"), variables=environment(library, "rtx4090_rtx3090")
    )
    assert rc == 0, output
    assert "CUDA1 NVIDIA GeForce RTX 3090" in output and "NVML" in output
    assert "43/38 is predicted to be the fastest of 6 splits that fit" in output


def test_for_the_cards_of_a_host_and_of_its_lender(
    plan: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path
) -> None:
    box = {"ansible_connection": "local", "split_tuning_state_dir": str(tmp_path / "state")}
    lenders = {"pc2": {"mixed_gpu_lends": "rtx3090@1gbe"}, "pc3": {"mixed_gpu_box": "other"}}
    groups = {"mixed_gpu": {"hosts": {"box": box}}, "mixed_gpu_lenders": {"hosts": lenders}}
    (tmp_path / "hosts.json").write_text(json.dumps(groups))
    (tmp_path / "nvml").mkdir()
    library = build_library(tmp_path / "nvml")
    rc, output = plan(
        "-e", "model_shape=llama_3_3_70b_q4_k_m",
        inventory=str(tmp_path / "hosts.json"), variables=environment(library, "rtx4090_rtx3090"),
    )  # fmt: skip
    assert rc == 0, output
    lent = [line for line in output.splitlines() if "RPC0 NVIDIA GeForce RTX 3090" in line]
    assert len(lent) == 1 and "of another host, over the 1 GbE link" in lent[0] and "RPC1" not in output


@pytest.fixture
def hub(tmp_path: pathlib.Path) -> t.Iterator[server.Hub]:
    repo = tmp_path / "hub" / "owner" / "Model-GGUF"
    few = {name: quants.QUANTS[name] for name in ("F16", "Q8_0", "Q4_K_M", "Q2_K")}
    quants.write(repo / ("5" * 40), "Model", "qwen2_5_coder_32b_q4_k_m", few)
    (repo / "main").write_text("5" * 40)
    hub = server.Hub(tmp_path / "hub")
    yield hub
    hub.close()


def test_every_quant_of_a_repository(plan: t.Callable[..., tuple[int, str]], hub: server.Hub) -> None:
    asked = ["-e", "mixed_gpu_profile=rtx4090_rtx3090", "-e", "model_repo=owner/Model-GGUF"]
    rc, output = plan(*asked, "-e", f"llm_models_hub_endpoint={hub.url}")
    assert rc == 0, output
    assert "PREDICTION, nothing was downloaded: 4 quants of owner/Model-GGUF" in output
    assert "Q8_0 is the largest that fits; Q4_K_M is the largest that one card holds alone." in output
    assert "changed=0" in output and hub.sent_bytes < 40_000_000
    rc, output = plan(*asked, "-e", f"llm_models_hub_endpoint={hub.url}", "-e", "quant=q8_0")
    assert rc == 0, output
    assert "1 quant of owner/Model-GGUF" in output and "is predicted to be the fastest of" in output


def test_a_repository_without_a_network(plan: t.Callable[..., tuple[int, str]]) -> None:
    rc, output = plan(
        "-e", "mixed_gpu_profile=rtx3090", "-e", "model_repo=owner/Model-GGUF",
        "-e", "llm_models_hub_endpoint=http://127.0.0.1:9",
    )  # fmt: skip
    assert rc == 2
    assert "owner/Model-GGUF cannot be looked up: http://127.0.0.1:9 cannot be reached (" in output


def test_configurations_side_by_side(plan: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path) -> None:
    names = ["rtx4090_rtx3090", "rtx3090_x2_nvlink", "rtx5090"]
    given = {"mixed_gpu_profiles": names, "mixed_gpu_owned": ["rtx3090"], "mixed_gpu_prices_usd": {"rtx5090": 2500}}
    page, data = tmp_path / "plan.html", tmp_path / "plan.json"
    rc, output = plan("-e", json.dumps(given), "-e", "plan_page=plan.html", "-e", "plan_json=plan.json")
    assert rc == 0, output
    assert "configurations side by side" in output and "costs the least for its speed" in output
    comparison = json.loads(data.read_text())["comparison"]
    assert [each["name"] for each in comparison["configurations"]] == names
    shown = page.read_text()
    fitting = [row for row in comparison["rows"] if row["fits"]]
    assert shown.count('class="card"') == sum(len(row["memory"]) for row in fitting)
    assert "MiB weights" in shown and "rtx3090_x2_nvlink: Llama 3.3 70B Instruct Q4_K_M" in shown


def test_a_file_that_is_not_there(plan: t.Callable[..., tuple[int, str]]) -> None:
    rc, output = plan("-e", json.dumps({"mixed_gpu_profiles": ["rtx5090"]}), "-e", "model_gguf=/wrong.gguf")
    assert rc == 2 and "prediction: No prediction: /wrong.gguf does not exist yet." in " ".join(output.split())


def test_a_comparison_takes_the_libraries_of_ansible(
    plan: t.Callable[..., tuple[int, str]], hub: server.Hub
) -> None:
    """The Python that modules run with on this machine has no huggingface_hub; the one of ansible-playbook has."""
    rc, output = plan(
        "-e", json.dumps({"mixed_gpu_profiles": ["rtx3090", "rtx3060_x2"]}), "-e", "model_repo=owner/Model-GGUF",
        "-e", "quant=q4_k_m", "-e", f"llm_models_hub_endpoint={hub.url}",
        "-e", f"ansible_python_interpreter={pathlib.Path(sys.executable).resolve()}",
    )  # fmt: skip
    assert rc == 0, output
    assert "Q4_K_M, context 8192" in output


def test_a_page_of_quants(plan: t.Callable[..., tuple[int, str]], hub: server.Hub, tmp_path: pathlib.Path) -> None:
    rc, output = plan(
        "-e", "mixed_gpu_profile=rtx4090_rtx3090", "-e", "model_repo=owner/Model-GGUF",
        "-e", f"llm_models_hub_endpoint={hub.url}", "-e", f"plan_page={tmp_path}/plan.html",
    )  # fmt: skip
    assert rc == 0, output
    shown = (tmp_path / "plan.html").read_text()
    # the F16 needs RAM beside both cards
    assert "Every quant of the repository" in shown and "MiB KV cache" in shown and shown.count('class="card"') == 8
    assert shown.count("MiB of weights in RAM") == 1


NODES = [{"address": "10.0.0.1", "cards": "rtx4090_rtx3090"}, {"address": "10.0.0.2", "cards": "rtx3090"}]


def test_the_start_of_vllm_over_hosts(plan: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path) -> None:
    rc, output = plan(
        "-e", "mixed_gpu_engine=vllm_ray", "-e", "model_shape=llama_3_3_70b_q4_k_m", "-e", "vllm_model=org/model-AWQ",
        "-e", json.dumps({"mixed_gpu_nodes": NODES}), "-e", "plan_json=plan.json", "-e", "plan_page=plan.html",
    )  # fmt: skip
    assert rc == 0, output
    start = json.loads((tmp_path / "plan.json").read_text())["start"]
    assert sum(stage["blocks"] for stage in start["stages"]) == start["blocks"] == 80
    commands = [step["command"] for step in start["commands"]]
    assert len(commands) == 4 and " vllm serve org/model-AWQ " in commands[-1]
    assert all(f"  localhost |    {command}" in output.splitlines() for command in commands)
    assert "vllm serve org/model-AWQ" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-e", json.dumps({"mixed_gpu_nodes": [NODES[0], NODES[0]]})], "mixed_gpu_nodes has 10.0.0.1 twice"),
        (["-e", "mixed_gpu_profile=rtx3090", "-e", "split_tuning_context_size=max"], "vLLM needs a number of tokens"),
        (["-e", "mixed_gpu_profile=rtx3090", "-e", "mixed_gpu_engine=exllama"], 'mixed_gpu_engine is "exllama", which'),
    ],
)
def test_no_start_of_vllm(plan: t.Callable[..., tuple[int, str]], words: list[str], sentence: str) -> None:
    given = ["-e", "mixed_gpu_engine=vllm_ray", "-e", "model_shape=llama_3_3_70b_q4_k_m"]
    rc, output = plan(*given, *words)
    assert rc == 2 and sentence in " ".join(output.split()), output


def test_the_table_of_models_says_what_fits_the_cards(
    playbook: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path
) -> None:
    box = {
        "ansible_connection": "local", "ansible_become": False, "llm_models_dir": str(tmp_path / "models"),
    }  # fmt: skip
    (tmp_path / "hosts.json").write_text(json.dumps({"mixed_gpu": {"hosts": {"box": box}}}))
    (tmp_path / "nvml").mkdir()
    library = build_library(tmp_path / "nvml")
    rc, output = playbook(
        "homelab.mixed_gpu.models", inventory=str(tmp_path / "hosts.json"),
        variables=environment(library, "rtx4090_rtx3090"),
    )  # fmt: skip
    assert rc == 0, output
    line = next(line for line in output.splitlines() if "llama_3_3_70b_instruct_q4_k_m" in line)
    assert "fits as 43/38, about 18 tokens/s" in line
    line = next(line for line in output.splitlines() if "gpt_oss_120b" in line)
    assert "experts in RAM" in line  # with its speed, or because this machine has too little
