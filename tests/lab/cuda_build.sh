#!/usr/bin/env bash
# Compile llama.cpp's CUDA backend for an RTX 3090 and an RTX 4090, with the toolkit that the role cuda_toolkit makes out
# of NVIDIA's wheels, on a test host without a card. Flash attention is left out and nvcc optimises less: the test asks
# whether the backend builds and links. Half an hour on two idle cores; ccache makes the next run short.
#
# Environment: CUDA_BUILD_NCCL=true to build with NCCL as well (0.3 GB more to fetch).
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export LAB_HOST=${LAB_HOST:-mixed-gpu-cuda-build} NO_COLOR=1 ANSIBLE_NOCOLOR=1
trap 'rm -f "$play"' EXIT
play=$(mktemp /tmp/cuda-build.XXXXXX.yml)

say() { printf 'cuda-build | %s\n' "$*"; }
inside() { tests/lab/lab.sh run "${LAB_ENGINE:-podman}" exec "$LAB_HOST" "$@"; }

cat > "$play" <<PLAY
- name: Install the CUDA toolkit
  hosts: mixed_gpu
  gather_facts: false
  vars:
    cuda_toolkit_source: wheels
    cuda_toolkit_nccl: ${CUDA_BUILD_NCCL:-false}
  roles:
    - role: homelab.mixed_gpu.cuda_toolkit
  tasks:
    # programs with CUDA do not start without the driver's library
    - name: Install the stub in the place of the driver's library
      ansible.builtin.shell: install -m 644 {{ cuda_toolkit_installed.root }}/lib/stubs/libcuda.so /usr/local/lib/libcuda.so.1 && ldconfig
- name: Build llama.cpp
  hosts: mixed_gpu
  gather_facts: false
  vars:
    llama_cpp_backends: [cuda, rpc]
    llama_cpp_native: false
    llama_cpp_cuda_architectures: [86, 89]
    llama_cpp_targets: [llama-bench]
    llama_cpp_timeout_seconds: 14400
    llama_cpp_cmake_options: {GGML_CUDA_FA: false, CMAKE_CUDA_FLAGS: "-Ofc max"}
    llama_cpp_cuda_root: "{{ cuda_toolkit_installed.root }}"
    llama_cpp_nccl_root: "{{ cuda_toolkit_installed.nccl_root }}"
  roles:
    - role: homelab.mixed_gpu.llama_cpp
PLAY
tests/lab/lab.sh create "$LAB_HOST"
began=$SECONDS
tests/lab/lab.sh run ansible-playbook -i molecule/cuda_toolkit/inventory/hosts.yml "$play"
say "built in $((SECONDS - began)) s"
library=$(inside sh -c 'ls /opt/llama.cpp/current/bin/libggml-cuda.so*' | head -n 1)
code=$(inside sh -c "strings -a '$library' | grep -o 'sm_8[69]' | sort -u | tr '\n' ' '")
[ "$code" = "sm_86 sm_89 " ] || { say "$library has code for '$code', not for both cards"; exit 1; }
inside sh -c "ldd '$library' | grep -q 'libcublas.so.*=> /opt/mixed_gpu/cuda/'" || { say "$library does not find its cuBLAS"; exit 1; }
say "$library has code for $code and finds its libraries"
tests/lab/lab.sh destroy "$LAB_HOST"
