"""`helm test`: the gateway at $URL is ready, closed without a key, and answers a question with $KEY.

Where the gateway has $GATEWAY_TRUSTED_HOSTS it is called by one of those names, not by its Service's.
"""

import os
import sys

import httpx

ANSWER_S = 300
QUESTION = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}


def host() -> dict[str, str]:
    first = os.environ.get("GATEWAY_TRUSTED_HOSTS", "").partition(",")[0].strip()
    name = first.replace("*", "test", 1)
    return {"host": f"[{name}]" if ":" in name else name} if name else {}


def main() -> None:
    """Ends with a sentence where something is not as it should be."""
    # With TLS of its own the gateway's certificate is for the name callers use, not for the Service's.
    url = os.environ["URL"]
    client = httpx.Client(base_url=url, headers=host(), timeout=ANSWER_S, verify=False)
    ready = client.get("/health/ready")
    if ready.status_code != httpx.codes.OK:
        sys.exit(f"not ready: {ready.status_code} {ready.text}")
    without = client.post("/v1/chat/completions", json=QUESTION)
    if without.status_code == httpx.codes.OK:
        sys.exit("it answers without a key")
    if without.status_code != httpx.codes.UNAUTHORIZED:
        sys.exit(f"without a key it does not ask for one: {without.status_code} {without.text}")
    if key := os.environ.get("KEY"):
        headers = {"Authorization": f"Bearer {key}"}
        answer = client.post("/v1/chat/completions", json=QUESTION, headers=headers)
        if answer.status_code != httpx.codes.OK:
            sys.exit(f"with the key: {answer.status_code} {answer.text}")
        if not answer.json()["choices"][0]["message"]["content"]:
            sys.exit("the answer is empty")


if __name__ == "__main__":
    main()
