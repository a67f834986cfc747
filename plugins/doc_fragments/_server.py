# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of the modules that ask a running server, see module_utils/_llama_cpp/llama_client.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options:
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  api_key_file:
    description: File on the host that holds the API key. An absent or empty file means that the server needs none.
    type: path
"""
