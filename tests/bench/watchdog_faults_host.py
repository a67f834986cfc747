"""watchdog_faults_host.py MINUTES: real faults of a served model, and mixed load. Runs on the sandbox's host as root.

Each fault is made in mid-decode, with the watchdog's own settings: the server or an RPC server stopped by a signal, an
RPC server killed, a program that answers and never gives a token. Each ends when the server answers again. A load of
three minutes and MINUTES of mixed load must restart nothing. Meanwhile the clock jumps, for the watchdog alone. Prints
JSON; what happens is said on stderr.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import pathlib
import random
import subprocess
import sys
import threading
import time
import typing as t
import urllib.request

SERVER, WATCHDOG, LEASE = "llama-server.service", "mixed-gpu-watchdog.service", "mixed-gpu-lease"
SETTINGS = json.loads(pathlib.Path("/etc/mixed_gpu/watchdog.json").read_text())
KEY_FILE = pathlib.Path("/etc/mixed_gpu/llama-server.key")
STATE = pathlib.Path("/var/lib/mixed_gpu/watchdog/state.json")
STAND_IN, MODE = pathlib.Path("/usr/local/lib/stand_in.py"), pathlib.Path("/run/watchdog_fault")
DROP_IN = pathlib.Path(f"/run/systemd/system/{SERVER}.d/fault.conf")
CLOCK_DROP_IN = pathlib.Path(f"/run/systemd/system/{WATCHDOG}.d/clock.conf")
CLOCK = pathlib.Path("/run/watchdog_clock")
CLOCK_LIBRARY = pathlib.Path("/usr/local/lib/watchdog_clock.so")
CLOCK_SOURCE = f"""
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {{
  long seconds = 0;
  int rc = syscall(SYS_clock_gettime, clock, at);
  FILE *file = rc || clock != CLOCK_REALTIME ? NULL : fopen("{CLOCK}", "r");
  if (file && fscanf(file, "%ld", &seconds) == 1)
    at->tv_sec += seconds;
  return file && fclose(file) ? -1 : rc;
}}
"""
LOAD_SECONDS = 180
DIES_AFTER_SECONDS = 5
#: Ends a wait that would last for ever; it says nothing about speed.
FOR_EVER = 1800
TEXT = "Once upon a time there was a box with two cards, and one of them was slow. "

PROGRAM = f"""
import http.server, os, pathlib, sys, threading, time
mode = pathlib.Path({str(MODE)!r})
mode = mode.read_text() if mode.exists() else ""
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass
    def do_GET(self):
        text = "llamacpp:requests_processing 1\\nllamacpp:n_decode_total 7\\n" if self.path == "/metrics" else "{{}}"
        self.send_response(503 if mode == "loads" else 200)
        self.end_headers()
        self.wfile.write(text.encode())
if mode == "dies":
    time.sleep({DIES_AFTER_SECONDS})
    sys.exit("error: no memory for the model")
if mode:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    time.sleep({LOAD_SECONDS} if mode == "loads" else {FOR_EVER})
    server.shutdown()
    server.server_close()
os.execv(sys.argv[1], sys.argv[1:])
"""


def ran(*command: str) -> str:
    """Return what a program printed. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def prop(unit: str, name: str) -> str:
    """Return a property of a unit."""
    return ran("systemctl", "show", "-p", name, "--value", unit)


def eventually(condition: t.Callable[[], t.Any], what: str, pause: float = 0.2) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + FOR_EVER
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {FOR_EVER} s: {what}")
        time.sleep(pause)


def asked(path: str, body: t.Any = None, seconds: float = 600) -> bytes:
    """Return the server's answer. Raises OSError."""
    headers = {"Content-Type": "application/json"}
    if KEY_FILE.exists():
        headers["Authorization"] = f"Bearer {KEY_FILE.read_text().strip()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SETTINGS["url"] + path, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return bytes(answer.read())


def completion(prompt: str, tokens: int, seconds: float = 600) -> int:
    """Return how many tokens a completion generated; 0 where there is no answer."""
    body = {"prompt": prompt, "n_predict": tokens, "cache_prompt": False, "ignore_eos": True}
    try:
        return int(json.loads(asked("/completion", body, seconds))["timings"]["predicted_n"])
    except (OSError, ValueError, KeyError):
        return 0


def processing() -> bool:
    """Return whether the server computes."""
    try:
        lines = asked("/metrics", seconds=10).decode().splitlines()
    except OSError:
        return False
    return any(line.startswith("llamacpp:requests_processing") and float(line.split()[1]) > 0 for line in lines)


def history() -> list[dict[str, t.Any]]:
    """Return the watchdog's restarts of the server."""
    known = json.loads(STATE.read_text()) if STATE.exists() else {"units": {}}
    return list(known["units"].get(SERVER, {}).get("restarts", []))


def restarts() -> int:
    """Return how often the watchdog restarted the server."""
    return len(history())


def forget() -> None:
    """Let earlier restarts count no more, as an hour does."""
    ran("systemctl", "stop", WATCHDOG)
    STATE.unlink(missing_ok=True)
    ran("systemctl", "reset-failed", SERVER)
    ran("systemctl", "start", WATCHDOG)


def ready() -> None:
    """Wait until the server answers with tokens."""
    eventually(lambda: completion("One, two,", 2, 20) == 2, "an answer", 0.5)


@contextlib.contextmanager
def decoding() -> t.Iterator[None]:
    """Keep completions running, so that the server computes whenever it is looked at."""
    over = threading.Event()

    def _run() -> None:
        while not over.is_set():
            if not completion("One, two,", 400):
                time.sleep(0.5)

    thread = threading.Thread(target=_run, daemon=True)
    thread.start()
    eventually(processing, "a decode")
    yield
    over.set()
    thread.join()


def say(text: str) -> None:
    """Say what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- faults ----------------------------------------------------------------------------------------------------------


def fault(name: str, make: t.Callable[[], str | None], by_watchdog: bool = True) -> dict[str, t.Any]:
    """Make a fault in mid-decode; return after how many seconds it was noticed, and after how many it was served.

    C(make) may return the start that has the fault, where it is another one.
    """
    ready()
    forget()
    start = prop(SERVER, "InvocationID")
    with decoding():
        begun, begun_at = time.monotonic(), time.time()
        if made := make():  # the stop of a server that computes takes its time, and is no part of the fault
            start, begun = made, time.monotonic()
        if by_watchdog:
            eventually(lambda: restarts() == 1, f"{name} noticed")
        else:
            eventually(lambda: prop(SERVER, "InvocationID") != start, f"{name} noticed")
        noticed = time.monotonic() - begun
    eventually(lambda: prop(SERVER, "InvocationID") != start, f"a new start after {name}")
    ready()
    served = time.monotonic() - begun
    say(f"{name}: noticed after {noticed:.0f} s, served again after {served:.0f} s")
    found = {"name": name, "noticed_seconds": noticed, "served_seconds": served, "restarts": restarts()}
    if by_watchdog:
        found["clock_seconds"] = round(history()[-1]["at"] - begun_at)
    return {**found, "by": "watchdog" if by_watchdog else "systemd"}


def send(signal: str, unit: str) -> None:
    """Send a signal to a unit's process: STOP lets it hold what it has and do nothing."""
    ran("kill", f"-{signal}", prop(unit, "MainPID"))


def jump(seconds: int) -> None:
    """Set the watchdog's clock so many seconds apart from the machine's."""
    CLOCK.write_text(f"{seconds:+d}\n")


def stop_and_set_back() -> None:
    """Stop the server, and set the clock two hours back once the watchdog has seen it."""
    send("STOP", SERVER)
    time.sleep(3 * SETTINGS["poll_seconds"])
    jump(-7200)


@contextlib.contextmanager
def other_clock() -> t.Iterator[None]:
    """Give the watchdog a clock that can be set."""
    jump(0)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(CLOCK_LIBRARY)], input=CLOCK_SOURCE, check=True, text=True
    )
    CLOCK_DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    CLOCK_DROP_IN.write_text(f"[Service]\nEnvironment=LD_PRELOAD={CLOCK_LIBRARY}\n")
    ran("systemctl", "daemon-reload")
    ran("systemctl", "restart", WATCHDOG)
    try:
        yield
    finally:
        for path in (CLOCK_DROP_IN, CLOCK_LIBRARY, CLOCK):
            path.unlink()
        ran("systemctl", "daemon-reload")
        ran("systemctl", "restart", WATCHDOG)


@contextlib.contextmanager
def stand_in() -> t.Iterator[None]:
    """Put a program before the server's: it becomes the server at once, after a long load, or never."""
    (command,) = [
        words.partition("=")[2]
        for words in ran("systemctl", "cat", SERVER).replace("\\\n", " ").splitlines()
        if words.startswith("ExecStart=")
    ]
    STAND_IN.parent.mkdir(parents=True, exist_ok=True)
    STAND_IN.write_text(PROGRAM)
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(
        f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 {STAND_IN} {command}\nMemoryDenyWriteExecute=no\n"
    )
    ran("systemctl", "daemon-reload")
    try:
        yield
    finally:
        for path in (DROP_IN, STAND_IN, MODE):
            path.unlink(missing_ok=True)
        ran("systemctl", "daemon-reload")
        ran("systemctl", "restart", SERVER)
        ready()


def restart_as(mode: str) -> str:
    """Have the stand-in be what it is told to be, for one start; return that start."""
    MODE.write_text(mode)
    ran("systemctl", "restart", SERVER)
    eventually(lambda: ran("sh", "-c", f"curl -sS {SETTINGS['url']}/health 2>/dev/null || :") == "{}", "the stand-in")
    MODE.unlink()
    return prop(SERVER, "InvocationID")


def long_load() -> dict[str, t.Any]:
    """Load for three minutes while the clock jumps forward by two hours; return what was seen."""
    forget()
    begun = time.monotonic()
    start = restart_as("loads")
    time.sleep(LOAD_SECONDS / 2)
    jump(7200)
    ready()
    seconds = time.monotonic() - begun
    kept = prop(SERVER, "InvocationID") == start
    say(f"a load of {seconds:.0f} s, restarts: {restarts()}")
    jump(0)
    return {"name": "long load", "seconds": seconds, "restarts": restarts(), "kept": kept}


def dies_in_each_load() -> dict[str, t.Any]:
    """Have the server die in each load until systemd gives up; return how often it was started, and what was told."""
    forget()
    since = time.strftime("%F %T")
    begun = time.monotonic()
    MODE.write_text("dies")
    ran("systemctl", "reset-failed", SERVER)
    ran("systemctl", "restart", SERVER)
    eventually(lambda: prop(SERVER, "ActiveState") == "failed", "a failed unit", 1)
    seconds = time.monotonic() - begun
    notice = f"{SERVER} failed"
    journal = ("sh", "-c", f"journalctl -t mixed-gpu-notify --no-pager -o cat --since '{since}' || :")
    eventually(lambda: notice in ran(*journal), "the notice of a failed unit", 1)
    (told,) = [line for line in ran(*journal).splitlines() if notice in line]
    MODE.unlink()
    starts = ran("journalctl", "-u", SERVER, "--no-pager", "-o", "cat", "--since", since).count("Started llama-server")
    say(f"failed after {starts} starts and {seconds:.0f} s: {told}")
    ran("systemctl", "reset-failed", SERVER)
    return {"starts": starts, "allowed": int(prop(SERVER, "StartLimitBurst")), "seconds": seconds, "told": told}


# --- mixed load ------------------------------------------------------------------------------------------------------


class Load:
    """Requests as they come to a server in use, one kind after the other, by a fixed dice."""

    def __init__(self) -> None:
        self.dice = random.Random(15)
        self.requests, self.tokens, self.leases = 0, 0, 0
        context = json.loads(asked("/props"))["default_generation_settings"]["n_ctx"]
        self.long = TEXT * (int(context * 0.6) // len(TEXT))  # each letter is a token of the sandbox's model

    def took(self, tokens: int) -> None:
        """Count an answer."""
        self.requests, self.tokens = self.requests + 1, self.tokens + tokens

    def chat(self) -> None:
        """Read a streamed chat to its end."""
        body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 60, "stream": True}
        self.took(asked("/v1/chat/completions", body).count(b"data:"))

    def leave(self) -> None:
        """Leave before the answer is there."""
        with contextlib.suppress(OSError):
            asked("/completion", {"prompt": self.long, "n_predict": 200}, 1)
        self.requests += 1

    def busy(self) -> None:
        """Send thirty requests at once."""
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            for tokens in pool.map(lambda number: completion(f"{number}, two,", 30), range(30)):
                self.took(tokens)

    def idle(self) -> None:
        """Leave the server alone for longer than a hang is waited for."""
        time.sleep(self.dice.choice((5, 20, SETTINGS["stall_seconds"] + 10)))

    def lease(self) -> None:
        """Take the devices away, as a measurement does."""
        unit = ("--unit", LEASE, "-p", f"Conflicts={SERVER}", "-p", f"After={SERVER}")
        ran("systemd-run", "--quiet", "--collect", "--wait", *unit, "sleep", "30")
        ran("systemctl", "start", SERVER)
        ready()
        self.leases += 1

    def run(self, minutes: float) -> dict[str, t.Any]:
        """Go on for so many minutes, and return what was done; a lease comes every ten minutes."""
        ready()
        forget()
        begun, starts = time.monotonic(), {prop(SERVER, "InvocationID")}
        kinds = (self.chat, self.leave, self.busy, self.idle, lambda: self.took(completion(self.long, 50)),
                 lambda: self.took(completion(TEXT, 400)))  # fmt: skip
        for turn in itertools.count():
            seconds = time.monotonic() - begun
            if seconds >= 60 * minutes:
                break
            if seconds >= 600 * (self.leases + 1):
                self.lease()
            self.dice.choice(kinds)()
            starts.add(prop(SERVER, "InvocationID"))
            if turn % 20 == 0:
                say(f"minutes: {seconds / 60:.0f}, requests: {self.requests}, restarts: {restarts()}")
        found = {"requests": self.requests, "tokens": self.tokens, "leases": self.leases, "restarts": restarts()}
        return {"name": "mixed load", "seconds": time.monotonic() - begun, "starts": len(starts), **found}


def main() -> None:
    """Make all faults, then the load, and print what was seen."""
    minutes = float(sys.argv[1])
    peer = SETTINGS["peer_units"][-1]
    faults = [
        fault("server stopped (SIGSTOP)", lambda: send("STOP", SERVER)),
        fault("RPC server stopped (SIGSTOP)", lambda: send("STOP", peer)),
        fault("RPC server killed", lambda: send("KILL", peer), by_watchdog=False),
    ]
    with other_clock():
        faults.append(fault("server stopped, and the clock set back by two hours", stop_and_set_back))
        jump(0)
        with stand_in():
            faults.append(fault("/health is 200, never a token", lambda: restart_as("hangs")))
            quiet = [long_load()]
            dies = dies_in_each_load()
    quiet.append(Load().run(minutes))
    wanted = {name: SETTINGS[name] for name in ("stall_seconds", "poll_seconds")}
    print(json.dumps({"faults": faults, "dies": dies, "quiet": quiet, **wanted}))


if __name__ == "__main__":
    main()
