"""What a tenant's texts are taken to be worth: learnt from bodies that tell, forgotten again, bounded."""

from pathlib import Path

import pytest

from gateway.policy.asking import Asked
from gateway.policy.reservation import TELLING_BYTES, TEMPLATE_TOKENS, Reservations
from tests.scripted import ScriptedEngine, make_gateway
from tests.tenants import Tenants

SIZE = 3000


@pytest.fixture
def reservations() -> Reservations:
    gateway = make_gateway(ScriptedEngine("first"))
    return Reservations(gateway.fleet, gateway.settings)


def test_a_tiny_body_teaches_nothing_of_its_template(reservations: Reservations) -> None:
    before = reservations.prompt("a", SIZE)

    reservations.learn("a", TELLING_BYTES - 1, 5000)

    assert reservations.prompt("a", SIZE) == before


def test_no_text_is_taken_for_more_than_a_token_per_byte(reservations: Reservations) -> None:
    reservations.learn("a", SIZE, 50 * SIZE)

    assert reservations.prompt("a", SIZE) == SIZE + TEMPLATE_TOKENS


async def test_a_tenant_that_is_only_refused_recovers(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"daily_tokens": 6000}})
    dense = {"prompt": "1" * SIZE, "max_tokens": 1}  # the scripted engine: a token per byte
    longer = {"prompt": "1" * (5 * SIZE), "max_tokens": 1}
    await tenants.post("a", "/generate", dense)

    wanted = [await needed(tenants, longer) for _ in range(3)]

    assert wanted[0] > 6000 and wanted[0] > wanted[1]


async def needed(tenants: Tenants, body: dict[str, object]) -> int:
    """Tokens, by the refusal; 0: the request was not found too large."""
    answer = await tenants.post("a", "/generate", body)
    _, found, rest = answer.text.partition("asks for up to ")
    return int(rest.split(";")[0]) if found else 0


def test_a_ticket_is_never_longer_than_what_an_engine_takes(reservations: Reservations) -> None:
    (model,) = reservations.fleet.models.values()
    assert model.slot is not None
    context = model.slot.engine.limits.max_model_len

    one = reservations.longest({"prompt": "x"})
    three = reservations.longest({"prompt": ["x", "y", "z"]})

    assert (one, three) == (context, 3 * context)
    assert Asked(prompt=10 * context, longest=one).ticket().prompt == context
    assert Asked(prompt=10 * context, longest=three).ticket(part=0.1).prompt == context
    assert Asked(prompt=5, longest=one).ticket().prompt == 5
