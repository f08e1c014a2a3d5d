"""The trainer's command line.

    python -m trainer recipes
    python -m trainer prepare --recipe RECIPE [--set KEY=VALUE ...]
    python -m trainer train   --recipe RECIPE [--set KEY=VALUE ...] --output DIR [--adapters DIR] [--name NAME]

Exit codes: 0 done; 3 the recipe, the data or this machine is not right (trying again will not help); 1 other.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import TrainerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        if options.command == "recipes":
            return _recipes()
        if options.command == "prepare":
            return _prepare(options)
        return _train(options, shlex.join(["python", "-m", "trainer", *given]))
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trainer: stopped; nothing was published", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tunes a LoRA adapter for a chat model and publishes it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("recipes", help="list the recipes that come with the trainer")
    prepare = commands.add_parser(
        "prepare", help="only read, clean, tokenise and split the data, and show what came of it"
    )
    train = commands.add_parser("train", help="train an adapter and publish it")
    for command in (prepare, train):
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
        help="folder of this run; must hold none yet",
    )
    train.add_argument(
        "--adapters",
        type=Path,
        default=Path(os.environ.get("LORACHAT_ADAPTERS") or "adapters"),
        metavar="DIR",
        help="the adapter volume to publish to (default: $LORACHAT_ADAPTERS, else ./adapters)",
    )
    train.add_argument(
        "--name", metavar="NAME", help="the adapter's name on the volume (default: the name of DIR)"
    )
    train.add_argument(
        "--no-publish",
        action="store_true",
        help="leave the adapter in DIR; do not touch the volume",
    )
    return parser


def _recipes() -> int:
    from trainer.recipe_file import load_recipe, shipped_recipes

    for name in shipped_recipes():
        recipe = load_recipe(name)
        where = "CUDA GPU" if recipe.cuda_needs() else "any machine"
        print(f"{name:28} {where:12} {recipe.description}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.progress import terminal
    from trainer.recipe_file import load_recipe
    from trainer.request import needs_hub

    recipe = load_recipe(options.recipe, options.set)
    prepare_environment(needs_hub=needs_hub(recipe))

    from trainer.prepare import prepare_data
    from trainer.show import show_data

    hush_libraries()
    with terminal() as reporter:
        _, data = prepare_data(recipe, reporter)
    show_data(data)
    return 0


def _train(options: argparse.Namespace, command: str) -> int:
    from trainer.progress import terminal
    from trainer.recipe_file import load_recipe
    from trainer.request import RunRequest
    from trainer.run import run, summary

    request = RunRequest(
        recipe=load_recipe(options.recipe, options.set),
        output=options.output,
        name=options.name or options.output.resolve().name,
        adapters=None if options.no_publish else options.adapters,
        command=command,
    )
    with terminal() as reporter:
        result = run(request, reporter)
    print(summary(result.record))
    print(f"report: {result.report / 'report.html'}")
    print(f"adapter: {result.published or result.adapter}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
