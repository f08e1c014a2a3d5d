"""The flags of the trainer's command line, and what `--help` says of them. Nothing is imported that a command needs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# The prompts of `evaluate --ifeval` without a file.
SHIPPED_INSTRUCTIONS = Path(__file__).parent / "evaluations" / "checkable-instructions.jsonl"


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tunes a LoRA adapter for a chat model and publishes it.",
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("recipes", help="list the recipes that come with the trainer")
    plan = commands.add_parser(
        "plan",
        help="before a GPU is rented: steps, memory, hours on usual cards, and every trap found",
    )
    plan.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the plan there too, as a page like the report",
    )
    prepare = commands.add_parser(
        "prepare", help="only read, clean, tokenise and split the data, and show what came of it"
    )
    prepare.add_argument(
        "--show",
        nargs="?",
        type=count,
        const=3,
        default=3,
        metavar="N",
        help="how many training rows to print with what is trained coloured and between marks (default: 3)",
    )
    train = commands.add_parser("train", help="train an adapter and publish it")
    for command in (plan, prepare, train):
        command.add_argument(
            "--recipe",
            required=True,
            metavar="RECIPE",
            help="recipe file, or a shipped recipe's name",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one key of the recipe, such as training.max_steps=100 (YAML value; repeatable)",
        )
    train.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of this run; the same command goes on with what it holds",
    )
    _add_volume(train, "the adapter volume to publish to")
    train.add_argument(
        "--name", metavar="NAME", help="the adapter's name on the volume (default: the name of DIR)"
    )
    train.add_argument(
        "--no-publish",
        action="store_true",
        help="leave the adapter in DIR; do not touch the volume",
    )
    train.add_argument(
        "--auto-batch",
        action="store_true",
        help="where memory does not suffice, go on from the last checkpoint with smaller forward passes; the rows of a "
        "step stay the same",
    )
    evaluate = commands.add_parser(
        "evaluate",
        help="an adapter against its base or another adapter on rows it never saw, with confidence intervals",
    )
    evaluate.add_argument(
        "--adapter",
        required=True,
        metavar="ADAPTER",
        help="a published version's folder, or NAME or NAME@VERSION on the volume",
    )
    evaluate.add_argument(
        "--against",
        default="base",
        metavar="base|ADAPTER",
        help="what it is compared with: base (default), or another adapter for the same base with the same template: "
        "a folder, or NAME or NAME@VERSION on the volume. With --server it is asked for by its name there",
    )
    evaluate.add_argument(
        "--base", metavar="BASE", help="folder or hub id of the float base (default: the adapter's)"
    )
    evaluate.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE=FILE",
        help="where a source of the recipe lies here",
    )
    evaluate.add_argument(
        "--rows",
        type=count,
        default=100,
        help="held-out rows at most (default: 100; 0: none, nor answers to them)",
    )
    evaluate.add_argument(
        "--answers",
        type=count,
        default=20,
        help="of these answered (default: 20; fewer are too few for a verdict; 0: none)",
    )
    evaluate.add_argument(
        "--max-new-tokens", type=int, default=128, help="longest answer (default: 128)"
    )
    evaluate.add_argument(
        "--server", metavar="URL", help="ask a running server (default: answer in this process)"
    )
    evaluate.add_argument(
        "--ifeval",
        nargs="?",
        type=Path,
        const=SHIPPED_INSTRUCTIONS,
        metavar="FILE",
        help="checkable instructions too, through lm-eval: JSONL in google/IFEval's form (no FILE: the trainer's own "
        "40 prompts); needs --server",
    )
    evaluate.add_argument(
        "--lm-eval",
        type=Path,
        metavar="PYTHON",
        help="of the environment that lm-eval is in (default: this one, else .venv-ifeval)",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    _add_volume(evaluate, "the adapter volume")
    export = commands.add_parser(
        "export", help="write an adapter merged into its base, or as GGUF, for other programs"
    )
    export.add_argument(
        "adapter", metavar="ADAPTER", help="a folder, or NAME or NAME@VERSION on the volume"
    )
    export.add_argument(
        "--base", metavar="BASE", help="folder or hub id of the float base (default: the adapter's)"
    )
    export.add_argument(
        "--merged", type=Path, metavar="DIR", help="a whole model for transformers (safetensors)"
    )
    export.add_argument("--gguf", type=Path, metavar="FILE", help="a whole model for llama.cpp")
    export.add_argument(
        "--lora-gguf", type=Path, metavar="FILE", help="the adapter alone for llama.cpp"
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the merged weights",
    )
    _add_volume(export, "the adapter volume")
    rollback = commands.add_parser(
        "rollback", help="serve an earlier version of an adapter again: move its 'latest' back"
    )
    rollback.add_argument("name", metavar="NAME", help="the adapter's name on the volume")
    rollback.add_argument(
        "version",
        nargs="?",
        metavar="VERSION",
        help="the version to serve (default: the one before the present latest)",
    )
    _add_volume(rollback, "the adapter volume")
    shape = commands.add_parser(
        "make-shape",
        help="write a model of a known architecture with random weights, to try a recipe on",
    )
    shape.add_argument(
        "--like", required=True, metavar="NAME", help="llama-3.2-3b, llama-3.2-1b or tiny"
    )
    shape.add_argument("folder", type=Path, metavar="DIR", help="folder to write; must not exist")
    shape.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="a text whose words the tokenizer learns (default: none)",
    )
    shape.add_argument("--seed", type=int, default=3407, help="of the weights (default: 3407)")
    return whole


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _add_volume(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--adapters",
        type=Path,
        default=Path(os.environ.get("LORACHAT_ADAPTERS") or "adapters"),
        metavar="DIR",
        help=f"{what} (default: $LORACHAT_ADAPTERS, else ./adapters)",
    )
