# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A disk that changes content by itself."""

from __future__ import annotations

import json
import pathlib

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import manifest


def damage(path: pathlib.Path, manifest_dir: pathlib.Path) -> None:
    """Change the first bytes of a model file so that nothing that its manifest keeps of it tells."""
    with path.open("r+b") as handle:
        handle.write(b"damage")
    file = pathlib.Path(manifest.manifest_path(str(manifest_dir), str(path)))
    kept = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(kept | manifest.state(str(path))), encoding="utf-8")
