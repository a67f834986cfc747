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
        if self.allowed():
            counted = asked.get("stream_options", {}).get("include_usage")
            usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": asked["max_tokens"]}
            text = json.loads(said.read_text())["ANSWER"] if said.exists() else "four"
            self.answer(200, {"choices": [{"text": text}], "usage": usage if counted else None})
        else:
            self.answer(401, {"detail": "Please provide an API key"})


http.server.ThreadingHTTPServer((config["network"]["host"], config["network"]["port"]), Handler).serve_forever()
