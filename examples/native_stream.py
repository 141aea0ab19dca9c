"""A streamed thought with httpx: each event as it comes, and the thought ended when we have seen enough."""

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import httpx

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
HEADERS = {"authorization": f"Bearer {os.environ.get('GW_KEY', 'none')}"}
ENOUGH = 20  # pieces of a thought


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


with httpx.Client(base_url=URL, headers=HEADERS, timeout=300) as client:
    request_id = str(uuid.uuid4())
    body = {"question": "What is RSA?", "thinking_budget": 64, "max_tokens": 160, "stream": True}
    headers = {"x-request-id": request_id}
    pieces = 0
    with client.stream("POST", "/thinking", json=body, headers=headers) as response:
        response.raise_for_status()
        for event in events(response):
            if event["type"] == "thinking.reasoning.delta":
                pieces += 1
                if pieces == ENOUGH:
                    # 404 if the thought was over already; then there is nothing to end.
                    client.post(f"/thinking/{request_id}/answer_now")
            elif event["type"] == "thinking.answer.delta":
                print(event["delta"], end="", flush=True)
            elif event["type"] == "thinking.completed":
                print("\nthe thought ended by:", event["response"]["reasoning"]["end_reason"])

    body = {"prompt": "Once upon a time", "max_tokens": 16, "stream": True}
    with client.stream("POST", "/generate", json=body) as response:
        response.raise_for_status()
        for event in events(response):
            print(event.get("delta", "\n"), end="", flush=True)
