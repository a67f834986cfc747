# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of the modules that put files of models on a host, see module_utils/_models/placed_file.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options:
  manifest_dir:
    description: Directory of the manifests, which say what was put there, and make a second run quick.
    type: path
    default: /var/lib/mixed_gpu/models
  trusted_owners:
    description:
      - Users, by name or number, whose directories are taken as they are.
      - Without, nothing is written below a directory that belongs to another user than root or who runs the module,
        because that user could have it written elsewhere by a link.
    type: list
    elements: str
    default: []
"""
