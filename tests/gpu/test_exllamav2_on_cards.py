# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On a real card: the role's own script compiles the engines' extensions against the machine's PyTorch, and a random model generates.

Run it with tests/gpu/exllama.sh, whose head says what to bring. MIXED_GPU_EXLLAMA_WHEELS is the folder with the wheels,
MIXED_GPU_EXLLAMA_WORK where everything is made; what was compiled there is not compiled again. The model is a small
Llama in fp16 with random weights. What an engine makes of it is compared with transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WHEELS = os.environ.get("MIXED_GPU_EXLLAMA_WHEELS", "")
WORK = pathlib.Path(os.environ.get("MIXED_GPU_EXLLAMA_WORK", "/tmp/mixed-gpu-exllama"))
PACKAGES = {
    "v2": ("exllamav2", "0.3.2", ["exllamav2"]),
    "v3": ("exllamav3", "1.6.5", ["exllamav3", "marisa-trie", "llguidance", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"]),
}  # fmt: skip
KNOWN_TO_BUILD = "exllamav2 0.3.2 and PyTorch 2.11.0 with nvcc 13.0 (the role's own pins)"
PROMPT_TOKENS, NEW_TOKENS = 64, 32

SPEC = importlib.util.spec_from_file_location("exllama_release", ROOT / "roles/exllamav2/files/exllama_release.py")
exllama_release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(exllama_release)

MAKE_MODEL = """
import json, pathlib, sys
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

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
tensors = {"model.embed_tokens.weight": torch.randn(vocab, hidden).half(), "model.norm.weight": torch.ones(hidden).half(),
           "lm_head.weight": weight(vocab, hidden)}
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
words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, vocab)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
"""

COMMON = """
import json, sys, time
import torch
model_dir, prompt, new_tokens, out, split = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5])
def done(logits, tokens, **more):
    torch.save(logits.float().cpu(), out)
    used = [torch.cuda.max_memory_allocated(card) // 2**20 for card in range(torch.cuda.device_count())]
    print(json.dumps({"tokens": tokens, "peak_mib": used, **more}))
"""
RUN = {
    "reference": COMMON + """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float16).cuda()
ids = torch.tensor([prompt]).cuda()
with torch.inference_mode():
    logits = model(ids).logits[0, -1]
    made = model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
done(logits, made[0, len(prompt):].tolist())
""",
    "v2": COMMON + """
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2Sampler
config = ExLlamaV2Config(model_dir)
config.no_flash_attn = True
model = ExLlamaV2(config)
began = time.monotonic()
model.load(split)
loaded = time.monotonic() - began
devices = sorted({module.device_idx for module in model.modules if module.device_idx is not None and module.device_idx >= 0})
cache = ExLlamaV2Cache(model, max_seq_len=1024)
ids = torch.tensor([prompt])
with torch.inference_mode():
    logits = model.forward(ids, cache)[0, -1]
cache.current_seq_len = 0
tokenizer = ExLlamaV2Tokenizer(config)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer, paged=False, max_batch_size=1)
text = " ".join(f"w{token}" for token in prompt)
settings = ExLlamaV2Sampler.Settings.greedy()
def generate():
    return generator.generate(prompt=text, max_new_tokens=new_tokens, gen_settings=settings, add_bos=False, completion_only=True)
generate()
torch.cuda.synchronize()
began = time.monotonic()
said = generate()
torch.cuda.synchronize()
took = time.monotonic() - began
done(logits, tokenizer.encode(said)[0].tolist(), load_seconds=round(loaded, 2), tokens_per_second=round(new_tokens / took, 1), devices=devices)
""",
    "v3": COMMON + """
from exllamav3 import Cache, Config, Generator, GreedySampler, Model, Tokenizer
config = Config.from_directory(model_dir)
model = Model.from_config(config)
cache = Cache(model, max_num_tokens=1024)
began = time.monotonic()
model.load(use_per_device=split)
loaded = time.monotonic() - began
devices = sorted({str(module.device) for module in model.modules if module.device is not None})
tokenizer = Tokenizer.from_config(config)
with torch.inference_mode():
    logits = model.forward(torch.tensor([prompt]), {"attn_mode": "flash_attn_nc"})[0, -1]
generator = Generator(model=model, cache=cache, tokenizer=tokenizer, max_batch_size=1)
text = " ".join(f"w{token}" for token in prompt)
def generate():
    return generator.generate(prompt=text, max_new_tokens=new_tokens, sampler=GreedySampler(), add_bos=False, completion_only=True)
generate()
torch.cuda.synchronize()
began = time.monotonic()
said = generate()
torch.cuda.synchronize()
took = time.monotonic() - began
done(logits, tokenizer.encode(said)[0].tolist(), load_seconds=round(loaded, 2), tokens_per_second=round(new_tokens / took, 1), devices=devices)
""",
}  # fmt: skip


def clean():
    """The environment without the tests' own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def python(interpreter, program, *arguments):
    done = subprocess.run(
        [str(interpreter), "-c", program, *arguments], capture_output=True, text=True, check=False, env=clean(), cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def torch(box):
    """What the machine's PyTorch is: {version, cuda, packages}."""
    if not WHEELS:
        pytest.skip("MIXED_GPU_EXLLAMA_WHEELS names no folder with the engines' wheels")
    ask = "import json, pathlib, torch; print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, " \
          "'packages': str(pathlib.Path(torch.__file__).parents[1])}))"  # fmt: skip
    found = json.loads(python(sys.executable, ask))
    print(json.dumps(found))
    return found


@pytest.fixture(scope="module")
def model(torch):
    folder = WORK / "model"
    python(sys.executable, MAKE_MODEL, str(folder))
    return folder


def built(engine, box, torch):
    """The engine's environment beside the machine's PyTorch, its extension compiled by the role's script; its Python."""
    package, version, wheels = PACKAGES[engine]
    venv = WORK / engine / "venv"
    if not (venv / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)], check=True, env=clean())
        site = pathlib.Path(
            python(venv / "bin/python", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        (site / "torch_of_this_machine.pth").write_text(torch["packages"] + "\n", encoding="utf-8")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--find-links",
            WHEELS,
            "--target",
            str(site),
        ]
        subprocess.run([*pip, *wheels], check=True, env=clean())
        (venv / "ready").touch()
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    architectures = sorted({gpu["compute_capability"] for gpu in box["gpus"]})
    job = {
        "cuda_root": str(pathlib.Path(os.path.realpath(nvcc)).parents[1]), "jobs": os.cpu_count(), "ccache_dir": str(WORK / "ccache"),
        "extension_script": str(ROOT / "roles/exllamav2/files/exllama_extension.py"),
        "record": {
            "package": package, "module": f"{package}_ext", "arch_list": ";".join(architectures), "torch": torch["version"],
            "nvcc": said.partition("release ")[2].partition(",")[0],
        },
    }  # fmt: skip
    log = exllama_release.Log(WORK / engine / "extension.log")
    began = time.monotonic()
    try:
        exllama_release.extension(job, venv, log)
    except exllama_release.Failure as exc:
        pytest.fail(
            f"{package} {version} does not compile with PyTorch {torch['version']} and nvcc {job['record']['nvcc']} for "
            f"{job['record']['arch_list']}: {exc} What is known to compile: {KNOWN_TO_BUILD}.", pytrace=False,
        )  # fmt: skip
    print(
        f"{package} {version}, PyTorch {torch['version']}, nvcc {job['record']['nvcc']}, {job['record']['arch_list']}: "
        f"extension in {time.monotonic() - began:.0f} s with {job['jobs']} compilers"
    )
    return venv / "bin/python"


@pytest.mark.parametrize("engine", ["v2", "v3"])
def test_a_random_model_is_split_as_told_and_says_what_transformers_says(engine, box, torch, model):
    interpreter = built(engine, box, torch)
    prompt = [3 + (number * 37) % 2000 for number in range(PROMPT_TOKENS)]
    cards = len(box["gpus"])
    # the model has 0.23 GB; engines count scratch memory as well, so less than half of it in numbers would not fit
    split = [0.5] * cards if cards == 1 else [0.28] + [2.0] * (cards - 1)
    results, logits = {}, {}
    for name, program in (("reference", sys.executable), (engine, interpreter)):
        out = WORK / f"{name}.pt"
        answer = python(
            program, RUN[name], str(model), json.dumps(prompt), str(NEW_TOKENS), str(out), json.dumps(split)
        )
        results[name], logits[name] = json.loads(answer.splitlines()[-1]), str(out)
    compare = "import sys, torch; a, b = (torch.load(path) for path in sys.argv[1:]); n = min(len(a), len(b)); " \
              "print(torch.nn.functional.cosine_similarity(a[:n], b[:n], dim=0).item(), (a[:n].argmax() == b[:n].argmax()).item())"  # fmt: skip
    similarity, same = python(sys.executable, compare, logits["reference"], logits[engine]).split()
    print(
        json.dumps(
            {"split_gb": split, "similarity_of_logits": float(similarity), "same_first_token": same, **results[engine]}
        )
    )
    assert len(results[engine]["tokens"]) >= NEW_TOKENS - 2  # an end-of-text token ends it sooner
    assert float(similarity) > 0.99
    assert len(results[engine]["devices"]) == min(cards, 2)
    assert results[engine]["tokens"][0] == results["reference"]["tokens"][0] or same == "False"
