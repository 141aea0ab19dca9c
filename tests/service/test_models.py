"""The two models the gateway builds, as built into the real cache of this machine.

SmolLM2 is compared with transformers' own loading of the same GGUF. Rounded to bfloat16, as ours
are, its weights must be equal bit for bit, and so must be everything computed from them in
float32 by the same code: no tolerance. What the rounding itself costs is bounded beside it.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, Qwen3ForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from engine_config.build import cache, registry
from engine_config.build.nano_qwen3 import FIRST_SPECIAL
from engine_config.build.packages import SMOLLM2_WHEEL
from engine_config.build.smollm2 import extract_gguf
from tests.sources import kept

N_GREEDY = 32
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "12345 + 678 =",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "中国的首都是",
    "今天天气很好。我们",
]
TEXTS = [
    *PROMPTS,
    "",
    " ",
    "Hello,  world!\n\n\tTabs and   spaces ",
    "don't, we'll, I'M",
    "12345 + 678",
    "你好、世界\uff01 2024年\uff0c人工智能。",
    "emoji 👩\u200d👩\u200d👧\u200d👦 🇫🇷 👍🏽 and e\u0301 ñ ß",
    "混合 mixed текст عربى 한국어 \u00a0\u200b",
    "\x00\x1b\x7f",
]
QWEN3_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<tool_call>": 151657,
    "</tool_call>": 151658,
    "<think>": 151667,
    "</think>": 151668,
}


def quiet(text: str, fraction: float) -> None:
    pass


def no_build(text: str, fraction: float) -> None:
    raise AssertionError(f"built again: {text}")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Beside a busy engine, torch's threads wait for each other: 82 s for what takes 5 s alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm2_dir() -> Path:
    return registry.ensure("smollm2-135m", quiet)


@pytest.fixture(scope="module")
def nano_dir() -> Path:
    return registry.ensure("nano-qwen3", quiet)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF that SmolLM2 was built from. The wheel is kept for the next run."""
    return extract_gguf(kept(SMOLLM2_WHEEL), tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def reference(gguf_file: Path) -> LlamaForCausalLM:
    """transformers' own reading of the GGUF, in float32.

    This is the function its `from_pretrained(gguf_file=...)` ends in; that one wants accelerate,
    which nothing else here needs.
    """
    config = AutoConfig.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    model = LlamaForCausalLM(config).eval()
    loaded = load_gguf_checkpoint(gguf_file, return_tensors=True, model_to_load=model)
    missing, unexpected = model.load_state_dict(loaded["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied, so not in the file
    return model


@pytest.fixture(scope="module")
def rounded(reference: LlamaForCausalLM) -> LlamaForCausalLM:
    """The reference with weights rounded to bfloat16, computing in float32."""
    model = LlamaForCausalLM(reference.config).eval()
    weights = {name: value.bfloat16().float() for name, value in reference.state_dict().items()}
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module")
def smollm2(smollm2_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def reference_tokenizer(gguf_file: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)


@pytest.fixture(scope="module")
def nano(nano_dir: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(nano_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def nano_tokenizer(nano_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(nano_dir)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer.encode(text)])


def log_probabilities(
    model: LlamaForCausalLM | Qwen3ForCausalLM, tokens: torch.Tensor
) -> torch.Tensor:
    """Of every next token at every position, shape (n_tokens, vocab)."""
    with torch.inference_mode():
        return model(tokens).logits[0].log_softmax(-1)


def greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """`N_GREEDY` tokens after each of `PROMPTS`, shape (n_prompts, N_GREEDY), as one batch."""
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    length = batch["input_ids"].shape[1]
    options = {"do_sample": False, "min_new_tokens": N_GREEDY, "max_new_tokens": N_GREEDY}
    return model.generate(**batch, **options)[:, length:]


@pytest.fixture(scope="module")
def greedy_tokens(
    smollm2: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> dict[str, torch.Tensor]:
    """What SmolLM2 says after each prompt, shape (1, N_GREEDY)."""
    rows = greedy(smollm2, tokenizer).split(1)
    return dict(zip(PROMPTS, rows, strict=True))


@pytest.mark.parametrize("name", registry.BUILDERS)
def test_a_second_ensure_neither_builds_nor_loads_torch(name: str) -> None:
    folder = registry.ensure(name, quiet)
    before = (folder.stat().st_ino, (folder / "MANIFEST.json").stat().st_mtime_ns)
    code = (
        "import sys; from engine_config.build.registry import ensure; "
        f"ensure({name!r}, sys.exit); "
        "sys.exit(bool({'torch', 'transformers', 'gguf', 'numpy'} & {*sys.modules}))"
    )

    assert registry.ensure(name, no_build) == folder
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    assert (folder.stat().st_ino, (folder / "MANIFEST.json").stat().st_mtime_ns) == before


@pytest.mark.parametrize("name", registry.BUILDERS)
def test_a_built_model_passes_verification_and_is_as_large_as_announced(name: str) -> None:
    registry.ensure(name, quiet)

    folder = registry.verify(name)

    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size == pytest.approx(registry.BUILDERS[name].bytes, rel=0.01)


@pytest.mark.parametrize("call", [registry.ensure, registry.build])
def test_an_unknown_model_is_refused_with_the_known_ones(
    call: Callable[[str, cache.Progress], Path],
) -> None:
    with pytest.raises(cache.ModelCacheError, match="smollm2-135m, nano-qwen3"):
        call("gpt-5", no_build)


def test_smollm2_weights_are_the_ggufs_bit_for_bit(
    smollm2: LlamaForCausalLM, rounded: LlamaForCausalLM
) -> None:
    ours, theirs = smollm2.state_dict(), rounded.state_dict()

    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_smollm2_greedy_text_is_the_ggufs(
    greedy_tokens: dict[str, torch.Tensor],
    rounded: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ours = torch.cat(list(greedy_tokens.values()))

    theirs = greedy(rounded, tokenizer)

    assert ours.shape == (len(PROMPTS), N_GREEDY)
    assert tokenizer.batch_decode(ours) == tokenizer.batch_decode(theirs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_log_probabilities_are_the_ggufs(
    prompt: str,
    greedy_tokens: dict[str, torch.Tensor],
    smollm2: LlamaForCausalLM,
    rounded: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokens = torch.cat([token_ids(tokenizer, prompt), greedy_tokens[prompt]], dim=1)

    assert torch.equal(log_probabilities(smollm2, tokens), log_probabilities(rounded, tokens))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_rounding_to_bfloat16_hardly_moves_smollm2(
    prompt: str,
    smollm2: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokens = token_ids(tokenizer, prompt)

    ours, exact = log_probabilities(smollm2, tokens), log_probabilities(reference, tokens)

    divergence = (exact.exp() * (exact - ours)).sum(-1)
    assert divergence.max().item() < 0.01  # nats, at the worst position


def test_smollm2_answers(
    greedy_tokens: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    text = tokenizer.decode(greedy_tokens["The capital of France is"][0])

    assert text.startswith(" Paris.")


def test_smollm2_config_says_what_the_gguf_says(smollm2: LlamaForCausalLM) -> None:
    config = smollm2.config

    assert config.rope_parameters == {"rope_theta": 100_000.0, "rope_type": "default"}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.max_position_embeddings == 8192
    assert config.tie_word_embeddings


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_tokenizer_is_transformers_own_for_the_gguf(
    text: str, tokenizer: PreTrainedTokenizerBase, reference_tokenizer: PreTrainedTokenizerBase
) -> None:
    ours = tokenizer.encode(text)

    assert ours == reference_tokenizer.encode(text)
    assert tokenizer.decode(ours) == reference_tokenizer.decode(ours) == text


def test_smollm2_tokenizer_is_transformers_own_for_every_token(
    tokenizer: PreTrainedTokenizerBase, reference_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert tokenizer.get_vocab() == reference_tokenizer.get_vocab()
    # transformers calls only the four named ones special; the GGUF calls 17 tokens control.
    assert {*reference_tokenizer.all_special_ids} == {*tokenizer.all_special_ids}
    assert tokenizer.chat_template == reference_tokenizer.chat_template


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("x =  12", ["x", "Ġ=", "ĠĠ", "1", "2"]),
        ("\n\n1", ["ĊĊ", "1"]),
    ],
)
def test_smollm2_splits_digits_before_spaces_as_it_was_trained(
    text: str, pieces: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """llama.cpp's `smollm` pre-tokeniser; transformers 5.19 does not know it in a GGUF."""
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollm2_chat_template_is_chatml_with_its_own_system_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages = [{"role": "user", "content": "你好"}]

    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_nano_has_the_real_qwen3_ids(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = {token: nano_tokenizer.encode(token) for token in QWEN3_IDS}

    assert ids == {token: [index] for token, index in QWEN3_IDS.items()}
    assert len(nano_tokenizer) == 151_669
    assert nano_tokenizer.eos_token_id == QWEN3_IDS["<|im_end|>"]


@pytest.mark.parametrize("text", [text for text in TEXTS if "e\u0301" not in text])
def test_nano_tokenizer_round_trips(text: str, nano_tokenizer: PreTrainedTokenizerBase) -> None:
    assert nano_tokenizer.decode(nano_tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, "<|im_start|>assistant\n"),
        ({"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_nano_template_opens_the_assistants_turn(
    options: dict[str, bool], end: str, nano_tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "1 + 1 = ?"}]

    text = nano_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )

    assert text == f"<|im_start|>user\n1 + 1 = ?<|im_end|>\n{end}"


def test_nano_stops_where_qwen3_stops(nano_dir: Path) -> None:
    generation = json.loads((nano_dir / "generation_config.json").read_text())

    assert generation["eos_token_id"] == [QWEN3_IDS["<|im_end|>"], QWEN3_IDS["<|endoftext|>"]]


def test_nano_is_noise_that_emits_no_special_token(nano: Qwen3ForCausalLM) -> None:
    tokens = torch.randint(FIRST_SPECIAL, (1, 1000), generator=torch.Generator().manual_seed(0))

    found = log_probabilities(nano, tokens)

    entropy = -(found.exp() * found).sum(-1)
    special = found[:, FIRST_SPECIAL:].exp().sum(-1)
    assert entropy.min().item() > 0.9 * math.log(FIRST_SPECIAL)
    assert special.mean().item() < 1e-6
    assert special.max().item() < 1e-4


def test_nano_is_not_pulled_to_special_tokens_by_special_tokens(
    nano: Qwen3ForCausalLM, nano_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Where one is forced, the next is any token: its odds stay those of an even draw."""
    tokens = token_ids(nano_tokenizer, "a<think>\n b</think><|im_end|>")

    found = log_probabilities(nano, tokens)

    assert found[:, FIRST_SPECIAL:].exp().max().item() < 1e-3


def test_nano_keeps_talking_when_sampled(nano: Qwen3ForCausalLM) -> None:
    prompt = torch.tensor([[QWEN3_IDS["<|im_start|>"], 77091, 198, QWEN3_IDS["<think>"], 198]])
    torch.manual_seed(0)

    tokens = nano.generate(prompt, max_new_tokens=300)[0, prompt.shape[1] :]

    assert len(tokens) == 300
    assert tokens.max().item() < FIRST_SPECIAL
    assert len(set(tokens.tolist())) > 50
