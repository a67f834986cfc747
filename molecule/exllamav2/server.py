"""Stands in for TabbyAPI, commit NUMBER."""

import http.server
import json
import os
import pathlib

from loguru import logger

config = json.loads(pathlib.Path("config.yml").read_text())
keys = {}
# what it says beside the truth
said = pathlib.Path("/srv/models/stand_in.json")
logger.add("logs/{time}.log")
#: What a token takes without and with a draft (ms), as it says itself.
PLAIN_MS, DRAFTED_MS = map(float, os.environ.get("FAKE_ANSWER_MS", "20,20").split(","))
#: How many of ten drafted tokens are right, told by ExLlamaV3 alone.
RIGHT = 6
draft = config.get("draft_model") or {}
third = config["model"]["backend"] == "exllamav3"
if draft.get("draft_model_name"):
    folder = pathlib.Path(draft["draft_model_dir"], draft["draft_model_name"])
    assert (folder / "config.json").exists() and len(draft["draft_gpu_split"]) == len(config["model"]["gpu_split"])
    if os.environ.get("FAKE_DRAFT") == "too large":
        raise SystemExit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB")
    if os.environ.get("FAKE_DRAFT") != "not taken":
        logger.info(f"{'Using' if third else 'Loading'} draft model: {folder}")
logger.info(f"Loading model: {config['model']['model_dir']}/{config['model']['model_name']}")
if not config["network"]["disable_auth"]:
    keys = json.loads(pathlib.Path("api_tokens.yml").read_text())
    logger.info(f"Your API key is: {keys['api_key']}\nYour admin key is: {keys['admin_key']}")
assert pathlib.Path("templates/here").exists() and pathlib.Path("sampler_overrides/here").exists()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        return not keys or self.headers.get("Authorization") == f"Bearer {keys['api_key']}"

    def do_GET(self):
        if self.path == "/health":
            self.answer(200, {"status": "healthy", "issues": []})
        elif self.allowed():
            self.answer(200, {"id": config["model"]["model_name"], "commit": int("NUMBER")})
        else:
            self.answer(401, {"detail": "Please provide an API key"})

    def usage(self, prompt, written):
        """As TabbyAPI counts, and rounds, what an answer took."""
        drafting = bool(draft.get("draft_model_name"))
        if drafting and not third:
            written = max(1, written - 4)  # ExLlamaV2 stops where a whole draft has no room left
        written_ms = written * (DRAFTED_MS if drafting else PLAIN_MS)
        took = {"prompt_time": round(prompt / 1000, 2), "completion_time": round(written_ms / 1000, 2)}
        if drafting and third:
            logger.info(f"Metrics (Generate: 9 T/s, Draft: {RIGHT * written} / {10 * written} tokens accepted (60%))")
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, **took}

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.answer(401, {"detail": "Please provide an API key"})
        elif self.path == "/v1/chat/completions":
            self.chat(asked)
        else:
            counted = asked.get("stream_options", {}).get("include_usage")
            usage = self.usage(len(asked["prompt"].split()), asked["max_tokens"])
            text = json.loads(said.read_text())["ANSWER"] if said.exists() else "four"
            self.answer(200, {"choices": [{"text": text}], "usage": usage if counted else None})

    def chat(self, asked):
        named = {"id": "chatcmpl-1", "created": 1, "model": config["model"]["model_name"]}
        message = {"role": "assistant", "content": "Rome."}
        if not asked.get("stream"):
            usage = self.usage(9, max(2, asked.get("min_tokens", 0)))
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {**named, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        deltas = [({"role": "assistant", "content": "Ro"}, None), ({"content": "me."}, None), ({}, "stop")]
        for delta, reason in deltas:
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            chunk = {**named, "object": "chat.completion.chunk", "choices": choices}
            self.wfile.write(f"data: {json.dumps(chunk)}\r\n\r\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\r\n\r\n")


http.server.ThreadingHTTPServer((config["network"]["host"], config["network"]["port"]), Handler).serve_forever()
