# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: llama_cpp_build
short_description: Work out the flags and the key of a build of llama.cpp
version_added: 0.1.0
description:
  - Takes what a build of llama.cpp is made of and returns its CMake arguments, the key that changes exactly when the
    result would, and the name of the directory that it is installed to.
options:
  _input:
    description:
      - The build, with the keys C(name), C(source), C(backends), C(native), C(cuda_root), C(cuda_architectures),
        C(cmake_options), C(targets) and C(toolchain).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Plan a build
  ansible.builtin.set_fact:
    example_build: "{{ wanted | homelab.mixed_gpu.llama_cpp_build }}"
  vars:
    wanted:
      name: main
      source: {kind: git, url: "https://example.com/llama.cpp.git", version: b11312}
      backends: [cpu, rpc]
      native: false
      cuda_root: /usr/local/cuda
      cuda_architectures: []
      cmake_options: {GGML_AVX512: false}
      targets: [llama-server, llama-bench]
      toolchain: {c: cc 14.2.0, cxx: c++ 14.2.0}
"""

RETURN = r"""
_value:
  description: The build.
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    key:
      description: SHA-256 of everything that changes the result.
      type: str
    directory:
      description: Version and first twelve digits of the key.
      type: str
    cmake_arguments:
      description: The options, sorted.
      type: list
      elements: str
    record:
      description: What C(build.json) will say.
      type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_plan


def llama_cpp_build(wanted: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the planned build."""
    try:
        return build_plan.plan(**wanted)
    except TypeError as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.llama_cpp_build: {exc}") from exc
    except KeyError as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.llama_cpp_build: the key {exc} is missing") from exc
    except build_plan.BuildError as exc:
        raise AnsibleFilterError(f"llama.cpp cannot be built as asked: {exc}.") from None  # Ansible would repeat it


class FilterModule:
    """Filter that plans builds."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"llama_cpp_build": llama_cpp_build}
