"""The pipe to the quantising worker: progress, refusals, deaths, and no child left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_config.build import worker_process
from engine_config.build.checkpoint import QuantizeError
from engine_config.build.worker_process import WORKER_ROOT, explain, run
from tests.service.server import title

PYTHON = Path(sys.executable)
JOB = {"action": "quantise"}
HEAD = "import json, os, sys, time\njob = json.loads(sys.stdin.readline())\n"
TELL = HEAD + "def tell(**event): sys.stdout.write(json.dumps(event) + '\\n'); sys.stdout.flush()\n"


def quiet(text: str, fraction: float) -> None:
    pass


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(worker_process, "WORKER_ROOT", tmp_path)
    (tmp_path / "worker").mkdir()
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def worker(scratch: Path, script: str) -> None:
    (scratch.parent / "worker" / "__main__.py").write_text(TELL + script)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "worker" in title(child)]


def test_progress_and_result_come_back(scratch: Path) -> None:
    worker(scratch, "tell(progress='half', fraction=0.5); tell(result={'job': job})")
    seen: list[tuple[str, float]] = []

    result = run(PYTHON, JOB, scratch, lambda text, fraction: seen.append((text, fraction)))

    assert result == {"job": JOB}
    assert seen == [("half", 0.5)]


def test_a_refusal_is_the_sentence_itself(scratch: Path) -> None:
    worker(scratch, "tell(refused='no chat template'); raise SystemExit(3)")

    with pytest.raises(QuantizeError, match=r"^no chat template$"):
        run(PYTHON, JOB, scratch, quiet)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("os.kill(os.getpid(), 9)", "ran out of memory"),
        ("raise MemoryError", "ran out of memory"),
        ("raise OSError(28, 'No space left on device')", "disk filled up"),
        ("raise ValueError('something new')", r"failed \(1\).*It said: ValueError: something new"),
        ("tell(result={}); raise SystemExit(7)", r"failed \(7\)"),
        ("pass", r"failed \(0\).*It said: nothing"),
    ],
)
def test_every_end_is_one_sentence(scratch: Path, script: str, said: str) -> None:
    worker(scratch, script)

    with pytest.raises(QuantizeError, match=said) as caught:
        run(PYTHON, JOB, scratch, quiet)

    assert "\n" not in str(caught.value)


def test_what_a_failed_worker_wrote_can_be_read_afterwards(scratch: Path) -> None:
    worker(scratch, "sys.stderr.write('before\\n'); raise ValueError('x')")

    with pytest.raises(QuantizeError, match=r"last-failure\.log"):
        run(PYTHON, JOB, scratch, quiet)

    log = scratch.parent / "cache" / "tools" / "last-failure.log"
    assert log.read_text().startswith("before\nTraceback")


def test_a_text_that_is_too_poor_for_gptq_is_said_as_that() -> None:
    error = explain(1, "torch._C._LinAlgError: input is not positive-definite", Path("log"))

    assert "more varied text" in str(error)


def test_ctrl_c_ends_the_child(scratch: Path) -> None:
    worker(scratch, "tell(progress='working', fraction=0.1); time.sleep(60)")

    def interrupt(text: str, fraction: float) -> None:
        assert len(children()) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(PYTHON, JOB, scratch, interrupt)

    assert children() == []


def test_the_child_sees_neither_our_libraries_nor_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    quantise: dict[str, Any] = worker_process.environment(JOB)
    download = worker_process.environment({"action": "download"})

    assert "VIRTUAL_ENV" not in quantise
    assert quantise["PYTHONPATH"] == str(WORKER_ROOT)
    assert quantise["HF_HUB_OFFLINE"] == "1" and "HF_HUB_OFFLINE" not in download


def test_the_real_worker_ends_when_the_gateway_is_gone() -> None:
    code = (
        "from worker.events import Pipe; import time, os; pipe = Pipe(); job = pipe.job(); "
        "os.write(1, b'noise'); pipe.progress(job['word'], 0.5); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(WORKER_ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b'{"word": "here"}\n')
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        process.stdin.close()  # as the kernel does when the gateway is killed
        code_of_end = process.wait(timeout=30)  # it would sleep for longer

    assert said == {"progress": "here", "fraction": 0.5}  # what libraries print is not in it
    assert code_of_end == 1 and code_of_end != -signal.SIGKILL
