"""The native routes with httpx."""

import os

import httpx

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
HEADERS = {"authorization": f"Bearer {os.environ.get('GW_KEY', 'none')}"}

with httpx.Client(base_url=URL, headers=HEADERS, timeout=300) as client:
    body = {"prompt": "The capital of France is", "max_tokens": 8}
    told = client.post("/generate", json=body).raise_for_status().json()
    print("generate:", told["text"], told["usage"])

    body = {"question": "What is 2 + 3?", "thinking_budget": 16, "max_tokens": 64}
    told = client.post("/thinking", json=body).raise_for_status().json()
    print("thought:", told["reasoning"]["text"])
    print("answer:", told["answer"])

    body = {"prompts": ["1, 2, 3,", "a, b, c,"], "max_tokens": 8}
    told = client.post("/batch_generate", json=body).raise_for_status().json()
    print("batch:", [result["text"] for result in told["results"]])

    for model in client.get("/health").json()["models"]:
        print("health:", model["name"], model["state"])
    print("stats:", client.get("/stats").raise_for_status().json()["requests"]["total"])
