# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What -e name=value gives is text: true, false and numbers mean what they say."""

from __future__ import annotations

import json
import pathlib

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"

FILES = (
    "gpu_power/defaults/main",
    "gpu_power/vars/main",
    "host_preflight/defaults/main",
    "revalidation_timer/vars/main",
    "revalidation_timer/defaults/main",
)


def test_false_on_the_command_line_is_false(playbook, tmp_path):
    measure = "__revalidation_timer_host_variables.revalidate_measure"
    play = {
        "hosts": "localhost", "connection": "local", "gather_facts": False,
        "vars_files": [f"{ROLES}/{name}.yml" for name in FILES],
        "tasks": [{"ansible.builtin.debug": {"msg": [
            "{{ __gpu_power_asked }}", "{{ __gpu_power_limits_by_name | length }}",
            "{{ host_preflight_power_limits_watts | length }}", f"{{{{ {measure} }}}}",
        ]}}],
    }  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps([play]))

    def shown(word: str) -> list[object]:
        status, output = playbook(
            str(tmp_path / "play.yml"),
            "-e", f"gpu_power_use_limits_by_name={word}", "-e", f"revalidation_timer_measure={word}",
        )  # fmt: skip
        assert status == 0, output
        return json.loads(output.split('"msg": ')[1].split("]")[0] + "]")

    assert shown("false") == [False, 0, 0, "auto"]
    assert shown("true") == [True, 2, 2, "true"]
