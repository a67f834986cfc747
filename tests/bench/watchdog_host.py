"""watchdog_host.py PAIRS: what the watchdog's looks cost a decode. Runs on a host with the role server_watchdog.

Pairs of requests, one beside a process that looks as the watchdog does, fifty times as often, one without; the order
alternates. One look in five seconds would drown in the noise of a shared machine, fifty times as many do not. Prints
JSON.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
import urllib.request

LIB = "/opt/mixed_gpu/lib"
KEY_FILE = pathlib.Path("/etc/mixed_gpu/llama-server.key")
LOOKS_PER_SECOND = 10
TOKENS = 150
LOOKS = f"""
import sys, time
sys.path.insert(0, {LIB!r})
from mixed_gpu_watchdog import host, settings, watch
wanted = settings.read(settings.PATH)
dog = watch.Watch(wanted, "/nonexistent", host.Server(wanted.url, sys.stdin.readline().strip(), 5))
due = time.monotonic()
while True:
    dog.look()
    due += 1 / {LOOKS_PER_SECOND}
    time.sleep(max(0.0, due - time.monotonic()))
"""


def decode_ms(url: str, key: str) -> float:
    """Return the server's own time per generated token."""
    body = {"prompt": "One, two,", "n_predict": TOKENS, "cache_prompt": False, "ignore_eos": True, "temperature": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/completion", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return float(json.load(answer)["timings"]["predicted_per_token_ms"])


def main() -> None:
    """Measure, and print the pairs (with, without) in ms per token and the interval of the watchdog's own looks."""
    settings = json.loads(pathlib.Path("/etc/mixed_gpu/watchdog.json").read_text())
    key = KEY_FILE.read_text().strip() if KEY_FILE.exists() else ""
    decode_ms(settings["url"], key)
    pairs = []
    for pair in range(int(sys.argv[1])):
        found = {}
        for looking in (True, False) if pair % 2 else (False, True):
            looks = (
                subprocess.Popen([sys.executable, "-c", LOOKS], stdin=subprocess.PIPE, text=True) if looking else None
            )
            if looks and looks.stdin:
                looks.stdin.write(f"{key}\n")
                looks.stdin.flush()
                time.sleep(0.5)
            found[looking] = decode_ms(settings["url"], key)
            if looks:
                assert looks.poll() is None, "the looks ended"
                looks.kill()
                looks.wait()
        pairs.append([found[True], found[False]])
    print(json.dumps({"pairs": pairs, "looks_per_second": LOOKS_PER_SECOND, "poll_seconds": settings["poll_seconds"]}))


if __name__ == "__main__":
    main()
