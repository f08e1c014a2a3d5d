"""`python -m server size`: reads the question from the command line, prints the answer and what it assumes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from server.cores import available_cores
from server.errors import ModelLoadError
from server.memory import available_bytes
from server.model.checkpoint import GGUF_SUFFIX, open_checkpoint
from server.model.config import DecoderConfig
from server.model.loader import DEFAULT_CONTEXT
from server.sizing.model_cost import BYTES_PER_VALUE, ModelCost, weight_bytes
from server.sizing.plan import Limits, Load, SizingError, plan
from server.sizing.shapes import SHAPES, shape_like
from server.sizing.step_time import Machine
from server.sizing.table import table

# Of the machine that docs/results/serving.md was measured on, with two cores.
MEASURED_BANDWIDTH = 27.0  # GB/s
MEASURED_GFLOPS_PER_CORE = 135.0


def main(arguments: list[str]) -> int:
    """The exit code: 0, 1 if no number of such machines carries the load, 2 for bad arguments."""
    options = _parser().parse_args(arguments)
    try:
        model, name, max_context = _model(options)
        machine, assumed = _machine(options)
        load = _load(options)
        limits = Limits(max_running=options.max_running)
        found = plan(model, machine, load, max_context, limits)
    except (SizingError, ModelLoadError) as error:
        print(f"server size: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print(table(name, model, machine, load, found, assumed))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server size",
        description="Replicas, memory, pace and cost of a load, by the formulas in server/sizing/ and this project's"
        " own measurements (docs/results/serving.md). An estimate: measure with `make bench` before you buy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    which = parser.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="PATH", help="a folder with config.json, or a GGUF file")
    which.add_argument("--like", choices=sorted(SHAPES), help="the shape of a known model")
    model = parser.add_argument_group("how it is served")
    model.add_argument(
        "--weights",
        choices=("auto", *BYTES_PER_VALUE),
        default="auto",
        help="how they lie in memory; auto: as in the folder's files, bfloat16 for --like",
    )
    model.add_argument(
        "--max-context", type=_count, default=DEFAULT_CONTEXT, help="as the server's own"
    )
    model.add_argument(
        "--max-running", type=_count, default=Limits().max_running, help="as the server's own"
    )
    model.add_argument("--adapters", type=_count0, default=0, help="LoRA adapters in use")
    model.add_argument("--rank", type=_count, default=16, help="of the adapters")
    load = parser.add_argument_group("the load")
    load.add_argument("--users", type=_count, default=10, help="people who chat at the same time")
    load.add_argument(
        "--tokens-per-second", type=_positive, default=5.0, help="for each, while it is answered"
    )
    load.add_argument(
        "--first-token-seconds", type=_positive, default=math.inf, help="at most, on average"
    )
    load.add_argument(
        "--prompt", type=_count, default=800, help="tokens of a request, the chat so far included"
    )
    load.add_argument("--answer", type=_count, default=200, help="tokens of an answer")
    load.add_argument(
        "--cached", type=_share, default=0.6,
        help="share of the prompt's tokens that the prefix cache has (0 to 1)",
    )  # fmt: skip
    load.add_argument(
        "--think", type=_positive0, default=30.0, help="seconds from an answer to the next question"
    )
    load.add_argument(
        "--utilisation", type=_share, default=0.8, help="planned for; the rest is for busy moments"
    )
    machine = parser.add_argument_group("one machine; what is not said is taken from this one")
    machine.add_argument("--cores", type=_count, help="real cores")
    machine.add_argument("--memory", type=_positive, metavar="GB", help="10^9 bytes")
    machine.add_argument(
        "--bandwidth", type=_positive, metavar="GB/S",
        help="of its memory; `python -m benchmarks.probe CORES` measures it",
    )  # fmt: skip
    machine.add_argument(
        "--gflops", type=_positive, help="10^9 float32 operations/s in a large matrix product"
    )
    machine.add_argument("--price", type=_positive0, default=0.0, help="per hour, any currency")
    parser.add_argument("--json", action="store_true", help="as JSON, in bytes and seconds")
    return parser


def _model(options: argparse.Namespace) -> tuple[ModelCost, str, int]:
    """The model, its name, and the context it will be served with. Raises ModelLoadError."""
    if options.like is not None:
        name, config, stored = options.like, shape_like(options.like), None
    else:
        name, config, stored = _stored(Path(options.model).expanduser())
    if options.weights != "auto" or stored is None:
        storage = "bfloat16" if options.weights == "auto" else options.weights
        stored = weight_bytes(config, storage)
    rank = options.rank if options.adapters else 0
    return ModelCost(config, stored, rank), name, min(options.max_context, config.max_positions)


def _stored(path: Path) -> tuple[str, DecoderConfig, int]:
    if not path.exists():
        raise ModelLoadError(f"There is no model at {path}. --like takes the shape of a known one.")
    if path.is_file() and path.suffix != GGUF_SUFFIX:
        raise ModelLoadError(
            f"{path} is no GGUF file. --model takes one, or a folder with config.json."
        )
    checkpoint = open_checkpoint(path)
    # A quantised GGUF file is served as the float32 values it stands for.
    smallest = BYTES_PER_VALUE["bfloat16"] * checkpoint.num_values
    served = BYTES_PER_VALUE["float32"] * checkpoint.num_values
    stored = checkpoint.num_bytes if checkpoint.num_bytes >= smallest else served
    return path.name, checkpoint.config, stored


def _machine(options: argparse.Namespace) -> tuple[Machine, list[str]]:
    """The machine, and what was assumed of it."""
    cores = options.cores or available_cores()
    assumed = []
    bandwidth = options.bandwidth
    if bandwidth is None:
        bandwidth = MEASURED_BANDWIDTH
        assumed.append(
            f"{bandwidth:.0f} GB/s of memory bandwidth, that of the machine measured (--bandwidth)"
        )
    gflops = options.gflops
    if gflops is None:
        gflops = MEASURED_GFLOPS_PER_CORE * cores
        assumed.append(
            f"{gflops:.0f} GFLOP/s: {cores} cores like the measured ones, with AVX-512 (--gflops)"
        )
    memory = available_bytes() if options.memory is None else int(options.memory * 1e9)
    if options.memory is None:
        assumed.append(f"{memory / 1e9:.1f} GB of memory, that of this machine (--memory)")
    return Machine(memory, bandwidth * 1e9, gflops * 1e9, options.price), assumed


def _load(options: argparse.Namespace) -> Load:
    if options.utilisation == 0:
        raise SizingError("at a utilisation of 0 no machine carries anything (--utilisation).")
    return Load(
        users=options.users,
        tokens_per_second=options.tokens_per_second,
        prompt_tokens=options.prompt,
        answer_tokens=options.answer,
        cached_share=options.cached,
        think_seconds=options.think,
        first_token_seconds=options.first_token_seconds,
        adapters=options.adapters,
        utilisation=options.utilisation,
    )


def _count0(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 0 <= value <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10^9")
    return value


def _count(text: str) -> int:
    value = _count0(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number (without a unit; --help says which)"
        ) from None


def _positive0(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10^9")
    return value


def _positive(text: str) -> float:
    value = _positive0(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value
