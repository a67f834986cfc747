"""Behaves, and misbehaves, like llama-server, for what the real one cannot be made to do at will.

FAKE_MODE says how, in split mode tensor only: ok, refuse, hang_load, hang_answer, die_answer, short, other_soak,
idle_hang (once it had nothing to do for half a second), out_of_memory, other (other tokens are likely), nan (what is
likely is no number). FAKE_REFERENCE=1: in layer mode, too. FAKE_SAYS is printed by the server in split mode
tensor.
FAKE_MUTE=n: the first n starts print nothing and end in failure; where FAKE_PORT is set,
llama-server says that its port is taken.
"""

import hashlib
import http.server
import json
import os
import sys
import time

arguments = sys.argv[1:]
tensor = arguments[arguments.index("-sm") + 1] == "tensor"
mode = os.environ["FAKE_MODE"] if tensor or os.environ.get("FAKE_REFERENCE") else "ok"
me = os.path.basename(sys.argv[0])
with open(os.environ["FAKE_LOG"], "a+", encoding="utf-8") as log:
    log.write(" ".join([me, os.environ.get("GGML_CUDA_ALLREDUCE", "-"), *arguments]) + "\n")
    log.seek(0)
    starts = sum(line.startswith(f"{me} ") and ("-sm tensor" in line) == tensor for line in log)
if tensor and starts <= int(os.environ.get("FAKE_MUTE", "0")):
    if os.environ.get("FAKE_PORT"):
        print("0.00.100.000 E srv  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1")
    sys.exit(1)

if mode == "refuse":
    print("0.00.1 E llama_model_load: error: LLAMA_SPLIT_MODE_TENSOR not implemented for architecture 'mamba'")
    sys.exit(1)
if mode == "out_of_memory":
    where = "ggml_backend_cuda_buffer_type_alloc_buffer"
    print(f"{where}: allocating 812.00 MiB on device 1: cudaMalloc failed: out of memory")
    sys.exit(1)
if mode == "hang_load":
    time.sleep(600)

if tensor:
    print(os.environ.get("FAKE_SAYS", ""), flush=True)

answers = 0
last = None


def candidates(prompt, count):
    """Return the likeliest tokens: they follow from the prompt, and differ a little from mode to mode."""
    values = []
    for token in range(100, 300):
        digest = hashlib.sha256(f"{mode == 'other'} {prompt} {token}".encode()).digest()
        values.append((token, digest[0] / 20 + (0.0002 * digest[1] if tensor else 0)))
    top = sorted(values, key=lambda one: -one[1])[:count]
    return [{"id": token, "logprob": None if mode == "nan" else value - 20} for token, value in top]


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
        if self.path == "/props":
            self.reply({"default_generation_settings": {"n_ctx": 512}})
        elif self.path == "/v1/models":
            self.reply({"data": [{"meta": {"n_vocab": 512}}]})
        else:
            self.reply({"status": "ok"})

    def do_POST(self):
        global answers, last
        if self.headers["Authorization"] != f"Bearer {os.environ['LLAMA_API_KEY']}":
            self.send_error(401)
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.reply({"tokens": [1, *asked["content"].encode()]})
            return
        if "n_probs" in asked:
            self.reply({"completion_probabilities": [{"top_logprobs": candidates(asked["prompt"], asked["n_probs"])}]})
            last = time.monotonic()
            return
        answers += 1
        late = answers > 3
        if mode == "idle_hang" and last is not None and time.monotonic() - last > 0.5:
            time.sleep(600)
        if mode == "hang_answer" and late:
            time.sleep(600)
        if mode == "die_answer" and late:
            os.write(1, b"GGML_ASSERT(false) failed\n")
            os.abort()
        # the answer parts from layer mode's at the third token
        tokens = [7, 8, 9 if tensor else 10, *range(20, 20 + asked["n_predict"] - 3)]
        if mode == "short" and late:
            tokens = tokens[:-1]
        if mode == "other_soak" and late:
            tokens[1] = 99
        timings = {"prompt_n": 16, "predicted_n": len(tokens), "predicted_per_second": 20.0 + answers % 3}
        self.reply({"tokens": tokens, "timings": timings})
        last = time.monotonic()


port = int(arguments[arguments.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
