# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of the modules that measure under the lease and keep what they found, see module_utils/_measuring.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options:
  rpc_endpoints:
    description: Endpoints of the RPC devices, in the order that gives them their names.
    type: list
    elements: str
    default: []
  serving:
    description: The serving profile, see C(docs/data_formats.md).
    type: dict
    required: true
  environment:
    description: Environment variables for the programs, such as C(CUDA_DEVICE_ORDER) and C(CUDA_VISIBLE_DEVICES).
    type: dict
    default: {}
  campaign:
    description: Name of the campaign. Measurements of another campaign are never reused.
    type: str
    required: true
  fingerprint:
    description: SHA-256 of the configuration, that is of everything that can change a result.
    type: str
    required: true
  reuse_failures:
    description:
      - Whether a stored load that ran out of memory, crashed or timed out is an answer too.
      - Without, it is measured again, for a device that may have been repaired since.
    type: bool
    default: true
  state_dir:
    description: Directory that keeps one JSON file per load, and C(.lock), which is locked while measuring.
    type: path
    default: /var/lib/mixed_gpu/measurements
  lock_wait_seconds:
    description: How long to wait for another measurement on this host to end.
    type: int
    default: 1800
  lease_unit:
    description:
      - Unit that must be active before and after the measurement, and be the same one; else the sample is discarded
        and the task fails.
      - An empty string means that no lease is needed.
    type: str
    default: mixed-gpu-lease.service
  lease_owner:
    description: Owner that the lease must have. When empty, any owner will do.
    type: str
    default: ""
  lease_file:
    description: State file of M(homelab.mixed_gpu.measurement_lease), touched before and after the measurement.
    type: path
    default: /run/mixed_gpu/lease.json
"""
    TEXTS = r"""
options:
  texts:
    description: The texts to answer.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Kind of the text. Several texts may be of one kind.
        type: str
        required: true
      prompt:
        description: The text. C(llama-server) takes a list of token ids, too.
        type: raw
        required: true
  generated_tokens:
    description: How many tokens each answer has.
    type: int
    default: 192
  prompt_tokens:
    description: About how many tokens a long prompt has, of which the time is measured too; V(0) for none.
    type: int
    default: 0
  load_timeout_seconds:
    description: Time after which loading the model counts as a hang.
    type: int
    default: 900
  request_timeout_seconds:
    description: Time after which one answer counts as a hang.
    type: int
    default: 300
"""
