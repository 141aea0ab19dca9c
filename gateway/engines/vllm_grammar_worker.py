"""Tries grammars out in a process of its own, where one that never ends can be killed.

vLLM checks a grammar on the gateway's event loop and compiles it in the engine's process, neither with an end
(a schema of 3,000 patterns takes longer than anybody waits). So each is first put through the very same
code here: a fork of this process, which has vLLM and the model's tokenizer loaded, does it within a limit of
processor time and memory that the kernel keeps.

Standard input: a pickled `VllmConfig` (from the gateway, never from a caller), then a JSON line per job:
`{"id", "spec", "limit_s"}`. Standard output: `{"id": null}` when ready, then `{"id", "kind", "why", "cpu_s"}`
per job, as `vllm_checker.Verdict` has it. It ends with its standard input, so it does not outlive the
gateway.
"""

import json
import logging
import os
import pickle
import resource
import signal
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.request import StructuredOutputRequest

# A matcher that slows down with what it has read shows it in so many tokens.
PROBE_TOKENS = 32
# Of address space beyond what the fork begins with: thread stacks and arenas are most of it.
MEMORY_BYTES = 4 * 2**30
# A job may sleep or wait for a core, but not for ever.
WALL_FACTOR = 10
# A pipe takes 4,096 bytes in one piece; answers of several jobs do not mix then. JSON may take 12
# for a character.
WHY_CHARS = 300
LINE_BYTES = 4096
# What a child died of. The limit of processor time is the grammar's own doing; so is a crash, which would be
# the engine's. SIGALRM (a busy machine) and SIGKILL (the kernel had no memory) say nothing of the grammar.
CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
KINDS: dict[int, str] = {signal.SIGPROF: "slow", **dict.fromkeys(CRASHES, "broken")}


class Trial:
    """Compiles as the engine would: the same manager, the same back end."""

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self.manager = StructuredOutputManager(config)
        self.manager._use_async_grammar_compilation = False
        self.compile({"json_object": True})  # makes the back end, which is most of the work

    def compile(self, spec: dict[str, Any]) -> None:
        """One grammar, by vLLM's names (`json`, `regex`, `choice`, `grammar`, `structural_tag`).

        Raises:
            Exception: whatever vLLM and its back ends raise for a grammar that they do not take.
        """
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**spec))
        params._validate_structured_outputs(
            self.config.model_config,
            self.config.structured_outputs_config,
            self.manager.tokenizer,
        )
        request: Any = SimpleNamespace(
            request_id="trial",
            sampling_params=params,
            structured_output_request=StructuredOutputRequest.from_sampling_params(params),
        )
        self.manager.grammar_init(request)
        grammar = request.structured_output_request._grammar
        self._walk(grammar.result() if hasattr(grammar, "result") else grammar)

    def _walk(self, grammar: Any) -> None:
        """Some tokens along the grammar: its matcher runs in the engine's own loop."""
        assert self.manager.backend is not None
        mask = self.manager.backend.allocate_token_bitmask(1)
        for step in range(PROBE_TOKENS):
            grammar.fill_bitmask(mask, 0)
            words = np.flatnonzero(mask[0].numpy())
            if not len(words):
                raise ValueError("nothing can match it" if step == 0 else "it has a dead end")
            word = int(words[len(words) // 2])
            bits = int(mask[0, word]) & 0xFFFFFFFF
            token = word * 32 + (bits & -bits).bit_length() - 1
            if not grammar.accept_tokens("trial", [token]) or grammar.is_terminated():
                return


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print; standard output is for answers
    trial = Trial(pickle.load(sys.stdin.buffer))
    logging.disable(logging.CRITICAL)  # what callers sent is for nobody's log
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    _say(out, {"id": None})
    for line in sys.stdin.buffer:
        number = json.loads(line)["id"]
        try:
            child = os.fork()
        except OSError as error:  # no memory or no process left: this job's bad luck, not our end
            _say(out, {"id": number, **_told("undecided", str(error))})
            continue
        if child == 0:
            told = _told("undecided", "the checker failed")
            try:
                told = _judged(trial, json.loads(line))
            finally:
                _say(out, {"id": number, **told})
                os._exit(0)


def _say(out: int, told: dict[str, Any]) -> None:
    os.write(out, json.dumps(told).encode() + b"\n")


def _told(kind: str, why: str = "", cpu_s: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "why": why, "cpu_s": cpu_s}


def _judged(trial: Trial, job: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with the job's grammar; found out by a child, which may be killed over it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        return _told("undecided", str(error))
    if child == 0:
        try:
            _limit(job["limit_s"])
            os.write(writing, " ".join(_tried(trial, job["spec"])).encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(writing)
    kind, _, why = os.read(reading, LINE_BYTES).decode(errors="replace").partition(" ")
    _, status, used = os.wait4(child, 0)
    cpu_s = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status):
        return _told(KINDS.get(os.WTERMSIG(status), "undecided"), "", cpu_s)
    return _told(kind or "undecided", why[:WHY_CHARS], cpu_s)


def _limit(seconds: float) -> None:
    """By signals that are not caught, so that compiled code ends as well."""
    for number in (signal.SIGPROF, signal.SIGALRM, *CRASHES):
        signal.signal(number, signal.SIG_DFL)
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_FACTOR)


def _tried(trial: Trial, spec: dict[str, Any]) -> tuple[str, str]:
    """Kind of verdict, and what the compiler said."""
    try:
        trial.compile(spec)
    except MemoryError:
        return "broken", ""
    except OSError as error:
        return "undecided", str(error)
    except Exception as error:  # noqa: BLE001 - whatever a compiler says is the answer
        why = " ".join(str(error).split()) or type(error).__name__
        return "bad", why[:WHY_CHARS]
    return "good", ""


if __name__ == "__main__":
    main()
