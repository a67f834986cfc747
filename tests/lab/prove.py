"""prove.py URL: ask the served model for a completion through the official OpenAI client, as a user's program would.

MIXED_GPU_API_KEY is the server's key.
"""

from __future__ import annotations

import os
import sys

import openai


def main(url: str) -> int:
    """Return 0 when the server at url answers a chat request with real tokens, else 1 after one sentence."""
    client = openai.OpenAI(
        base_url=f"{url}/v1", api_key=os.environ["MIXED_GPU_API_KEY"], max_retries=0, timeout=120
    )
    try:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Which card is faster?"}], max_tokens=16
        )
    except openai.OpenAIError as exc:
        print(f"{url} does not answer the OpenAI client: {exc}", file=sys.stderr)
        return 1
    usage = answer.usage
    if usage is None or usage.completion_tokens < 1:
        print(f"{url} answered without a single token: {answer}", file=sys.stderr)
        return 1
    text = answer.choices[0].message.content
    print(f"The OpenAI client got {usage.completion_tokens} tokens from {model} at {url} (random weights: {text!r}).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
