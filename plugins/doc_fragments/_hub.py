# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of the modules that ask the hub about a repository, see module_utils/_models/hub_lookup.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options:
  repo:
    description: The repository, as C(owner/name).
    type: str
    required: true
  revision:
    description: Branch, tag or commit.
    type: str
    default: main
  quant:
    description: Name of the quantisation, such as V(Q4_K_M), as it stands in the names of GGUF files, in any case.
    type: str
  endpoint:
    description:
      - Address of the hub, or of a mirror of it.
      - What is not set is the environment variable E(HF_ENDPOINT), or V(https://huggingface.co).
    type: str
  token_file:
    description:
      - File on the host with an access token, for gated and private repositories. Only its owner may read it.
      - A file that is missing counts as no token.
    type: path
  attempts:
    description: How often to ask while the hub does not answer, or answers with a passing fault.
    type: int
    default: 5
  retry_seconds:
    description: Pause before the second attempt. It doubles with every further one. A longer one that the hub asks for
      in any of its headers is kept, up to ten minutes.
    type: float
    default: 1
  timeout_seconds:
    description: How long the hub may stay silent.
    type: int
    default: 30
  host_python:
    description: Python interpreter with the C(huggingface_hub) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
"""
