"""Stands in for TabbyAPI, commit NUMBER."""

import http.server
import json
import pathlib

from loguru import logger

config = json.loads(pathlib.Path("config.yml").read_text())
keys = {}
# what it says beside the truth
said = pathlib.Path("/srv/models/stand_in.json")
logger.add("logs/{time}.log")
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

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.answer(401, {"detail": "Please provide an API key"})
        elif self.path == "/v1/chat/completions":
            self.chat(asked)
        else:
            counted = asked.get("stream_options", {}).get("include_usage")
            usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": asked["max_tokens"]}
            text = json.loads(said.read_text())["ANSWER"] if said.exists() else "four"
            self.answer(200, {"choices": [{"text": text}], "usage": usage if counted else None})

    def chat(self, asked):
        named = {"id": "chatcmpl-1", "created": 1, "model": config["model"]["model_name"]}
        message = {"role": "assistant", "content": "Rome."}
        if not asked.get("stream"):
            usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
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
