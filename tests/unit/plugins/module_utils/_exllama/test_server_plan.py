# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How TabbyAPI serves: which cards with how much memory, its settings, and what is refused."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import addresses
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_plan

FAST, SLOW = "GPU-fast", "GPU-slow"
SERVING = {"engine": "exllamav2", "context_size": 8192, "cache_mode": "FP16", "chunk_size": 2048}
RECORD = {
    "tuned": {
        "model": {"id": "m"}, "serving": SERVING, "devices": [{"id": SLOW}, {"id": FAST}], "gpu_split_gb": [17, 20.5],
        "tensor_parallel": "",
    },
    "other": {"model": {"id": "m"}, "devices": [{"id": FAST}], "serving": {**SERVING, "engine": "llama_cpp"}},
}  # fmt: skip


def settings(**changed):
    return {
        "engine": "v2", "model_path": "/srv/models/folder", "model_id": "m", "context_size": 8192,
        "cache_mode": "FP16", "gpus": [], "gpu_split_gb": [], "tensor_parallel": "", "draft": {},
        "host": "127.0.0.1",
        "port": 5000, "keyed": False, "allowed_networks": [], "requirements": "torch==2.11.0\n",
    } | changed  # fmt: skip


def split(known=(FAST, SLOW), models=None, **changed):
    return server_plan.split(RECORD if models is None else models, settings(**changed), known)


def test_a_given_split_comes_before_the_recorded_one():
    assert split(gpu_split_gb=[20, 17.5]) == {
        "gpus": [FAST, SLOW], "gpu_split_gb": [20.0, 17.5], "tensor_parallel": "", "source": "variable",
    }  # fmt: skip
    assert split(gpus=[SLOW], gpu_split_gb=[20])["gpus"] == [SLOW]


def test_the_recorded_split_follows_the_cards_not_their_places():
    recorded = {"gpus": [SLOW, FAST], "gpu_split_gb": [17.0, 20.5], "tensor_parallel": "", "source": "record"}
    assert split() == recorded and split(known=(SLOW, FAST)) == recorded
    assert split(gpus=[FAST, SLOW])["gpu_split_gb"] == [20.5, 17.0]


def test_without_a_record_for_this_engine_the_engine_decides():
    automatic = {"gpus": [FAST, SLOW], "gpu_split_gb": [], "tensor_parallel": "", "source": "automatic"}
    assert split(model_id="another") == automatic and split(models={}) == automatic
    assert split(models={"other": RECORD["other"]}) == automatic and split(engine="v3") == automatic


def test_layers_are_shared_as_recorded_or_as_asked():
    v3 = {**SERVING, "engine": "exllamav3"}
    models = {"tuned": {**RECORD["tuned"], "serving": v3, "tensor_parallel": "nccl"}}
    chosen = split(models=models, engine="v3")
    assert (chosen["tensor_parallel"], chosen["source"]) == ("nccl", "record")
    assert split(models=models, engine="v3", tensor_parallel="nccl") == chosen
    for recorded, asked in (("nccl", "native"), ("", "nccl")):
        entry = {**models["tuned"], "tensor_parallel": recorded}
        words = f"exllamav2_tensor_parallel is '{asked}', and .* of m was measured with '{recorded}': empty it"
        with pytest.raises(UserError, match=words):
            split(models={"tuned": entry}, engine="v3", tensor_parallel=asked)
    model = server_plan.config(settings(engine="v3"), chosen)["model"]
    assert (model["tensor_parallel"], model["tensor_parallel_backend"]) == (True, "nccl")
    given = split(engine="v3", tensor_parallel="native", gpu_split_gb=[20, 17.5])
    assert (given["tensor_parallel"], given["source"]) == ("native", "variable")
    with pytest.raises(UserError, match="exllamav2_tensor_parallel is 'native', which only the engine v3 has"):
        split(tensor_parallel="native", gpu_split_gb=[20, 17.5])


def test_a_split_for_another_context_or_cache_is_not_taken():
    assert split(context_size=4096)["source"] == split(cache_mode="Q8")["source"] == "automatic"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": ["GPU-x"]}, "GPU-x of exllamav2_gpus is not in this host, which has GPU-fast, GPU-slow"),
        ({"gpu_split_gb": [20]}, "has 1 numbers for 2 cards"),
        ({"gpu_split_gb": [0, 0]}, "leaves no card any memory"),
        ({"gpu_split_gb": [-1, 20]}, "leaves no card any memory"),
        ({"known": (FAST,)}, "is for the card GPU-slow, which is not in this host"),
        ({"gpus": [FAST]}, "exllamav2_gpus names other cards"),
    ],
)
def test_a_split_that_does_not_fit_the_host_is_an_error(given, words):
    with pytest.raises(UserError, match=words):
        split(**given)


def test_without_a_name_the_folder_names_the_model():
    named = {"x": RECORD["tuned"] | {"model": {"id": "folder"}}}
    assert split(models=named, model_id="")["source"] == "record"


def test_the_settings_of_tabbyapi():
    given = {"gpus": [FAST, SLOW], "gpu_split_gb": [20.5, 17.0], "tensor_parallel": ""}
    config = server_plan.config(settings(host="0.0.0.0", keyed=True, cache_mode="Q8"), given)
    assert config["network"]["disable_auth"] is False and config["network"]["host"] == "0.0.0.0"
    model = config["model"]
    assert (model["model_dir"], model["model_name"], model["backend"]) == ("/srv/models", "folder", "exllamav2")
    assert (model["gpu_split"], model["gpu_split_auto"], model["cache_size"]) == ([20.5, 17.0], False, 8192)
    assert model["tensor_parallel"] is False
    assert server_plan.config(settings(), {**given, "gpu_split_gb": []})["model"]["gpu_split_auto"] is True
    assert server_plan.config(settings(), given)["network"]["disable_auth"] is True


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, {"EXLLAMA_NO_SDPA", "EXLLAMA_NO_FLASH_ATTN"}),
        ({"requirements": "torch==2\nflash-attn==2.8\n"}, {"EXLLAMA_NO_SDPA"}),
        ({"engine": "v3"}, set()),
    ],
)
def test_the_environment_names_the_cards_and_what_the_generation_lacks(changed, names):
    found = server_plan.environment(settings(**changed), {"gpus": [SLOW, FAST]})
    assert found.pop("CUDA_VISIBLE_DEVICES") == f"{SLOW},{FAST}" and found.pop("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    assert found == server_plan.ENVIRONMENT | dict.fromkeys(names, "1")


def test_a_server_on_loopback_talks_to_nobody_else_unless_allowed():
    assert server_plan.networks(settings()) == ["localhost"]
    assert server_plan.networks(settings(host="0.0.0.0")) == ["localhost", *addresses.PRIVATE]
    assert server_plan.networks(settings(host="0.0.0.0", allowed_networks=["10.0.0.0/8"])) == [
        "localhost",
        "10.0.0.0/8",
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cache_mode": "8,8"}, "ExLlamaV2 has no cache mode '8,8': it has FP16, Q8, Q6, Q4"),
        ({"cache_mode": "Q5", "engine": "v3"}, "ExLlamaV3 has no cache mode 'Q5'"),
        ({"context_size": 1000}, "context_size is 1000: ExLlama wants a multiple of 256"),
        ({"model_path": "/home/me/model"}, "does not see (/home, /root, /tmp): move the model, to /srv/models"),
        ({"engine": "v1"}, "exllamav2_engine is 'v1'"),
    ],
)
def test_a_server_that_must_not_run_is_refused(changed, words):
    with pytest.raises(UserError) as raised:
        server_plan.validate(settings(**changed))
    assert words in str(raised.value)


def test_what_is_no_network_is_refused_by_name():
    with pytest.raises(UserError, match="exllamav2_allowed_networks has the entry 'any', which is no network"):
        server_plan.networks(settings(allowed_networks=["any"]))


def test_a_server_that_may_run_passes():
    server_plan.validate(settings(host="0.0.0.0", keyed=True, cache_mode="8,6", engine="v3"))


DRAFT = {"path": "/srv/models/draft/", "card": SLOW, "memory_gb": 2.5, "cache_mode": "Q4"}


@pytest.mark.parametrize(
    ("given", "cards", "section"),
    [
        (DRAFT, [0.0, 2.5], "Q4"),
        ({"path": "/srv/models/draft"}, [], "Q8"),
        ({**DRAFT, "card": FAST, "cache_mode": None}, [2.5, 0.0], "Q8"),
    ],
)
def test_a_draft_is_told_by_the_card_that_holds_it(given, cards, section):
    wanted = settings(draft=given, cache_mode="Q8")
    server_plan.validate(wanted)
    chosen = server_plan.split({}, wanted, (FAST, SLOW))
    assert server_plan.config(wanted, chosen)["draft_model"] == {
        "draft_model_dir": "/srv/models", "draft_model_name": "draft", "draft_cache_mode": section,
        "draft_gpu_split": cards,
    }  # fmt: skip
    assert "draft_model" not in server_plan.config(settings(), chosen)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"card": SLOW}, "exllamav2_draft has no path: name the folder of the draft"),
        ({**DRAFT, "path": "/home/me/draft"}, "The draft /home/me/draft is below a directory that"),
        ({**DRAFT, "cache_mode": "8,8"}, "exllamav2_draft.cache_mode cannot be used: ExLlamaV2 has no cache mode"),
        ({**DRAFT, "memory_gb": 0}, "exllamav2_draft has only one of card and memory_gb: give both"),
        ({**DRAFT, "card": "GPU-other"}, "exllamav2_draft.card is GPU-other, and the server uses GPU-fast, GPU-slow"),
    ],
)
def test_a_draft_that_cannot_be_served_is_one_sentence(given, words):
    with pytest.raises(UserError, match=words) as refused:
        server_plan.validate(settings(draft=given))
        split(models={}, draft=given)
    assert str(refused.value).count(". ") == 0


def test_what_was_recorded_of_a_draft_is_what_the_role_takes():
    recorded = {"kind": "draft-model", "draft": "d", "device": SLOW, "n_max": 0, "path": "/srv/models/draft",
                "memory_gb": 2.5, "cache_mode": "Q4"}  # fmt: skip
    assert server_plan.recorded_draft({"speculation": recorded}) == {**DRAFT, "path": "/srv/models/draft"}
    assert server_plan.recorded_draft({"speculation": {"kind": "ngram-mod"}}) == {} == server_plan.recorded_draft(None)
