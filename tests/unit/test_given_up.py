"""What is no thought passes to the engine and back; unfinished it is no answer, bound it is bound at once."""

import importlib
import warnings
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import EngineUnavailable
from tests.scripted import KNOWS_MARKS

GAVE_UP = pytest.mark.parametrize("reason", ["abort", "error"])


@pytest.fixture(scope="module")
def thinking() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        return importlib.import_module("gateway.engines.vllm_thinking")


def output(reason: str | None, index: int = 0) -> Any:
    completion = SimpleNamespace(
        index=index, text="x", token_ids=[1], finish_reason=reason, stop_reason=None, logprobs=None
    )
    return SimpleNamespace(outputs=[completion], num_cached_tokens=0)


class Client:
    """In the place of vLLM's AsyncLLM: gives these outputs, and notes that it was closed."""

    def __init__(self, *outputs: Any) -> None:
        self.outputs = outputs
        self.closed = False
        self.given: dict[str, Any] = {}

    async def generate(self, *_: Any, **given: Any) -> AsyncGenerator[Any, None]:
        self.given = given
        try:
            for each in self.outputs:
                yield each
        finally:
            self.closed = True


def asked(
    thinking: Any,
    client: Client,
    prompt: Sequence[int] = (1,),
    choice: list[str] | None = None,
    **kwargs: Any,
) -> AsyncGenerator[Any, None]:
    """As a handler of vLLM's asks for what is no thought."""
    serving = thinking.ThinkingClient(client, KNOWS_MARKS)
    params = SimpleNamespace(structured_outputs=choice)
    outputs: AsyncGenerator[Any, None] = serving.generate(
        {"prompt_token_ids": list(prompt)}, params, "r", **kwargs
    )
    return outputs


@GAVE_UP
async def test_handlers_are_told_of_what_the_engine_gave_up(thinking: Any, reason: str) -> None:
    seen = []

    with pytest.raises(thinking.EngineDeadError):
        async for each in asked(thinking, Client(output(None), output(reason, 1))):
            seen.append(each)

    assert len(seen) == 1


async def test_everything_else_passes_as_it_is(thinking: Any) -> None:
    outputs = [output(None), output("stop"), output("length", 1)]

    assert [each async for each in asked(thinking, Client(*outputs))] == outputs


async def test_a_handler_that_leaves_early_ends_the_work(thinking: Any) -> None:
    client = Client(output(None), output("stop"))
    outputs = asked(thinking, client)

    await anext(outputs)
    await outputs.aclose()

    assert client.closed


@GAVE_UP
def test_our_own_routes_are_told_too(thinking: Any, reason: str) -> None:
    given_up = output(reason)

    with pytest.raises(EngineUnavailable, match="gave up"):
        thinking.delta_of(given_up, given_up.outputs[0])


@pytest.mark.parametrize(
    ("prompt", "choice", "kwargs", "binds"),
    [
        ([1], ["yes"], {}, True),
        ([1], None, {}, False),
        ([1, *KNOWS_MARKS.open], ["yes"], {}, False),
        ([1], ["yes"], {"reasoning_parser_kwargs": None}, False),
    ],
    ids=["a completion", "nothing to bind", "its prompt opened a thought", "a chat, which says it"],
)
async def test_a_grammar_binds_at_once_where_there_is_no_thought(
    thinking: Any, prompt: list[int], choice: list[str] | None, kwargs: Any, binds: bool
) -> None:
    client = Client(output("stop"))

    async for _ in asked(thinking, client, prompt, choice, **kwargs):
        pass

    assert client.given.get("reasoning_ended", False) is binds
