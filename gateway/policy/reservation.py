"""How many tokens a request may use at most, from its body alone, before an engine has seen it.

The output is bounded exactly. The prompt is estimated from the body's bytes: tokenising twice would cost
more than it is worth, and the true count follows when the request is over.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.engines.fleet import Fleet
from gateway.errors import ModelNotFound
from gateway.settings import Settings

Body = Mapping[str, Any]

# English has 4 to 5 bytes per token. What a template adds is covered by the JSON around messages and this.
TOKENS_PER_BYTE = 1 / 3
TEMPLATE_TOKENS = 64
FORGET = 0.9  # per request: how fast a tenant's dense texts are forgotten
# Of a smaller body, what is not in it counts too much: template, tools, a response that went before.
TELLING_BYTES = 2000
MOST_PER_BYTE = 1.0

# Path -> the names of its output bound, of which the largest counts, so that none hides behind another; then
# its default, None: the rest of the context.
OUTPUT: Mapping[str, tuple[tuple[str, ...], int | None]] = {
    "/generate": (("max_tokens", "max_length", "max_new_tokens"), 256),
    "/batch_generate": (("max_tokens", "max_length", "max_new_tokens"), 256),
    "/thinking": (("max_tokens",), None),
    "/v1/chat/completions": (("max_completion_tokens", "max_tokens"), None),
    "/v1/completions": (("max_tokens",), 16),
    "/v1/responses": (("max_output_tokens",), None),
    "/v1/messages": (("max_tokens",), None),
}
COPIES = ("n", "best_of", "samples")


class Reservations:
    """Knows how densely each tenant's texts tokenise, once it has seen some."""

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        self.fleet = fleet
        self.settings = settings
        self._density: dict[str, float] = {}  # tokens per byte of a body, by tenant

    def items(self, path: str, body: Body) -> list[Body]:
        """The requests in it: a batch is as many as it has items, everything else is one."""
        if path != "/batch_generate":
            return [body]
        listed = body.get("requests") or body.get("prompts")
        listed = (
            listed[: self.settings.max_batch_requests + 1] if isinstance(listed, list) else [{}]
        )
        shared = {key: value for key, value in body.items() if key not in ("requests", "prompts")}
        return [{**shared, **item} if isinstance(item, dict) else shared for item in listed]

    def tokens(self, tenant: str, path: str, items: Iterable[Body], size: int) -> int:
        """Prompt and output of all items; 0 for a route that generates nothing."""
        if path not in OUTPUT:
            return 0
        return self.prompt(tenant, size) + sum(self._output(path, item) for item in items)

    def prompt(self, tenant: str, size: int) -> int:
        """Of a body of so many bytes, all its prompts together."""
        return math.ceil(size * self._density.get(tenant, TOKENS_PER_BYTE)) + TEMPLATE_TOKENS

    def longest(self, body: Body) -> int | None:
        """What an engine takes of one request's prompts at most; None: there is no engine to tell."""
        try:
            slot = self.fleet.find(body.get("model")).slot
        except ModelNotFound:
            return None
        if slot is None:
            return None
        return slot.engine.limits.max_model_len * self._prompts(body.get("prompt"))

    def sequences(self, path: str, body: Body) -> int:
        """That an engine makes of it at once; of a batch, of each item that has no count of its own."""
        return self._copies(body) * self._prompts(body.get("prompt")) if path in OUTPUT else 0

    def _copies(self, item: Body) -> int:
        nested = item.get("sampling_params")
        places = (item, nested) if isinstance(nested, dict) else (item,)
        copies = [_count(place.get(name), 1) for place in places for name in COPIES]
        return min(max(copies), self.settings.max_n)

    def learn(self, tenant: str, size: int, prompt: int) -> None:
        """What a body of so many bytes came to. The densest of late counts: a guess that is too low lets
        parallel requests pass a limit together."""
        if size and prompt:
            self.forget(tenant)
        if size >= TELLING_BYTES:
            seen = min(MOST_PER_BYTE, max(0, prompt - TEMPLATE_TOKENS) / size)
            self._density[tenant] = max(self._density.get(tenant, TOKENS_PER_BYTE), seen)

    def forget(self, tenant: str) -> None:
        """A little of its density. At refusals too: a tenant that gets nothing through learns nothing."""
        if (held := self._density.get(tenant)) is not None:
            self._density[tenant] = max(TOKENS_PER_BYTE, held * FORGET)

    def _output(self, path: str, item: Body) -> int:
        names, default = OUTPUT[path]
        nested = item.get("sampling_params")
        places = (item, nested) if isinstance(nested, dict) else (item,)
        given = [place[name] for place in places for name in names if place.get(name) is not None]
        context, usual = self._model(item.get("model"))
        if path == "/thinking":
            default = usual
        asked = max((_count(value, context) for value in given), default=default or context)
        return min(context, asked) * self._copies(item) * self._prompts(item.get("prompt"))

    def _prompts(self, prompt: object) -> int:
        """A list of token ids is one prompt; a list of texts or of lists is as many as it has."""
        if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
            return 1
        return min(len(prompt), self.settings.max_prompts)

    def _model(self, name: object) -> tuple[int, int]:
        """The context, which no answer exceeds, and the profile's usual room for thought and answer.

        A model that is unknown or away is refused later, or waited for.
        """
        try:
            model = self.fleet.find(name)
        except ModelNotFound:
            return 1, 1
        usual = model.profile.thinking_max_tokens
        if model.slot is None:
            return self.settings.max_output_tokens, usual
        return model.slot.engine.limits.max_model_len, usual


def _count(value: object, default: int) -> int:
    """As pydantic will read it: "5" and 5.0 are integers to it too. What is none is refused later."""
    if isinstance(value, int | float | str):
        try:
            return max(0, int(float(value)))
        except (ValueError, OverflowError):
            return default
    return default
