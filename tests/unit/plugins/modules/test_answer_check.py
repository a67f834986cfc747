# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module against devices that compute wrong, and, where the mark live is asked for, on the real llama.cpp."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import answers
from ansible_collections.homelab.mixed_gpu.plugins.modules import answer_check

FAKE = pathlib.Path(__file__).parents[2] / "fixtures_bench" / "fake_answers.py"
IDS = ["127.0.0.1:50052", "127.0.0.1:50053"]
DEVICES = [
    {"device": f"RPC{i}", "id": name, "backend": "RPC", "description": name, "free_mib": 3024}
    for i, name in enumerate(IDS)
]
SERVING = {
    "context_size": 512, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 64,
    "flash_attention": "on", "cache_type_k": "q8_0", "cache_type_v": "q8_0", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}  # fmt: skip

#: Loaded into llama-server: what is copied from one RPC device to the other arrives as zeros.
LOST_COPIES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
struct ggml_tensor; struct ggml_backend_buffer;
struct start { int type; struct ggml_backend_buffer *buffer; };
const char *ggml_backend_buffer_name(struct ggml_backend_buffer *);
size_t ggml_nbytes(const struct ggml_tensor *);
void ggml_backend_tensor_set(struct ggml_tensor *, const void *, size_t, size_t);
static int on_device(const struct ggml_tensor *tensor) {
    return strncmp(ggml_backend_buffer_name(((const struct start *) tensor)->buffer), "RPC", 3) == 0;
}
void ggml_backend_tensor_copy(const struct ggml_tensor *from, struct ggml_tensor *to) {
    void (*right)(const void *, void *) = dlsym(RTLD_NEXT, "ggml_backend_tensor_copy");
    right(from, to);
    if (!on_device(from) || !on_device(to)) return;
    void *zeros = calloc(1, ggml_nbytes(to));
    ggml_backend_tensor_set(to, zeros, 0, ggml_nbytes(to));
    free(zeros);
}
"""


class Check:
    """Runs the module with a fake llama-server; C(starts) are its command lines."""

    def __init__(self, tmp_path, call_module):
        self.call_module, self.here, self.log = call_module, tmp_path, tmp_path / "log"
        program = tmp_path / "llama-server"
        program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        program.chmod(0o755)
        self.model = tmp_path / "m.gguf"
        self.model.write_bytes(b"GGUF")
        self.mark = tmp_path / "wrong_answers"

    def entry(self, layers=(10, 7), **changes):
        placement = [{"id": name, "layers": count} for name, count in zip(IDS, layers, strict=True) if count]
        return {
            "model": {"path": str(self.model)}, "devices": DEVICES, "environment": {}, "placement": placement,
            "split_mode": "layer", "rpc_endpoints": IDS, "serving": SERVING, **changes,
        }  # fmt: skip

    def __call__(self, mode="ok", check=False, environment=None, layers=(10, 7), **changes):
        arguments = {
            "llama_server": str(self.here / "llama-server"), "deployment": "m-c512", "entry": self.entry(layers),
            "load": {"label": "answers", "split_mode": "layer", "layers": list(layers), "load": 1},
            "configuration": {"driver_version": "580"}, "rpc_endpoints": IDS, "serving": SERVING, "campaign": "answers",
            "fingerprint": "f", "state_dir": str(self.here / "measurements"), "lock_wait_seconds": 0, "lease_unit": "",
            "answers_dir": str(self.here / "answers"), "wrong_file": str(self.mark), "text_tokens": 70,
            "generated_tokens": 6, "load_timeout_seconds": 60, "request_timeout_seconds": 60,
            "environment": {"FAKE_MODE": mode, "FAKE_LOG": str(self.log), **(environment or {})},
            **changes, "_ansible_check_mode": check,
        }  # fmt: skip
        return self.call_module(answer_check, arguments)

    @property
    def starts(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checked(tmp_path, call_module, monkeypatch):
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: None)
    return Check(tmp_path, call_module)


def left_over(test):
    command = ["pgrep", "-f", f"{test.here}/llama-server"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def test_a_placement_that_computes_right(checked):
    checked.mark.write_text("wrong")
    result = checked()
    found = result["answers"]
    assert (found["status"], found["reason"], result["changed"]) == ("ok", None, True)
    assert [one["id"] for one in found["compared"]] == IDS
    assert all(0 < one["difference_percent"] < 3 and one["share"] > 0.9 for one in found["compared"])
    assert all(set(one) == {"id", "difference_percent", "share", "place", "agrees"} for one in found["compared"])
    assert answers.FORM.parse(pathlib.Path(result["path"]).read_text(), result["path"]) == found
    assert not checked.mark.exists()
    # the placement as it is served, then each device alone, what does not fit of it in host memory; no CPU
    assert len(checked.starts) == 3
    assert "-dev RPC0,RPC1 -sm layer -ts 10,7" in checked.starts[0]
    for number, line in enumerate(checked.starts[1:]):
        assert f"-dev RPC{number} -sm none" in line and "-ngl auto -fit on -fitt 1024" in line
        assert "-ctk q8_0 -ctv q8_0" in line and "-np 1" in line
    assert left_over(checked) == []


@pytest.mark.parametrize(
    ("mode", "culprits", "words"),
    [
        ("exchange", [], "data between the devices is garbled, as each of them alone computes right"),
        ("device", [IDS[1]], f"{IDS[1]} computes wrong"),
        ("nan", [], "the placement gives probabilities that are no numbers"),
        ("nan_device", [IDS[1]], f"{IDS[1]} gives probabilities that are no numbers"),
        ("zeros", [], "the placement gives each token the same probability"),
    ],
)
def test_who_computes_wrong_is_named(checked, mode, culprits, words):
    result = checked(mode)
    found = result["answers"]
    assert (found["status"], found["culprits"]) == ("wrong", culprits)
    assert words in found["reason"]
    assert "build llama.cpp again" in " ".join(found["cures"])
    assert found["reason"] in checked.mark.read_text()
    assert left_over(checked) == []


def test_two_devices_without_a_referee_accuse_nobody(checked):
    found = checked("device", environment={"FAKE_CPU": "refuse"})["answers"]
    assert (found["status"], found["culprits"]) == ("wrong", [])
    assert "either may be wrong" in found["reason"]
    assert list(found["failures"]) == ["CPU"]


def test_what_cannot_be_compared_is_unknown(checked):
    checked.mark.write_text("wrong before")
    found = checked("nothing_alone", environment={"FAKE_CPU": "refuse"})["answers"]
    assert found["status"] == "unknown"
    assert found["reason"].startswith(f"nobody could compute the model alone ({IDS[0]}: out of memory")
    assert checked.mark.exists()


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("nothing", {}, "out of memory"),
        ("ok", {"generated_tokens": 480}, "a slot of 512 tokens has no room"),
    ],
)
def test_a_placement_that_cannot_be_asked_is_a_failure(checked, mode, changes, words):
    result = checked(mode, **changes)
    assert result["failed"] and f"the placement could not be asked ({words}" in result["msg"]
    assert not (checked.here / "answers").exists()


def test_a_device_that_hangs_is_ended(checked):
    found = checked("hang", request_timeout_seconds=2, environment={"FAKE_CPU": "refuse"})["answers"]
    assert found["status"] == "unknown" and "did not answer within 2 s" in found["reason"]
    assert left_over(checked) == []


def test_a_placement_of_one_device_is_compared_with_the_other(checked):
    found = checked(layers=(17, 0))["answers"]
    assert (found["status"], [one["id"] for one in found["compared"]]) == ("ok", [IDS[1]])
    assert checked("device", layers=(17, 0))["answers"]["culprits"] == [IDS[1]]
    assert checked("device0", layers=(17, 0))["answers"]["culprits"] == [IDS[0]]


def test_the_only_device_of_a_host_is_compared_with_the_processor(checked):
    one = checked.entry(layers=(17, 0), devices=DEVICES[:1])
    found = checked(entry=one)["answers"]
    assert (found["status"], [one["id"] for one in found["compared"]]) == ("ok", ["CPU"])
    assert len(checked.starts) == 2 and "-dev none -ngl 0" in checked.starts[1]
    found = checked("device0", entry=one)["answers"]
    assert (found["status"], found["culprits"]) == ("wrong", [IDS[0]])
    found = checked(entry=one, environment={"FAKE_CPU": "refuse"})["answers"]
    assert found["status"] == "incomparable"


def test_where_no_device_can_be_asked_alone_the_processor_is(checked):
    found = checked("nothing_alone")["answers"]
    assert (found["status"], [one["id"] for one in found["compared"]]) == ("ok", ["CPU"])
    assert list(found["failures"]) == IDS and f"not asked were {IDS[0]}: out of memory" in found["sentence"]


def test_nothing_is_started_for_which_ram_is_missing(checked, monkeypatch):
    monkeypatch.setattr(job, "available_memory_mib", lambda: 1025)
    with checked.model.open("wb") as file:
        file.truncate(2010 * job.MIB)
    found = checked()["answers"]
    # 10 MiB do not fit beside the reserve of a device
    assert found["failures"] == {**dict.fromkeys(IDS, "9 MiB of RAM are missing"), "CPU": "2009 MiB of RAM are missing"}
    assert found["status"] == "incomparable" and len(checked.starts) == 1


def test_no_memory_is_locked_for_a_device_alone(checked):
    entry = checked.entry(serving={**SERVING, "load_mode": "mlock"})
    assert checked("device", entry=entry)["answers"]["culprits"] == [IDS[1]]
    assert ["-lm mlock" in line for line in checked.starts] == [True, False, False, False]


def test_drafts_are_left_out(checked):
    speculation = {"kind": "draft-mtp", "n_max": 3}
    found = checked(entry=checked.entry(speculation=speculation))["answers"]
    assert found["status"] == "ok" and not [line for line in checked.starts if "--spec" in line]


def test_check_mode_starts_nothing(checked):
    result = checked(check=True)
    assert (result["changed"], result["answers"], checked.starts) == (True, None, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generated_tokens": 0}, "generated_tokens is 0"),
        ({"llama_server": "/nowhere/llama-server"}, "llama_cpp_targets"),
        ({"deployment": "../x"}, "../x"),
    ],
)
def test_misuse_is_one_sentence(checked, changes, words):
    result = checked(**changes)
    assert result["failed"] and words in result["msg"] and not checked.starts


@pytest.mark.live
def test_copies_that_get_lost_between_real_devices(checked, tmp_path, llama_bin, rpc_endpoints):
    model, library = tmp_path / "real.gguf", tmp_path / "lost.so"
    shape = {"blocks": 4, "embedding_length": 256, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    random_model.write_model(
        str(model),
        random_model.checked_options({
            **shape, "vocabulary_size": 512, "context_length": 1024, "type": "q8_0", "seed": 1, "distinct_blocks": True,
        }),  # fmt: skip
        "real",
    )
    subprocess.run(["cc", "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=LOST_COPIES, text=True, check=True)
    ids = rpc_endpoints[:2]
    devices = [{**device, "id": at, "description": at} for device, at in zip(DEVICES, ids, strict=True)]
    placement = [{"id": name, "layers": count} for name, count in zip(ids, (3, 2), strict=True)]
    entry = checked.entry(model={"path": str(model)}, devices=devices, rpc_endpoints=ids, placement=placement)
    arguments = {
        "llama_server": f"{llama_bin}/llama-server", "entry": entry, "rpc_endpoints": ids, "reserve_mib": 1,
        "load_timeout_seconds": 600, "request_timeout_seconds": 300,
    }  # fmt: skip
    found = checked(**arguments)["answers"]
    assert (found["status"], found["reason"], found["failures"]) == ("ok", None, {})
    assert [one["id"] for one in found["compared"]] == ids
    found = checked(**arguments, environment={"LD_PRELOAD": str(library)})["answers"]
    assert (found["status"], found["culprits"]) == ("wrong", [])
    assert found["reason"].startswith("data between the devices is garbled, as each of them alone computes right")
    assert "an RPC server of another build" in found["cures"][0]
    assert checked.mark.exists()
