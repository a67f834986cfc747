# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the lab keeps outside of a checkout. That hosts run is seen in Molecule's scenarios."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

LAB = pathlib.Path(__file__).parents[2] / "lab"


def test_the_engine_of_the_lab_outlives_the_checkout_that_made_it(tmp_path: pathlib.Path) -> None:
    engine, environment = tmp_path / "lab/bin/docker", {**os.environ, "LAB_DIR": str(tmp_path / "lab")}
    environment.pop("LAB_ENGINE", None)
    for name in ("first", "second"):
        checkout = tmp_path / name
        checkout.mkdir()
        shutil.copy(LAB / "lab.sh", checkout)
        (checkout / "podman").write_text(f"#!/bin/sh\necho {name}\n")
        (checkout / "podman").chmod(0o755)
        # without root it ends after that
        subprocess.run([checkout / "lab.sh", "hosts"], env=environment, capture_output=True, check=False)
        shutil.rmtree(checkout)
        assert subprocess.run([engine], capture_output=True, text=True, check=True).stdout == f"{name}\n"
