# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import cuda_toolkit

WISHES = {
    "root": "/usr/local/cuda", "wheels_dir": "/opt/cuda", "cublas": True, "nccl": False,
    "requirements": "nvidia-cuda-nvcc==13.0.88 --hash=sha256:00\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "root"),
    [("existing", WISHES["root"]), ("nvidia", WISHES["root"]), ("distribution", "/usr"), ("none", WISHES["root"])],
)
def test_where_toolkits_are(source, root):
    found = cuda_toolkit.toolkit(source, "13.0", WISHES)
    assert found == {
        "root": root, "nvcc": f"{root}/bin/nvcc", "source": source, "version": "13.0", "nccl_root": "",
    }  # fmt: skip


def test_another_list_of_wheels_is_another_toolkit():
    first = cuda_toolkit.toolkit("wheels", "13.0", WISHES)["root"]
    other = cuda_toolkit.toolkit("wheels", "13.0", {**WISHES, "requirements": "x\n"})["root"]
    assert first.startswith("/opt/cuda/13.0-") and len(first) == len("/opt/cuda/13.0-") + 12 and first != other
    assert cuda_toolkit.wheels_job(WISHES)["name"] == first.rpartition("/")[2]


def test_nccl_comes_with_the_wheels_alone():
    wishes = {**WISHES, "nccl": True}
    there = cuda_toolkit.toolkit("wheels", "13.0", wishes)
    assert there["nccl_root"] == f"{there['root']}/nccl"
    with pytest.raises(UserError, match="cuda_toolkit_source to wheels"):
        cuda_toolkit.toolkit("distribution", "12.4", wishes)


def test_no_source_installs_a_driver():
    assert cuda_toolkit.packages("nvidia", "12.8") == ["cuda-toolkit-12-8", "g++"]
    assert cuda_toolkit.packages("existing", "12.8") == cuda_toolkit.packages("none", "") == []
    assert "cuda" not in cuda_toolkit.packages("distribution", "12.4")


def test_room_on_the_disk_is_asked_for_before_the_download():
    cuda_toolkit.check_disk("wheels", "/opt", 2560)
    cuda_toolkit.check_disk("existing", "/usr", 0)
    with pytest.raises(UserError, match="/usr has 8191 MiB free, and the CUDA toolkit needs 8192 MiB"):
        cuda_toolkit.check_disk("nvidia", "/usr", 8191)


def test_the_check_program_is_compiled_for_the_cards_or_for_the_pair():
    there = cuda_toolkit.toolkit("existing", "13.0", WISHES)
    both = ["-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_89,code=sm_89"]
    assert cuda_toolkit.compile_flags(there, WISHES, ["8.9", "8.6", "8.9"]) == both
    assert cuda_toolkit.compile_flags(there, WISHES, []) == both
    assert cuda_toolkit.compile_flags(there, WISHES, ["9.0"]) == ["-gencode=arch=compute_90,code=sm_90"]


def test_what_the_wheels_add_is_linked_too():
    wishes = {**WISHES, "nccl": True}
    there = cuda_toolkit.toolkit("wheels", "13.0", wishes)
    flags = cuda_toolkit.compile_flags(there, wishes, [])
    assert {"-lcuda", "-lcublas", "-lnccl", "-DWITH_NCCL", f"-L{there['root']}/lib/stubs"} <= set(flags)
    assert "-lcublas" not in cuda_toolkit.compile_flags(there, {**wishes, "cublas": False}, [])
