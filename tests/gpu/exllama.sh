#!/usr/bin/env bash
# On a machine with an NVIDIA card, nvcc and PyTorch, and no network: compile ExLlama's extensions, load and generate.
#
#   tests/gpu/exllama.sh WHEELS [WORK] [pytest options, such as -k v2]
#
# WHEELS  folder with wheels for this machine's Python, for Python 3.12:
#           pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 \
#             --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 -d WHEELS --no-deps \
#             exllamav2==0.3.2 exllamav3==1.6.5 marisa-trie==1.4.1 llguidance==1.9.1 pydantic==2.14.3 pydantic-core==2.50.4 \
#             annotated-types typing-inspection typing-extensions \
#             ansible-core==2.19.14 jinja2 markupsafe pyyaml cryptography cffi pycparser packaging resolvelib \
#             pytest pluggy iniconfig pygments nvidia-ml-py
#         On the machine itself must be: torch, safetensors, tokenizers, transformers, numpy, ninja, rich, regex, pillow.
# WORK    where everything is made (default /tmp/mixed-gpu-exllama). What was compiled there is kept, and a run that was cut
#         is gone on with when called again: v2 has 47 files to compile, v3 194.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$(realpath "$1") work=${2:-/tmp/mixed-gpu-exllama}
shift $(($# > 1 ? 2 : 1))
mkdir -p "$work/site" "$work/collections/ansible_collections/homelab"
python3 -m pip install -q --no-index --no-compile --find-links "$wheels" --target "$work/site" --upgrade ansible-core pytest nvidia-ml-py
ln -sfn "$root" "$work/collections/ansible_collections/homelab/mixed_gpu"
cd "$root"
PATH=$work/site/bin:/usr/local/cuda/bin:$PATH PYTHONPATH=$work/site:$work/collections \
MIXED_GPU_EXLLAMA_WHEELS=$wheels MIXED_GPU_EXLLAMA_WORK=$work \
  python3 -m pytest -v -rs -s -p no:cacheprovider tests/gpu/test_exllamav2_on_cards.py "$@"
