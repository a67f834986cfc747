# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Option of the modules that run again in the Python of the role host_python (module_utils/_base/host_python.py)."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options:
  host_python:
    description: Python with the libraries of P(homelab.mixed_gpu.host_python#role), for what the module's own lacks.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
"""
    NVML = r"""
options:
  host_python:
    description: Python with the libraries of P(homelab.mixed_gpu.host_python#role), for what the module's own lacks.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - nvidia-ml-py >= 12.535.108, in the interpreter that runs the module or in O(host_python), to ask cards
"""
