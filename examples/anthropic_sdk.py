"""The `anthropic` package, unchanged; only the address is ours."""

import os

from anthropic import Anthropic

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("GW_MODEL", "smollm2-135m")

client = Anthropic(base_url=URL, api_key=os.environ.get("GW_KEY", "none"))

print(
    "tokens:",
    client.messages.count_tokens(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}]
    ).input_tokens,
)

message = client.messages.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    max_tokens=64,
)
print("answer:", [part.text for part in message.content if part.type == "text"])
