"""The admin listener as a test uses it, and profiles made for a test."""

from pathlib import Path
from typing import Any

import httpx
import yaml

from engine_config.profile import SHIPPED
from tests.service.server import START_S, Gateway, wait_for

JSON = {"content-type": "application/json"}


def value(given: object) -> dict[str, object]:
    return {"value": given, "reason": "A reason why.", "source": "a test"}


def write_profile(folder: Path, name: str, base: str = "nano-qwen3", **changes: Any) -> None:
    """A shipped profile under another name; `vllm` and `environment` are added to its own."""
    profile = yaml.safe_load((SHIPPED / f"{base}.yaml").read_text(encoding="utf-8"))
    for part in ("vllm", "environment"):
        added = {key: value(given) for key, given in changes.pop(part, {}).items()}
        if added:
            profile[part] = {**profile.get(part, {}), **added}
    profile |= {"name": name, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")


class Admin:
    """Begins switches and waits for what becomes of them."""

    def __init__(self, gateway: Gateway) -> None:
        self.url = gateway.admin_url

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/admin/{path}", json=body, timeout=START_S)

    def get(self, path: str) -> dict[str, Any]:
        body: dict[str, Any] = httpx.get(f"{self.url}/admin/{path}", timeout=START_S).json()
        return body

    def begin(self, model: str, profile: str, **body: object) -> str:
        response = self.post(f"models/{model}/switch", profile=profile, **body)
        assert response.status_code == 202, response.text
        operation_id: str = response.json()["id"]
        return operation_id

    def reaches(self, operation_id: str, *phases: str) -> None:
        """Wait until it is in one of the phases."""

        def there() -> bool:
            body = self.get(f"operations/{operation_id}")
            assert body["state"] == "running", body
            return body["phase"] in phases

        wait_for(there, START_S, f"{operation_id} in {phases}")

    def ended(self, operation_id: str) -> dict[str, Any]:
        path = f"operations/{operation_id}"
        wait_for(lambda: self.get(path)["state"] != "running", START_S, f"{operation_id} ended")
        return self.get(path)

    def switch(self, model: str, profile: str, **body: object) -> dict[str, Any]:
        """The whole of it."""
        return self.ended(self.begin(model, profile, **body))
