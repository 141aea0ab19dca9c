"""Makes a quantised checkpoint of a full-precision one: the whole way from a folder to a folder."""

import time
from dataclasses import dataclass
from pathlib import Path

from engine_config.build import card, checkpoint, texts, toolbox, worker_process
from engine_config.build.cache import Progress, Workspace, part
from engine_config.build.checkpoint import TARGETS, QuantizeError, Source

HELDOUT_SEQ_LEN = 256
BATCH = 2  # samples per tuning step of auto-round
TOOLS = ("llmcompressor", "auto-round", "compressed-tensors", "transformers", "torch")


@dataclass(frozen=True, slots=True)
class Options:
    """How to quantise. The defaults are for a laptop; for a model you serve, give it more."""

    target: str  # one of TARGETS
    group_size: int | None = None  # None: the largest that divides every layer
    calibration: Path | None = None  # None: the text shipped with the project
    samples: int = 32
    seq_len: int = 256  # tokens of a sample
    iterations: int = 20  # tuning steps of auto-round; 0 rounds to nearest

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            QuantizeError: which option, its limit and the value given.
        """
        if self.target not in TARGETS:
            raise QuantizeError(f"--to {self.target}: it is one of {', '.join(TARGETS)}")
        limits = {
            "--samples": (self.samples, 1, 4096),
            "--seq-len": (self.seq_len, 32, 8192),
            "--iterations": (self.iterations, 0, 10_000),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise QuantizeError(f"{name} {value}: it is from {least} to {most}")


def quantize(source: Source, options: Options, workspace: Workspace, progress: Progress) -> None:
    """Fill `workspace.model` with the quantised checkpoint and its card.

    What can be refused is refused before the tools are installed or anything is loaded.

    Raises:
        QuantizeError: the source, an option or the text does not do, or the worker failed.
        ToolboxError: the tools cannot be installed.
    """
    start = time.monotonic()
    options.check()
    checkpoint.check(source)
    shapes = checkpoint.linear_shapes(source.folder)
    group_size = checkpoint.choose_group_size(shapes, options.target, options.group_size)
    calibration = texts.calibration(options.calibration, options.samples * options.seq_len)
    heldout, heldout_hash = texts.heldout()
    python = toolbox.ensure(part(progress, 0.0, 0.1))
    job = {
        "action": "quantise",
        "source": str(source.folder),
        "out": str(workspace.model),
        "target": options.target,
        "group_size": group_size,
        "samples": options.samples,
        "seq_len": options.seq_len,
        "iters": options.iterations,
        "batch": BATCH,
        "calibration": calibration.passages,
        "heldout": heldout,
        "heldout_seq_len": HELDOUT_SEQ_LEN,
        "tools": TOOLS,
    }
    made = worker_process.run(python, job, workspace.scratch, part(progress, 0.1, 0.98))
    progress("writing the model card", 0.98)
    checkpoint.copy_companions(source.folder, workspace.model)
    facts = card.Facts(source, options.target, group_size, len(shapes), time.monotonic() - start)
    card.write(workspace.model, facts, made, calibration, heldout_hash)
