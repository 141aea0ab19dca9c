"""How thinking is bounded and shown."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class Thinking(BaseSettings):
    thinking_default_depth: int | None = Field(
        default=None,
        ge=0,
        le=5,
        description="Depth of /v1 requests that ask for none, 0 to 5. Unset: the profile's.",
    )
    thinking_ceiling: int | None = Field(
        default=None, ge=0, description="Most thinking tokens of any request, whatever it asks for."
    )
    thinking_guarantee: bool = Field(
        default=True,
        description="Bound thinking on /v1 routes and always answer. false: vLLM's own behaviour.",
    )
    reasoning_fields: Literal["both", "reasoning", "reasoning_content"] = Field(
        default="both",
        description="Field of the thought in chat completions: vLLM's and OpenRouter's `reasoning`, "
        "DeepSeek's and LiteLLM's `reasoning_content`, or both.",
    )
