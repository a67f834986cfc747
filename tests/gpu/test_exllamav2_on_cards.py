# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On a real card: ExLlama's extensions compiled by the role's own code, and a random model that generates.

Run it with tests/gpu/exllama.sh, whose head says what to bring. MIXED_GPU_EXLLAMA_WHEELS is the folder with the wheels,
MIXED_GPU_EXLLAMA_WORK where everything is made; what was compiled there is not compiled again. The model is a small
Llama in fp16 with random weights. What an engine makes of it is compared with transformers.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_job

WHEELS = os.environ.get("MIXED_GPU_EXLLAMA_WHEELS", "")
WORK = pathlib.Path(os.environ.get("MIXED_GPU_EXLLAMA_WORK", "/tmp/mixed-gpu-exllama"))
PACKAGES = {
    "v2": ("exllamav2", "0.3.2", ()),
    "v3": (
        "exllamav3", "1.6.5",
        ("marisa-trie", "llguidance", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    ),
}  # fmt: skip
KNOWN_TO_BUILD = (
    "exllamav2 0.3.2 and exllamav3 1.6.5 with PyTorch 2.11.0 and nvcc 13.0, as the role pins them"
)
PROMPT_TOKENS, NEW_TOKENS = 64, 32

MAKE_MODEL = """
import json, pathlib, sys
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
hidden, inner, layers, heads, kv_heads, vocab = 1024, 2816, 8, 8, 4, 2048
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
    "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
    "head_dim": hidden // heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "torch_dtype": "float16", "initializer_range": 0.02,
}
(folder / "config.json").write_text(json.dumps(config))
torch.manual_seed(1)
def weight(rows, columns):
    return (torch.randn(rows, columns) / columns ** 0.5).half()
tensors = {
    "model.embed_tokens.weight": torch.randn(vocab, hidden).half(), "lm_head.weight": weight(vocab, hidden),
    "model.norm.weight": torch.ones(hidden).half(),
}
for number in range(layers):
    name = f"model.layers.{number}."
    tensors |= {
        name + "self_attn.q_proj.weight": weight(hidden, hidden),
        name + "self_attn.k_proj.weight": weight(kv_heads * hidden // heads, hidden),
        name + "self_attn.v_proj.weight": weight(kv_heads * hidden // heads, hidden),
        name + "self_attn.o_proj.weight": weight(hidden, hidden),
        name + "mlp.gate_proj.weight": weight(inner, hidden), name + "mlp.up_proj.weight": weight(inner, hidden),
        name + "mlp.down_proj.weight": weight(hidden, inner),
        name + "input_layernorm.weight": torch.ones(hidden).half(),
        name + "post_attention_layernorm.weight": torch.ones(hidden).half(),
    }
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
# bytes, and words that stand for themselves; engines try spaces and line breaks when they load a tokenizer
words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
words += [f"w{number}" for number in range(len(words), vocab)]
tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
tokenizer.save(str(folder / "tokenizer.json"))
special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
(folder / "tokenizer_config.json").write_text(json.dumps(special))
"""

COMMON = """
import json, sys, time
import torch
model_dir, prompt, new_tokens, out, split = (json.loads(word) for word in sys.argv[1:])
ids = torch.tensor([prompt])
def done(logits, tokens, **more):
    torch.save(logits.float().cpu(), out)
    peak = [torch.cuda.max_memory_allocated(card) // 2**20 for card in range(torch.cuda.device_count())]
    print(json.dumps({"tokens": tokens, "peak_mib": peak, **more}))
def timed(work):
    torch.cuda.synchronize()
    began = time.monotonic()
    result = work()
    torch.cuda.synchronize()
    return result, time.monotonic() - began
def generate(generator, new_job):
    generator.enqueue(new_job())
    tokens = []
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                tokens += result["token_ids"].flatten().tolist()
    return tokens
"""
#: Each loads the model, says the logits after the prompt, and generates; the second time counts.
RUN = {
    "reference": """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float16).cuda()
with torch.inference_mode():
    logits = model(ids.cuda()).logits[0, -1]
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    made = model.generate(ids.cuda(), **length, do_sample=False, pad_token_id=0)
done(logits, made[0, len(prompt):].tolist())
""",
    "v2": """
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler
config = ExLlamaV2Config(model_dir)
config.no_flash_attn = config.no_sdpa = True        # as exllama-server.service has it
model = ExLlamaV2(config)
_nothing, load_seconds = timed(lambda: model.load(split))
devices = sorted({module.device_idx for module in model.modules if (module.device_idx or 0) >= 0} - {None})
cache = ExLlamaV2Cache(model, max_seq_len=1024)
with torch.inference_mode():
    logits = model.forward(ids, cache)[0, -1]
cache.current_seq_len = 0
tokenizer = ExLlamaV2Tokenizer(config)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer, paged=False, max_batch_size=1)
greedy = ExLlamaV2Sampler.Settings.greedy()
def new_job():
    return ExLlamaV2DynamicJob(input_ids=ids, max_new_tokens=new_tokens, gen_settings=greedy)
generate(generator, new_job)
tokens, seconds = timed(lambda: generate(generator, new_job))
done(logits, tokens, load_seconds=load_seconds, tokens_per_second=new_tokens / seconds, devices=devices)
""",
    "v3": """
from exllamav3 import Cache, Config, Generator, GreedySampler, Job, Model, Tokenizer
config = Config.from_directory(model_dir)
model = Model.from_config(config)
cache = Cache(model, max_num_tokens=2048)        # as much as load tries at once
_nothing, load_seconds = timed(lambda: model.load(use_per_device=split))
devices = sorted({str(module.device) for module in model.modules if "cuda" in str(module.device)})
tokenizer = Tokenizer.from_config(config)
with torch.inference_mode():
    logits = model.forward(ids, {"attn_mode": "flash_attn_nc"})[0, -1]
generator = Generator(model=model, cache=cache, tokenizer=tokenizer, max_batch_size=1)
def new_job():
    return Job(input_ids=ids, max_new_tokens=new_tokens, sampler=GreedySampler())
generate(generator, new_job)
tokens, seconds = timed(lambda: generate(generator, new_job))
done(logits, tokens, load_seconds=load_seconds, tokens_per_second=new_tokens / seconds, devices=devices)
""",
}


def clean():
    """The environment without the tests' own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def python(interpreter, program, *arguments):
    command = [str(interpreter), "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean(), cwd="/")
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def torch(box):
    """What the machine's PyTorch is: {version, packages}."""
    if not WHEELS:
        pytest.skip("MIXED_GPU_EXLLAMA_WHEELS names no folder with the engines' wheels")
    ask = (
        "import json, pathlib, torch; "
        "print(json.dumps({'version': torch.__version__, 'packages': str(pathlib.Path(torch.__file__).parents[1])}))"
    )
    return json.loads(python(sys.executable, ask))


@pytest.fixture(scope="module")
def nvcc():
    """What the machine's nvcc is: {version, root}; where it is called may be a wrapper's place."""
    program = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"

    def said(*options):
        return subprocess.run([program, *options], capture_output=True, text=True, check=True)

    top = re.search(r"^#\$ TOP=(.*)$", said("--dryrun", "-x", "cu", "-c", "/dev/null").stderr, re.MULTILINE)[1]
    return {"version": re.search("release ([0-9.]+)", said("--version").stdout)[1], "root": os.path.realpath(top)}


@pytest.fixture(scope="module")
def model(torch):
    folder = WORK / "model"
    python(sys.executable, MAKE_MODEL, str(folder))
    return folder


def built(engine, box, torch, nvcc):
    """Return the Python of an environment with the engine, its extension, and the machine's PyTorch."""
    package, version, needs = PACKAGES[engine]
    venv = WORK / engine / "venv"
    if not (venv / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)], check=True, env=clean())
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = pathlib.Path(python(venv / "bin/python", where).strip())
        (site / "torch_of_this_machine.pth").write_text(torch["packages"] + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--find-links", WHEELS]
        subprocess.run([*pip, "--target", str(site), package, *needs], check=True, env=clean())
        (venv / "ready").touch()
    # v2 for an RTX 3090 and an RTX 4090 as well: that there is code for each is checked after compiling.
    # v3 has four times the files
    architectures = {gpu["compute_capability"] for gpu in box["gpus"]} | ({"8.6", "8.9"} if engine == "v2" else set())
    with_what = f"PyTorch {torch['version']} and nvcc {nvcc['version']} for"
    record = {
        "package": package, "module": f"{package}_ext", "torch": torch["version"], "nvcc": nvcc["version"],
        "arch_list": ";".join(sorted(architectures)),
    }  # fmt: skip
    settings = {"cuda_root": nvcc["root"], "jobs": os.cpu_count(), "ccache_dir": str(WORK / "ccache")}
    lock = job.Lock(WORK / engine / ".lock", "extension", package)
    began = time.monotonic()
    try:
        shell = job.Shell(job.Log(WORK / engine / "extension.log"), lock)
        release_job.compile_extension(record, settings, venv, shell)
    except UserError as exc:
        said = f"{package} {version} does not compile with {with_what} {record['arch_list']}: {exc}"
        pytest.fail(f"{said} What is known to compile: {KNOWN_TO_BUILD}.", pytrace=False)
    finally:
        lock.release()
    took = f"{time.monotonic() - began:.0f} s with {settings['jobs']} compilers"
    print(f"{package} {version} with {with_what} {record['arch_list']}: extension in {took}")
    return venv / "bin/python"


@pytest.mark.parametrize("engine", ["v2", "v3"])
def test_a_random_model_is_split_as_told_and_says_what_transformers_says(engine, box, torch, nvcc, model):
    interpreter = built(engine, box, torch, nvcc)
    prompt = [3 + (number * 47) % 2000 for number in range(PROMPT_TOKENS)]
    cards = len(box["gpus"])
    # 0.19 GB of weights; the engines count their scratch memory (v2: 0.15 GB a card) as well
    split = [1.0] if cards == 1 else [0.28] + [2.0] * (cards - 1)
    said = {}
    for name, program in (("reference", sys.executable), (engine, interpreter)):
        given = [str(model), prompt, NEW_TOKENS, str(WORK / f"{name}.pt"), split]
        answer = python(program, COMMON + RUN[name], *(json.dumps(value) for value in given))
        said[name] = json.loads(answer.splitlines()[-1])
    # an engine may pad the vocabulary
    compare = (
        "import sys, torch; a, b = (torch.load(path) for path in sys.argv[1:]); n = min(len(a), len(b)); "
        "print(torch.nn.functional.cosine_similarity(a[:n], b[:n], dim=0).item())"
    )
    similarity = float(python(sys.executable, compare, str(WORK / "reference.pt"), str(WORK / f"{engine}.pt")))
    print(json.dumps({"split_gb": split, "similarity_of_logits": similarity, **said[engine]}))
    print(json.dumps({"transformers": said["reference"]}))
    assert similarity > 0.99
    assert len(said[engine]["tokens"]) == NEW_TOKENS
    # later ones may part: random weights give close races, and sums are added in another order
    assert said[engine]["tokens"][0] == said["reference"]["tokens"][0]
    assert len(said[engine]["devices"]) == min(cards, 2)
