"""A llama-server that gives the candidates of a next token, right or wrong, as real devices cannot be made to.

FAKE_MODE: ok; exchange (a placement of several devices is wrong); device, device0 (RPC1, RPC0 is wrong, alone and in a
placement); nan, nan_device (of a placement of several devices, of RPC1); zeros (all are equally likely, in a placement
of several); nothing_alone (a device alone is out of memory); nothing (nobody starts); hang (a device alone does not
answer).
FAKE_CPU=refuse: the CPU alone does not start.
"""

import hashlib
import http.server
import json
import math
import os
import sys
import time

arguments = sys.argv[1:]


def last(flag):
    return arguments[len(arguments) - arguments[::-1].index(flag)]


devices = [] if last("-dev") == "none" else last("-dev").split(",")
mode = os.environ["FAKE_MODE"]
with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
    log.write(" ".join(arguments) + "\n")
several, second = len(devices) > 1, "RPC1" in devices
if mode == "nothing" or (mode == "nothing_alone" and len(devices) == 1):
    where = "ggml_backend_cuda_buffer_type_alloc_buffer"
    print(f"{where}: allocating 812.00 MiB on device 1: cudaMalloc failed: out of memory")
    sys.exit(1)
if not devices and os.environ.get("FAKE_CPU") == "refuse":
    print("0.00.1 E llama_model_load: error: no memory for the model")
    sys.exit(1)
wrong = (mode == "exchange" and several) or (mode == "device" and second) or (mode == "device0" and "RPC0" in devices)
no_number = (mode == "nan" and several) or (mode == "nan_device" and second)


def candidates(prompt, count):
    """Return the likeliest tokens: they follow from the prompt, and differ a little from device to device."""
    seed = f"{'wrong' if wrong else ''}{prompt}"
    values = []
    for token in range(100, 400):
        digest = hashlib.sha256(f"{seed} {token}".encode()).digest()
        noise = hashlib.sha256(f"{seed} {token} {devices}".encode()).digest()[0] / 255 - 0.5
        values.append((token, 0.0 if mode == "zeros" and several else digest[0] / 20 + 0.02 * noise))
    total = math.log(sum(math.exp(value) for _token, value in values))
    top = sorted(values, key=lambda one: -one[1])[:count]
    return [{"id": token, "logprob": None if no_number else value - total} for token, value in top]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_words):
        pass

    def reply(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        context = int(last("-c"))
        self.reply({"default_generation_settings": {"n_ctx": context}} if self.path == "/props" else {"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.reply({"tokens": [1, *asked["content"].encode()]})
            return
        if mode == "hang" and len(devices) == 1:
            time.sleep(600)
        top = candidates(asked["prompt"], asked["n_probs"])
        self.reply({"tokens": [7], "completion_probabilities": [{"id": 7, "top_logprobs": top}]})


http.server.HTTPServer(("127.0.0.1", int(last("--port"))), Handler).serve_forever()
