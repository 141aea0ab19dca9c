"""What vLLM's handlers do not say: `reasoning_content`, how the thought ended, and hidden thoughts.

A `send` wrapper that looks at each frame for a few bytes and parses only those that have them.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from gateway.thinking.effort import Plan, report

Body = dict[str, Any]
HIDDEN_BEAT = b": thinking\n\n"
BEAT_S = 5.0


class Shape:
    """Wraps `send` for one request of a thinking route."""

    def __init__(self, send: Send, plan: Plan, fields: str) -> None:
        self.send = send
        self.plan = plan
        self.fields = fields
        self.held: Message | None = None  # the start of a plain answer, until its length is known
        self.body = b""
        self.plain = True
        self.sent_at = time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self.plain:
            await self._whole(message)
        else:
            await self._frame(message)

    async def _start(self, message: Message) -> None:
        kind = MutableHeaders(scope=message).get("content-type", "")
        self.plain = not kind.startswith("text/event-stream")
        if self.plain and message["status"] == 200:
            self.held = message
        else:
            await self.send(message)

    async def _whole(self, message: Message) -> None:
        if self.held is None:  # an error
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        told = orjson.loads(self.body)
        if not isinstance(told, dict):  # the caller has left, and vLLM's handler returned nothing
            return
        body = orjson.dumps(self._answer(told))
        MutableHeaders(scope=self.held)["content-length"] = str(len(body))
        await self.send(self.held)
        await self.send({"type": "http.response.body", "body": body})

    async def _frame(self, message: Message) -> None:
        frame = message.get("body", b"")
        if any(sign in frame for sign in SIGNS):
            message = {**message, "body": self._reshaped(frame)}
            if not message["body"]:
                if time.monotonic() - self.sent_at < BEAT_S:
                    return
                message["body"] = HIDDEN_BEAT
        self.sent_at = time.monotonic()
        await self.send(message)

    def _reshaped(self, frame: bytes) -> bytes:
        head, found, data = frame.partition(b"data: ")
        if not found or not data.startswith(b"{"):
            return frame
        body: Body = orjson.loads(data)
        kind = body.get("type", body.get("object"))
        shaped = FRAMES.get(kind, _as_it_is)(self, body)
        return b"" if shaped is None else head + b"data: " + orjson.dumps(shaped) + b"\n\n"

    def _answer(self, body: Body) -> Body:
        """A plain answer of any of the three routes."""
        if "choices" in body:
            for choice in body["choices"]:
                self._name(choice["message"])
                self._hide_tokens(choice)
                self._tell(choice, choice["index"])
        else:
            self._tell(body)
            if self.plan.hidden:
                _empty_thoughts(body.get("output") or body.get("content") or [])
        self._count(body)
        return body

    def _count(self, body: Body) -> None:
        """The thoughts' tokens as the engine drew them; vLLM counts them from the text that it shows."""
        told = [choice["index"] for choice in body.get("choices") or ()]  # none: of all of them
        runs = [run for index, run in enumerate(self.plan.runs) if not told or index in told]
        for name in ("completion_tokens_details", "output_tokens_details"):
            if runs and (details := (body.get("usage") or {}).get(name)):
                details["reasoning_tokens"] = sum(len(run.thought.ids) for run in runs)

    def _tell(self, place: Body, index: int = 0) -> None:
        if index < len(self.plan.runs):
            place["thinking"] = report(self.plan.runs[index])

    def _hide_tokens(self, choice: Body) -> None:
        """A thought that is hidden is not to be read from its tokens; those of the answer stay."""
        if not self.plan.hidden or choice["index"] >= len(self.plan.runs):
            return
        count = self.plan.runs[choice["index"]].outcome.answer_tokens
        for place, name in ((choice, "token_ids"), (choice.get("logprobs") or {}, "content")):
            if place.get(name):
                place[name] = place[name][-count:]

    def _name(self, said: Body) -> None:
        """The thought of a chat message or delta, under the names asked for."""
        if "reasoning" not in said:
            return
        thought = said.pop("reasoning")
        if self.plan.hidden:
            return
        for name in ("reasoning", "reasoning_content"):
            if self.fields in ("both", name):
                said[name] = thought

    def chat_chunk(self, body: Body) -> Body | None:
        told = False
        for choice in body["choices"]:
            self._name(choice["delta"])
            if choice.get("finish_reason"):
                self._tell(choice, choice["index"])
            elif self.plan.hidden and not choice["delta"]:  # it may be sent for its usage
                choice.pop("logprobs", None)
                choice.pop("token_ids", None)
            told = told or bool(choice["delta"]) or bool(choice.get("finish_reason"))
        self._count(body)
        return body if told or body.get("usage") else None

    def response_ended(self, body: Body) -> Body:
        self._tell(body["response"])
        self._count(body["response"])
        if self.plan.hidden:
            _empty_thoughts(body["response"].get("output", []))
        return body

    def message_delta(self, body: Body) -> Body:
        self._tell(body)
        return body

    def thought_event(self, body: Body) -> Body | None:
        return None if self.plan.hidden else body

    def part(self, body: Body) -> Body | None:
        of_thought = body["part"].get("type") == "reasoning_text"
        return None if self.plan.hidden and of_thought else body

    def block_delta(self, body: Body) -> Body | None:
        return None if self.plan.hidden and body["delta"]["type"] == "thinking_delta" else body

    def item(self, body: Body) -> Body:
        if self.plan.hidden:
            _empty_thoughts([body["item"]])
        return body


def _as_it_is(_: Shape, body: Body) -> Body:
    return body


def _empty_thoughts(parts: list[Body]) -> None:
    """Their places stay, so that indexes agree; what was thought is taken out."""
    for part in parts:
        if part.get("type") == "reasoning":
            part |= {"content": [], "summary": []}
        elif part.get("type") == "thinking":
            part["thinking"] = ""


# Only frames with one of these are looked into.
SIGNS = (
    b'"reasoning"',
    b'"reasoning_tokens"',
    b'"finish_reason":"',
    b"response.completed",
    b"response.incomplete",
    b"response.reasoning",
    b'"reasoning_text"',
    b'"message_delta"',
    b'"thinking_delta"',
)
FRAMES: Mapping[Any, Callable[[Shape, Body], Body | None]] = {
    "chat.completion.chunk": Shape.chat_chunk,
    "response.completed": Shape.response_ended,
    "response.incomplete": Shape.response_ended,
    "response.reasoning_text.delta": Shape.thought_event,
    "response.reasoning_text.done": Shape.thought_event,
    "response.reasoning_part.added": Shape.thought_event,
    "response.reasoning_part.done": Shape.thought_event,
    "response.output_item.added": Shape.item,
    "response.output_item.done": Shape.item,
    "response.content_part.added": Shape.part,
    "response.content_part.done": Shape.part,
    "message_delta": Shape.message_delta,
    "content_block_delta": Shape.block_delta,
}
