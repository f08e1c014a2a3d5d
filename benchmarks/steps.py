"""Times single steps of the server's runner, without HTTP: `python -m benchmarks.steps MODEL`.

Decoding steps of several numbers of rows, for the base, one adapter and eight adapters in turn, and the rate at which
a prompt is computed. For finding out where a change to the native decoder shows; what users see is `make bench`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.probe import bandwidth
from server.model.backend import KERNELS, make_backend
from server.model.config import DecoderConfig
from server.model.loader import load_base
from server.model.lora import AdapterWeights, LoraPair
from server.step import Batch, Row, Runner
from server.types import SamplingParams

RANK = 16
GREEDY = SamplingParams(temperature=0)
CONTEXT = 100  # tokens before the timed ones
PROMPT = 256

Choose = Callable[[int], AdapterWeights | None]  # row -> its adapter


def random_adapter(config: DecoderConfig, number: int) -> AdapterWeights:
    """All seven linear layers, B not zero."""
    c, chance = config, np.random.default_rng(number)
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {
        "q_proj": (c.hidden_size, q),
        "k_proj": (c.hidden_size, kv),
        "v_proj": (c.hidden_size, kv),
        "o_proj": (q, c.hidden_size),
        "gate_proj": (c.hidden_size, c.intermediate_size),
        "up_proj": (c.hidden_size, c.intermediate_size),
        "down_proj": (c.intermediate_size, c.hidden_size),
    }

    def values(rows: int, columns: int) -> np.ndarray:
        return (chance.standard_normal((rows, columns)) / 50).astype(np.float32)

    pairs = {
        (layer, module): LoraPair(values(RANK, size), values(out, RANK), 1.0)
        for layer in range(c.num_layers)
        for module, (size, out) in sizes.items()
    }
    return AdapterWeights(f"random@{number}", str(number), pairs)


def _row(
    runner: Runner, slot: int, tokens: list[int], start: int, adapter: AdapterWeights | None
) -> Row:
    per_row = -(-(CONTEXT + PROMPT) // runner.block_size)
    return Row(
        token_ids=tuple(tokens),
        start=start,
        block_ids=range(slot * per_row, (slot + 1) * per_row),
        num_draws=1,
        params=GREEDY,
        seed=0,
        draw=0,
        adapter=adapter,
    )


def decoding_ms(runner: Runner, rows: int, choose: Choose, tokens: list[int], steps: int) -> float:
    """Median milliseconds of a step of so many rows."""
    for slot in range(rows):
        runner.step(Batch((_row(runner, slot, tokens[:CONTEXT], 0, choose(slot)),)))
    seconds = []
    for step in range(steps):
        batch = Batch(
            tuple(_row(runner, s, [tokens[step]], CONTEXT + step, choose(s)) for s in range(rows))
        )
        begun = time.perf_counter()
        runner.step(batch)
        seconds.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(seconds))


def prompt_rate(runner: Runner, choose: Choose, tokens: list[int]) -> float:
    """Tokens per second of a prompt computed at once; median of five."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        runner.step(Batch((_row(runner, 0, tokens[:PROMPT], 0, choose(0)),)))
        seconds.append(time.perf_counter() - begun)
    return PROMPT / float(np.median(seconds))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rows", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8, 16]
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    base = load_base(options.model, max_context=2048)
    backend = make_backend(base, options.kernel, lambda _: 2**30, options.threads)
    adapters = [random_adapter(base.config, number) for number in range(8)]
    kinds: dict[str, Choose] = {
        "base": lambda _: None,
        "one adapter": lambda _: adapters[0],
        "eight adapters": lambda row: adapters[row % 8],
    }
    tokens = np.random.default_rng(0).integers(10, base.config.vocab_size - 10, PROMPT).tolist()
    print(
        f"kernel {backend.kernel}, weights {backend.weights} ({backend.weight_bytes / 1e9:.2f} GB),"
        f" {options.threads} threads, bandwidth probe {bandwidth(options.threads):.1f} GB/s\n"
    )
    print("| rows | " + " | ".join(f"{kind}, ms" for kind in kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for rows in options.rows:
        figures = [
            decoding_ms(backend.runner, rows, k, tokens, options.steps) for k in kinds.values()
        ]
        print(f"| {rows} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    rates = [prompt_rate(backend.runner, k, tokens) for k in kinds.values()]
    print("| prompt, tokens/s | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
