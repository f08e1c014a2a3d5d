"""Compares ways to train on one GPU, on the same rows: step time, real tokens/s, memory, FLOP utilisation.

    python -m benchmarks.train_gpu --model DIR --sharegpt FILE --instructions FILE --json FILE
    python -m benchmarks.train_gpu --miniature        any machine: a tiny model, made-up rows, the plain engine

DIR: a float checkpoint, real or from `python -m trainer make-shape`. One process per engine, each with its own time
limit; what is measured is written as it comes, so a process that is killed loses its current variant only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the children, print the table; returns the exit code."""
    options = _options()
    if options.child:
        return _child(options)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.miniature:
            _make_miniature(options, Path(scratch))
        for engine in options.engines:
            part = Path(scratch) / f"{engine}.json"
            command = [sys.executable, "-m", "benchmarks.train_gpu", "--child", engine]
            command += ["--json", str(part), "--model", str(options.model)]
            command += ["--sharegpt", str(options.sharegpt), "--steps", str(options.steps)]
            command += ["--instructions", str(options.instructions), "--skip", str(options.skip)]
            command += ["--variants", *options.variants] if options.variants else []
            command += ["--miniature"] if options.miniature else []
            env = os.environ | {
                "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            }
            try:
                # unsloth writes a folder of compiled code where it is started.
                subprocess.run(command, cwd=scratch, env=env, timeout=options.timeout, check=False)
            except subprocess.TimeoutExpired:
                print(f"{engine}: stopped after {options.timeout} s", file=sys.stderr)
            if part.is_file():
                found = json.loads(part.read_text())
                results.setdefault("machine", found["machine"])
                results.setdefault("variants", {}).update(found["variants"])
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    if not results:
        print("nothing was measured", file=sys.stderr)
        return 1
    print(table(results))
    return 1 if any("error" in value for value in results["variants"].values()) else 0


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    machine = results["machine"]
    lines = [
        f"{machine['device']}, driver {machine['driver']}; "
        f"bf16 matrix product {machine['ceiling'] / 1e12:.0f} TFLOP/s; "
        f"{machine['rows']} rows, mean {machine['mean_tokens']:.0f} tokens",
        "",
        "| variant | s/step (median) | real tokens/step | real tokens/s | peak reserved GB | after load GB | "
        "model FLOPs | hardware FLOPs | load s | first step s | kernels/step | GPU busy |",
        "| --- " * 12 + "|",
    ]
    for name, value in results["variants"].items():
        if "error" in value:
            lines.append(f"| {name} | {value['error'][:120]} |" + " |" * 10)
            continue
        profile = value["profile"]
        busy = profile["gpu_busy_seconds"] / profile["wall_seconds"] if profile else 0.0
        lines.append(
            f"| {name} | {value['step_seconds_mean']:.3f} ({value['step_seconds_median']:.3f}) "
            f"| {value['tokens_per_step']:.0f} | {value['tokens_per_second']:.0f} "
            f"| {value['peak_reserved_gb']:.2f} | {value['loaded_gb']:.2f} "
            f"| {value['model_utilisation']:.1%} | {value['hardware_utilisation']:.1%} "
            f"| {value['load_seconds']:.1f} | {value['first_step_seconds']:.1f} "
            f"| {profile.get('kernels', 0):.0f} | {busy:.0%} |"
        )
    return "\n".join([*lines, "", machine["formula"]])


def _child(options: argparse.Namespace) -> int:
    """One engine: all its variants, in one process."""
    from trainer.environment import hush_libraries, prepare_environment, versions

    prepare_environment(needs_hub=False)
    began = time.perf_counter()
    if options.child == "unsloth":
        from benchmarks.train_unsloth_varlen import let_unsloth_see_varlen
        from trainer.backends.unsloth import UnslothBackend

        let_unsloth_see_varlen()
        UnslothBackend().activate()
    import torch
    import transformers.trainer
    from transformers import AutoConfig

    from benchmarks.train_clock import StepClock
    from benchmarks.train_figures import FORMULA, matrix_ceiling, token_flops
    from benchmarks.train_variants import VARIANTS, Work, forget
    from trainer.prepare import prepare_data
    from trainer.progress import Silent

    hush_libraries()
    import_seconds = time.perf_counter() - began
    recipe = _recipe(options)
    template, data = prepare_data(recipe, Silent())
    work = Work(recipe, template, [*data.train, *data.test])
    lengths = [row.tokens for row in work.rows]
    machine: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "driver": _driver(),
        "ceiling": matrix_ceiling(),
        "rows": len(lengths),
        "mean_tokens": statistics.mean(lengths),
        "versions": versions(),
        "formula": FORMULA,
    }
    config = AutoConfig.from_pretrained(recipe.model.base)
    found: dict[str, Any] = {}
    for name, run in VARIANTS[options.child].items():
        if options.variants and name not in options.variants:
            continue
        clock = StepClock(profiled=recipe.training.max_steps)
        transformers.trainer.DEFAULT_CALLBACKS.append(clock)
        try:
            taken = run(work, clock)
        except Exception as error:  # the other variants are still wanted
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            import traceback

            traceback.print_exc()
        else:
            steps = taken.steps
            seconds, tokens = steps.seconds[options.skip :], steps.tokens[options.skip :]
            rate = sum(tokens) / sum(seconds)
            flops = token_flops(config, taken.lora_parameters, lengths, recompute=taken.recompute)
            ceiling = machine["ceiling"] or float("inf")
            found[name] = {
                "engine": options.child,
                "import_seconds": import_seconds,
                "step_seconds_mean": statistics.mean(seconds),
                "step_seconds_median": statistics.median(seconds),
                "tokens_per_step": statistics.mean(tokens),
                "tokens_per_second": rate,
                "model_utilisation": rate * flops.model / ceiling,
                "hardware_utilisation": rate * flops.hardware / ceiling,
                "profile": steps.profile,
                "losses": steps.losses,
                "step_seconds": steps.seconds,
                "step_tokens": steps.tokens,
                **{k: v for k, v in asdict(taken).items() if k != "steps"},
            }
        transformers.trainer.DEFAULT_CALLBACKS.remove(clock)
        options.json.write_text(json.dumps({"machine": machine, "variants": found}))
        forget()
    return 0


def _recipe(options: argparse.Namespace) -> Any:
    """The published recipe on the given model and rows. 500 instructions give rows of about 390 tokens on average."""
    from trainer.recipe_file import load_recipe

    changes = [
        f"model.base={options.model}",
        "model.base_id=benchmark",
        f"data.sources.0.location={options.sharegpt}",
        f"data.sources.1.location={options.instructions}",
        "data.sources.1.samples=520",
        f"training.max_steps={options.steps}",
        "training.warmup_steps=5",
        "training.logging_steps=1",
        f"training.save_steps={options.steps + 1}",
        "evaluation.eval_steps=1000",
    ]
    if options.miniature:
        changes += ["model.load_in_4bit=false", "training.optim=adamw_torch"]
        changes += [
            "training.per_device_train_batch_size=2",
            "training.gradient_accumulation_steps=2",
        ]
        changes += ["model.max_seq_length=256"]
    return load_recipe("llama-3.2-3b", changes)


def _make_miniature(options: argparse.Namespace, folder: Path) -> None:
    from trainer.shape import make_shape

    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
    ]
    asks = [" ".join(words[i % 12 :] + words[: i % 7]) + f" {i}" for i in range(48)]
    chats = [
        {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": ask[::-1]}]}
        for ask in asks[:24]
    ]
    pairs = [{"instruction": ask, "output": ask[::-1]} for ask in asks[24:]]
    options.sharegpt, options.instructions = folder / "chats.jsonl", folder / "pairs.jsonl"
    for path, rows in ((options.sharegpt, chats), (options.instructions, pairs)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options.model, options.steps, options.skip, options.engines = folder / "model", 3, 1, ["plain"]
    make_shape("tiny", options.model)
    options.variants = options.variants or ["trl", "ours-recommended"]


def _driver() -> str:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "none"
    return found.stdout.splitlines()[0] if found.returncode == 0 else "none"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_gpu", description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sharegpt", type=Path)
    parser.add_argument("--instructions", type=Path)
    parser.add_argument("--json", type=Path, default=Path("train_gpu.json"))
    parser.add_argument("--steps", type=int, default=20, help="per variant; the last is profiled")
    parser.add_argument("--skip", type=int, default=6, help="steps that are not counted")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per engine")
    parser.add_argument("--engines", nargs="+", default=["plain", "unsloth"])
    parser.add_argument("--variants", nargs="+", default=[])
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.miniature and not (options.model and options.sharegpt and options.instructions):
        parser.error("give --model, --sharegpt and --instructions, or --miniature")
    for name in ("model", "sharegpt", "instructions", "json"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    return options


if __name__ == "__main__":
    sys.exit(main())
