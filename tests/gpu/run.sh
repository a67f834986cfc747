#!/usr/bin/env bash
# On a machine with an NVIDIA card, CUDA and no network: build llama.cpp with CUDA, probe the card, tune a random model.
#
#   tests/gpu/run.sh WHEELS SOURCE [WORK]
#
# WHEELS  folder with wheels for this machine's Python: ansible-core, pytest, nvidia-ml-py, gguf, and what they need
# SOURCE  llama.cpp's source tree, or a part of it that holds CMakeLists.txt, cmake, common, ggml, include, src, tools, vendor
# WORK    where everything is made (default: a new directory below /tmp)
# Environment: CUDA_ARCHITECTURES (default: the card's own), JOBS (default: all CPUs), TESTS (default: all of tests/gpu),
# NCCL_ROOT (a folder with include/nccl.h and lib/libnccl.so, for split mode tensor between cards).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$(realpath "$1") source=$(realpath "$2") work=${3:-$(mktemp -d /tmp/mixed-gpu-test.XXXXXX)}
mkdir -p "$work/site" "$work/collections/ansible_collections/homelab"

echo "== Python packages into $work/site"
python3 -m pip install -q --no-index --no-compile --find-links "$wheels" --target "$work/site" --upgrade \
  ansible-core pytest nvidia-ml-py gguf
ln -sfn "$root" "$work/collections/ansible_collections/homelab/mixed_gpu"
export PYTHONPATH=$work/site:$work/collections PATH=$work/site/bin:/usr/local/cuda/bin:$PATH

echo "== llama.cpp with CUDA and RPC into $work/build"
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
began=$SECONDS
cmake -S "$source" -B "$work/build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DGGML_RPC=ON \
  -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-native}" -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DGGML_CUDA_NCCL="$([ -n "${NCCL_ROOT:-}" ] && echo ON || echo OFF)" -DNCCL_ROOT="${NCCL_ROOT:-}" \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  > "$work/cmake.log" 2>&1 || { tail -n 20 "$work/cmake.log"; exit 1; }
cmake --build "$work/build" --parallel "${JOBS:-$(nproc)}" --target llama-bench llama-server ggml-rpc-server llama-fit-params > "$work/build.log" 2>&1 ||
  { tail -n 20 "$work/build.log"; exit 1; }
echo "== built in $((SECONDS - began)) s"

echo "== the role cuda_toolkit, with the toolkit that is here"
cd "$work"
cat > cuda.yml <<'PLAY'
- hosts: localhost
  connection: local
  gather_facts: false
  roles:
    - role: homelab.mixed_gpu.cuda_toolkit
PLAY
ANSIBLE_COLLECTIONS_PATH=$work/collections ANSIBLE_LOCALHOST_WARNING=0 \
  python3 -m ansible playbook cuda.yml -e cuda_toolkit_source=existing -e ansible_python_interpreter="$(command -v python3)"

echo "== preflight of this machine; what stops it (no systemd in a container, say) is for its reader, not a failure here"
printf 'mixed_gpu: {hosts: {box: {ansible_connection: local, ansible_become: false, ansible_python_interpreter: %s}}}\n' \
  "$(command -v python3)" > hosts.yml
ANSIBLE_COLLECTIONS_PATH=$work/collections python3 -m ansible playbook -i hosts.yml homelab.mixed_gpu.preflight > preflight.log 2>&1 || true
cat preflight.log
grep -q 'operating system' preflight.log

echo "== tests on the card"
cd "$root"
read -ra tests <<<"${TESTS:-tests/gpu}"
MIXED_GPU_LLAMA_BIN=$work/build/bin python3 -m pytest -v -rs -s -p no:cacheprovider "${tests[@]}"
