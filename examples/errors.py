"""What a refusal looks like, and trying again only where that can help."""

import os
import time

import httpx
import openai

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GW_KEY", "none")
TRIES = 5


def generate(client: httpx.Client, body: dict[str, object]) -> httpx.Response:
    """429 and 503 are for later, and `Retry-After` says when; every other refusal is for good."""
    for _ in range(TRIES):
        response = client.post("/generate", json=body)
        if response.status_code not in (429, 503) or "retry-after" not in response.headers:
            break
        time.sleep(float(response.headers["retry-after"]))
    return response


with httpx.Client(base_url=URL, headers={"authorization": f"Bearer {KEY}"}, timeout=300) as client:
    print("answered:", generate(client, {"prompt": "Hello", "max_tokens": 4}).json()["text"])
    problem = generate(client, {"prompt": "Hello", "max_tokens": 0}).json()
    print("refused:", problem["status"], problem["code"], problem["param"], problem["detail"])
    print("for the operator:", problem["request_id"])

try:
    openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY).chat.completions.create(
        model="no-such-model", messages=[{"role": "user", "content": "Hello"}]
    )
except openai.NotFoundError as error:
    print("OpenAI's shape:", error.status_code, error.code, error.param)
