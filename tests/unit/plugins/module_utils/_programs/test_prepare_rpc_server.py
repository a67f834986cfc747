# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import prepare_rpc_server


def _fill(folder, sizes):
    """Write files of these sizes, of which the first was not used for longest."""
    (folder / "rpc").mkdir()
    for index, size in enumerate(sizes):
        path = folder / "rpc" / f"{index:016x}"
        path.write_bytes(b"x" * size)
        os.utime(path, (1_000_000 + index, 1_000_000))
    return folder


def test_without_a_filter_nothing_starts(capsys):
    assert prepare_rpc_server.filtered() is False
    assert prepare_rpc_server.main(["--filtered"]) == 1
    assert "No start: systemd's address filter is not in effect here" in capsys.readouterr().err


def test_what_was_not_used_for_longest_leaves_the_cache_first(tmp_path, capsys):
    folder = _fill(tmp_path, [1 << 20] * 4)
    assert prepare_rpc_server.main(["--cache", str(folder), "--most-gib", str(2 / 1024)]) == 0
    assert sorted(os.listdir(folder / "rpc")) == [f"{2:016x}", f"{3:016x}"]
    assert "Removed 2 files" in capsys.readouterr().out


def test_the_caches_of_all_servers_are_bounded_each(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _fill(tmp_path / name, [1 << 20] * 3)
    assert prepare_rpc_server.main(["--caches", str(tmp_path), "--most-gib", str(2 / 1024)]) == 0
    assert [len(os.listdir(tmp_path / name / "rpc")) for name in ("a", "b")] == [2, 2]
    assert capsys.readouterr().out.count("Removed 1 files of ") == 2
    assert prepare_rpc_server.main(["--caches", str(tmp_path / "none"), "--most-gib", "1"]) == 0


def test_what_a_server_removes_meanwhile_keeps_nobody_from_bounding_the_rest(tmp_path, monkeypatch):
    rpc = str(_fill(tmp_path, [1 << 20] * 4) / "rpc")
    monkeypatch.setattr(os, "walk", lambda folder: [(rpc, [], [*sorted(os.listdir(rpc)), "gone before the look"])])
    unlink = os.unlink

    def gone_before_the_removal(path):
        unlink(path)
        if path.endswith("0"):
            raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", gone_before_the_removal)
    assert prepare_rpc_server.prune(rpc, 2 << 20) == [f"{rpc}/{number:016x}" for number in (1, 2)]


def test_a_cache_within_its_bound_stays(tmp_path, capsys):
    folder = _fill(tmp_path, [1 << 20] * 2)
    assert prepare_rpc_server.main(["--cache", str(folder), "--most-gib", "1"]) == 0
    assert len(os.listdir(folder / "rpc")) == 2 and capsys.readouterr().out == ""


def test_a_cache_that_is_not_there_yet_is_none(tmp_path):
    assert prepare_rpc_server.prune(str(tmp_path / "none"), 0) == []
