"""Many prompts in one call; each result is printed when it is ready, not when all are."""

import json
import os

import httpx

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
HEADERS = {"authorization": f"Bearer {os.environ.get('GW_KEY', 'none')}"}

body = {
    "requests": [
        {"prompt": "The capital of France is", "max_tokens": 8},
        {"prompt": "Once upon a time", "max_tokens": 16},
        {"prompt": "This one is refused", "max_tokens": -1},  # and does not hurt the others
    ],
    "temperature": 0,
    "stream": True,
}
with (
    httpx.Client(base_url=URL, headers=HEADERS, timeout=300) as client,
    client.stream("POST", "/batch_generate", json=body) as response,
):
    response.raise_for_status()
    for line in response.iter_lines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if event["type"] == "batch_generate.result":
            result = event["result"]
            print(event["index"], result.get("text") or f"refused: {result['detail']}")
        else:
            print("succeeded:", event["response"]["stats"]["succeeded"])
