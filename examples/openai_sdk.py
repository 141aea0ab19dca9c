"""The `openai` package, unchanged; only the address is ours."""

import os

from openai import OpenAI

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("GW_MODEL", "smollm2-135m")

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("GW_KEY", "none"))

print("models:", [model.id for model in client.models.list()])

chat = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    max_tokens=64,
    reasoning_effort="low",
)
print("chat:", chat.choices[0].message.content)
print("its thought:", chat.choices[0].message.model_dump().get("reasoning"))

text = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12)
print("completion:", text.choices[0].text)

response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=64)
print("response:", response.output_text)
