#!/usr/bin/env bash
# On a machine with two NVIDIA cards, PyTorch, nvcc and no network: compile ExLlama's extension, test splits on the cards.
#
#   tests/gpu/run_exllama.sh WHEELS ENGINE [WORK]
#
# WHEELS  folder with wheels for this machine's Python, see below
# ENGINE  exllamav2 or exllamav3: the extension of one takes minutes to compile, so one at a time
# WORK    where everything is made (default: build/exllama, which git ignores; what is compiled there is used again)
#
# The wheels, from a machine with a network (PyTorch, NumPy and Triton are those of this machine):
#   pip download -d WHEELS --only-binary :all: --python-version 3.12 ansible-core pytest nvidia-ml-py
#   pip download -d WHEELS --no-deps exllamav2==0.3.2 exllamav3==1.6.5
#   pip download -d WHEELS --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_31_x86_64 \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 rich markdown-it-py mdurl \
#     pygments pillow ninja safetensors tokenizers huggingface-hub marisa-trie pydantic pydantic-core annotated-types typing-inspection \
#     typing-extensions llguidance pyyaml regex
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$(realpath "$1") engine=$2 work=${3:-$root/build/exllama}
mkdir -p "$work/site" "$work/collections/ansible_collections/homelab"

echo "== Python packages into $work/site"
python3 -m pip install -q --no-index --no-compile --find-links "$wheels" --target "$work/site" --upgrade \
  ansible-core pytest nvidia-ml-py
python3 -m pip install -q --no-index --no-compile --no-deps --find-links "$wheels" --target "$work/site" --upgrade "$engine"
# of what the engine needs, only what this machine lacks: another NumPy would not fit its PyTorch
for package in rich:rich markdown_it:markdown-it-py mdurl:mdurl pygments:pygments PIL:pillow ninja:ninja safetensors:safetensors \
    tokenizers:tokenizers huggingface_hub:huggingface-hub marisa_trie:marisa-trie pydantic:pydantic pydantic_core:pydantic-core \
    annotated_types:annotated-types typing_inspection:typing-inspection typing_extensions:typing-extensions llguidance:llguidance \
    yaml:pyyaml regex:regex; do
  PYTHONPATH=$work/site python3 -c "import ${package%%:*}" 2>/dev/null ||
    python3 -m pip install -q --no-index --no-compile --no-deps --find-links "$wheels" --target "$work/site" "${package#*:}"
done
ln -sfn "$root" "$work/collections/ansible_collections/homelab/mixed_gpu"
export PYTHONPATH=$work/site:$work/collections PATH=$work/site/bin:/usr/local/cuda/bin:$PATH
export TORCH_EXTENSIONS_DIR=$work/extensions MAX_JOBS=${MAX_JOBS:-$(nproc)}
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
export TORCH_CUDA_ARCH_LIST

echo "== the extension of $engine, for $TORCH_CUDA_ARCH_LIST"
began=$SECONDS
python3 -c "import torch, $engine; print(torch.__version__, torch.version.cuda, $engine.__file__)" > "$work/$engine.log" 2>&1 ||
  { tail -n 40 "$work/$engine.log"; exit 1; }
tail -n 1 "$work/$engine.log"
echo "== imported after $((SECONDS - began)) s"

echo "== tests on the cards"
cd "$root"
python3 -m pytest -v -rs -s -p no:cacheprovider -k "$engine" tests/gpu/test_exllama_split_on_cards.py
