# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: exllamav2_release
short_description: Work out what a release of ExLlama consists of, and its key
version_added: 0.1.0
description:
  - Takes what a release is made of and returns the key that changes exactly when the result would, the name of its
    directory, and what stops it from being compiled.
options:
  _input:
    description:
      - The release, with the keys C(engine) (V(v2) or V(v3)), C(python), C(requirements) (text), C(server) (C(url) and
        C(commit)), C(build_extension), C(nvcc) (what it says about its version), C(driver) and C(architectures).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Plan a release
  ansible.builtin.set_fact:
    example_release: "{{ wanted | homelab.mixed_gpu.exllamav2_release }}"
  vars:
    wanted:
      engine: v2
      python: "3.12"
      requirements: "{{ lookup('ansible.builtin.file', 'requirements_v2.txt') }}"
      server: {url: "https://example.com/tabbyAPI.git", commit: 79126f904c2e00aece026b36bb70bbb87e4892b2}
      build_extension: true
      nvcc: Cuda compilation tools, release 13.0, V13.0.88
      driver: 580.95.05
      architectures: [86, 89]
"""

RETURN = r"""
_value:
  description: The release.
  type: dict
  contains:
    key:
      description: SHA-256 of everything that changes the result.
      type: str
    directory:
      description: Version of the engine and first twelve digits of the key.
      type: str
    record:
      description: What C(build.json) will say.
      type: dict
    trouble:
      description: One sentence about why its extension cannot be compiled, or nothing.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_plan


def exllamav2_release(wanted: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the planned release."""
    try:
        return exllama_plan.plan(**wanted)
    except TypeError as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.exllamav2_release: {exc}") from exc
    except KeyError as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.exllamav2_release: the key {exc} is missing") from exc
    except exllama_plan.ExllamaError as exc:
        raise AnsibleFilterError(f"ExLlama cannot be installed as asked: {exc}.") from None  # Ansible would repeat it


class FilterModule:
    """Filter that plans releases of ExLlama."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"exllamav2_release": exllamav2_release}
