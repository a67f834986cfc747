from __future__ import annotations

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[3] / "roles/llama_cpp/files/ask.py"


def test_every_command_gets_an_answer(tmp_path):
    commands = [
        ["sh", "-c", "echo out; echo err >&2"],
        ["sh", "-c", "echo; echo it is broken >&2; exit 3"],
        ["sh", "-c", "cat; kill -9 $$"],
        [str(tmp_path / "none"), "--version"],
        ["printf", "\\377\\n\\n"],
    ]
    # as the role runs it: the text of the file is an argument
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.read_text()],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert [answer["argv"] for answer in answers] == commands
    assert answers[0] == {"argv": commands[0], "rc": 0, "stdout": "out", "stderr": "err", "reason": ""}
    assert [answer["rc"] for answer in answers] == [0, 3, -9, 127, 0]
    reasons = ["", "it is broken", "exit status -9", "No such file or directory", ""]
    assert [answer["reason"] for answer in answers] == reasons
    assert answers[4]["stdout"] == "\ufffd"
