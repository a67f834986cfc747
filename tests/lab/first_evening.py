# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""first_evening.py TARBALL: do on a fresh test host what docs/first_evening.md says, as a person at a terminal does.

Every console block of the page is run in order, by a user who has to give a password to sudo. The block after an editor
is what is typed into it; a text block shows output. The host knows nothing of the checkout: it gets the
built collection, and a pip that installs the versions this project pins.
"""

from __future__ import annotations

import json
import os
import pathlib
import pty
import re
import select
import shlex
import subprocess
import sys
import typing as t

PROJECT: t.Final = pathlib.Path(__file__).resolve().parents[2]
PAGE: t.Final = PROJECT / "docs/first_evening.md"
USER: t.Final = "you"
PASSWORD, VAULT_PASSWORD = "the-password-of-you", "the-password-of-the-vault"  # of a test host
MARK: t.Final = "=== "
#: Asked after the last command: what a container engine has not yet shown when a command ends, it may never show.
END: t.Final = f"\n{MARK}end: "
#: What is asked, and what is answered; Enter takes what `init` proposes.
ANSWERS: t.Final = {
    rf"\[sudo\] password for {USER}: |BECOME password: ": PASSWORD,
    r"Vault password(?: \(.*\))?: ": VAULT_PASSWORD,
    r"(?:Model of the catalogue|Tokens that a conversation|Networks that may ask)[^\n]*: ": "",
    END: "",
}
#: Longer without a word than any step is.
SILENCE_SECONDS: t.Final = 1800
REBOOT: t.Final = "sudo reboot"
EDITOR: t.Final = "/usr/local/bin/type-text"
CONSTRAINTS: t.Final = "/usr/local/share/constraints.txt"


class Step(t.NamedTuple):
    """A command of the page, and what is typed into the editor that it opens ("" for none)."""

    command: str
    typed: str = ""


def steps(page: str) -> list[Step]:
    """Return the commands of a page in order. ValueError for a block of text that no editor takes."""
    found: list[Step] = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "console":
            found += [Step(command) for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE)]
        elif language == "text":
            continue
        elif not found or found[-1].typed or not re.search(r"EDITOR|ansible-vault edit", found[-1].command):
            raise ValueError(f"no editor takes this block: {body}")
        else:
            found[-1] = found[-1]._replace(typed=body)
    return found


def sessions(all_steps: t.Iterable[Step]) -> list[list[Step]]:
    """Return the steps between reboots."""
    found: list[list[Step]] = [[]]
    for step in all_steps:
        if step.command == REBOOT:
            found.append([])
        else:
            found[-1].append(step)
    return found


def script(some_steps: t.Iterable[Step]) -> str:
    """Return a shell script that shows each command and runs it, and ends where one fails."""
    # a busy machine may take longer than Ansible's ten seconds to answer sudo
    quiet = "ANSIBLE_NOCOLOR=1 NO_COLOR=1 ANSIBLE_TIMEOUT=60"
    lines = ["set -eo pipefail", f"export EDITOR={EDITOR} PIP_CONSTRAINT={CONSTRAINTS} {quiet}"]
    for step in some_steps:
        lines.append(f"printf '\\n{MARK}%s s: %s\\n' \"$SECONDS\" {shlex.quote(step.command)}")
        if step.typed:
            lines.append(f"printf %s {shlex.quote(step.typed)} > ~/.typed")
        lines.append(step.command)
    return "\n".join([*lines, f"read -rp {shlex.quote(END)}"])


def said(transcript: str, number: int) -> str:
    """Return what the command of this number printed; -1 is the last one."""
    return transcript.partition(END)[0].split(f"\n{MARK}")[1:][number].partition("\n")[2]


class Host:
    """A fresh test host with a user."""

    def __init__(self) -> None:
        self.name = os.environ["LAB_HOST"]
        self.engine = os.environ.get("LAB_ENGINE", "podman")

    def lab(self, command: str) -> None:
        """Have lab.sh do something with the host."""
        subprocess.run([str(PROJECT / "tests/lab/lab.sh"), command, self.name], check=True)

    def run(self, command: str, given: bytes = b"") -> str:
        """Run a shell command as root, and return what it printed."""
        argv = [self.engine, "exec", "-i", self.name, "sh", "-ec", command]
        return subprocess.run(argv, input=given, check=True, stdout=subprocess.PIPE).stdout.decode()

    def prepare(self, tarball: pathlib.Path) -> None:
        """Make the host anew, with a user, an editor that types by itself, and the tarball in the user's home."""
        self.lab("destroy")
        self.lab("create")
        self.run(f"useradd --create-home --shell /bin/bash --groups sudo {USER}")
        self.run("chpasswd", f"{USER}:{PASSWORD}".encode())
        self.run(f"cat > {EDITOR}; chmod 755 {EDITOR}", b'#!/bin/sh\ncat ~/.typed >> "$1"\n')
        pinned = (PROJECT / "requirements/development.txt").read_text(encoding="utf-8")
        versions = re.findall(r"^[\w.-]+==[^\\\n]+", pinned, re.MULTILINE)
        self.run(f"cat > {CONSTRAINTS}", "\n".join(versions).encode())
        self.run(f"cat > /home/{USER}/{tarball.name}", tarball.read_bytes())

    def reboot(self) -> None:
        """Stop the host, start it again and wait for systemd."""
        subprocess.run([self.engine, "stop", "-t", "20", self.name], check=True, stdout=subprocess.DEVNULL)
        self.lab("create")

    def terminal(self, commands: str) -> str:
        """Run a shell script in a terminal as the user, answer what is asked, and return what was shown."""
        pid, screen = pty.fork()
        if pid == 0:
            # `su` would take the terminal away, and sudo could not ask
            login = [f"--env={each}" for each in (f"HOME=/home/{USER}", f"USER={USER}", "LANG=C.UTF-8")]
            login += [f"--user={USER}", f"--workdir=/home/{USER}"]
            os.execvp(self.engine, [self.engine, "exec", "-it", *login, self.name, "bash", "-l", "-c", commands])
        shown = _converse(screen)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"the last command ended with {status}"
        return shown


def _converse(screen: int) -> str:
    """Show what a terminal shows, answer what is asked, and return all of it."""
    shown, open_question = "", 0
    while True:
        assert select.select([screen], [], [], SILENCE_SECONDS)[0], f"nothing was said for {SILENCE_SECONDS} s"
        try:
            chunk = os.read(screen, 65536)
        except OSError:     # how Linux says that the other side has closed
            chunk = b""
        if not chunk:
            return shown
        text = chunk.decode(errors="replace").replace("\r", "")
        shown += text
        sys.stdout.write(text)
        sys.stdout.flush()
        for question, answer in ANSWERS.items():
            if re.search(f"(?:{question})$", shown[open_question:]):
                open_question = len(shown)
                os.write(screen, f"{answer}\n".encode())


def main(tarball: str) -> int:
    """Return 0 when the page leads to an answer."""
    host = Host()
    all_steps = steps(PAGE.read_text(encoding="utf-8"))
    before, after = sessions(all_steps)
    host.prepare(pathlib.Path(tarball))
    first = host.terminal(script(before))
    host.reboot()
    second = host.terminal(script(after))

    key = next(step.typed for step in all_steps if "vault_llama_server_api_key:" in step.typed).split()[1]
    assert host.run("cat /etc/mixed_gpu/llama-server.key").strip() == key
    again = next(number for number, step in enumerate(after) if step.command.endswith(".site"))
    assert re.search(r"changed=0 .*failed=0", said(second, again)), "a run after the reboot changes something"
    last = said(second, -1)
    answer = json.JSONDecoder().raw_decode(last[last.index("{") :])[0]
    assert answer["choices"][0]["message"]["content"] and answer["usage"]["completion_tokens"] > 0, answer
    secrets = [word for word in (PASSWORD, VAULT_PASSWORD, key) if word in first + second]
    assert not secrets, "a password or the key was shown"
    assert host.run(f"ls /home/{USER}/llm-box/reports").split(), "no report was written"
    print(f"first-evening | answered: {answer['choices'][0]['message']['content'][:60]!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
