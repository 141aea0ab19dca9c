"""A streamed chat with the `openai` package; the reasoning comes first, in a field of its own."""

import os

from openai import OpenAI

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("GW_MODEL", "smollm2-135m")

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("GW_KEY", "none"))
stream = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is 2 + 3?"}],
    max_tokens=96,
    reasoning_effort="low",
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        thought = choice.delta.model_dump().get("reasoning")
        print(thought or choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\ntokens:", chunk.usage.completion_tokens)
