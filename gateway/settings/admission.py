"""The queue in front of each engine."""

from pydantic import Field
from pydantic_settings import BaseSettings


class Admission(BaseSettings):
    fair: bool = Field(
        default=True,
        description="Tenants share an engine by weight and class. false: first come, first served.",
    )
    max_queued: int = Field(
        default=1024,
        ge=0,
        description="Most requests that wait for one model's engine; above: 503.",
    )
    tenant_queue_share: float = Field(
        default=0.5, gt=0, le=1, description="The part of that queue that one tenant may fill."
    )
    queue_timeout_s: float = Field(
        default=60, gt=0, description="How long a request waits there before it gets 503, seconds."
    )
