"""What one request may ask for."""

from pydantic import Field
from pydantic_settings import BaseSettings


class Bounds(BaseSettings):
    max_body_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, description="Largest request body, bytes; above: 413."
    )
    max_json_depth: int = Field(default=64, ge=4, description="Deepest nesting of a request body.")
    max_json_values: int = Field(
        default=32_768,
        ge=256,
        description="Most values in a request body, all levels together, prompts of token ids aside.",
    )
    max_n: int = Field(default=16, ge=1, description="Most completions of one request (`n`).")
    max_output_tokens: int = Field(
        default=131_072, ge=1, description="Most tokens one request may ask for."
    )
    max_stop_strings: int = Field(default=16, ge=1, description="Most `stop` strings.")
    max_logprobs: int = Field(default=20, ge=0, description="Most `logprobs` / `top_logprobs`.")
    max_prompts: int = Field(
        default=64, ge=1, description="Most prompts in one `/v1/completions` request."
    )
    max_messages: int = Field(default=2048, ge=1, description="Most messages of one request.")
    max_tools: int = Field(default=128, ge=1, description="Most tools of one request.")
    max_batch_requests: int = Field(
        default=64, ge=1, description="Most requests in one `/batch_generate` call."
    )
    max_url_bytes: int = Field(
        default=8192, ge=256, description="Longest path and query of a request, bytes; above: 414."
    )
    max_headers: int = Field(
        default=100, ge=16, description="Most headers of a request; above: 431."
    )
    max_header_bytes: int = Field(
        default=32 * 1024, ge=1024, description="Largest headers of a request, bytes; above: 431."
    )
    max_field_chars: int = Field(
        default=8192,
        ge=64,
        description="Longest text in a field that is no prompt: `model`, `user`, `cache_salt` ...",
    )
    max_stop_chars: int = Field(default=1024, ge=1, description="Longest `stop` string.")
    max_token_ids: int = Field(
        default=1024,
        ge=1,
        description="Most entries of `logit_bias`, `stop_token_ids`, `allowed_token_ids` ...",
    )
    max_schema_bytes: int = Field(
        default=120_000,
        ge=64,
        description="Largest JSON schema, regex or grammar of a request, bytes.",
    )
    max_schema_properties: int = Field(
        default=5000, ge=1, description="Most properties in a JSON schema, all levels together."
    )
    max_schema_enum: int = Field(
        default=1000, ge=1, description="Most `enum` entries in a JSON schema, or choices."
    )
    max_schema_patterns: int = Field(
        default=100, ge=1, description="Most regular expressions in a JSON schema."
    )
    max_regex_chars: int = Field(
        default=2048, ge=1, description="Longest regular expression, characters."
    )
    grammar_timeout_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="Processor time that one schema (of a tool, too), regex or grammar may take to compile, "
        "seconds; those of a request together: 20 times that. Tried in a process of its own; above: 400.",
    )
