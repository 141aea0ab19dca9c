"""Signals to a whole `gateway serve` at awkward moments: nothing is cut off, and it ends."""

import signal
from pathlib import Path

import httpx

from tests.scripted_serve import Serving
from tests.service.server import PATIENCE_S, wait_for


def says(url: str, field: str, word: str) -> None:
    """Wait until it does."""
    wait_for(lambda: httpx.get(url, timeout=PATIENCE_S).json()[field] == word, PATIENCE_S, word)


def test_a_download_that_does_not_end_does_not_keep_the_server_up(tmp_path: Path) -> None:
    with Serving(tmp_path, "plain") as serving:
        serving.reaches("plain", "ready")
        answer = httpx.post(
            f"{serving.admin_url}/admin/models/plain/switch",
            json={"profile": "remote"},
            timeout=PATIENCE_S,
        )
        operation = f"{serving.admin_url}{answer.headers['location']}"
        says(operation, "phase", "locating")

        serving.process.send_signal(signal.SIGTERM)

        assert serving.ended() == 0
        assert serving.log.read_text().rstrip().endswith("gateway: stopped")


def test_a_model_that_serves_drains_although_another_one_still_loads(tmp_path: Path) -> None:
    body = {"prompt": "a", "model": "plain", "stream": True}
    with Serving(tmp_path, "plain", "endless") as serving:
        serving.reaches("plain", "ready")
        with httpx.stream(
            "POST", f"{serving.url}/generate", json=body, timeout=PATIENCE_S
        ) as stream:
            pieces = stream.iter_text()
            text = next(pieces)

            serving.process.send_signal(signal.SIGTERM)
            says(f"{serving.url}/health/ready", "status", "draining")
            serving.process.send_signal(signal.SIGUSR1)
            text += "".join(pieces)

        assert serving.ended() == 0
    assert "generate.completed" in text and "half and whole" in text


def test_a_reload_before_there_is_anything_to_reload_ends_nothing(tmp_path: Path) -> None:
    with Serving(tmp_path, "hangup") as serving:
        serving.reaches("hangup", "ready")
