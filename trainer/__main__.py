"""The trainer's command line.

    python -m trainer recipes
    python -m trainer plan    --recipe RECIPE [--set KEY=VALUE ...] [--html FILE]
    python -m trainer prepare --recipe RECIPE [--set KEY=VALUE ...]
    python -m trainer train   --recipe RECIPE [--set KEY=VALUE ...] --output DIR [--adapters DIR] [--name NAME]
    python -m trainer evaluate --adapter ADAPTER [--against base|ADAPTER] [--base BASE] [--server URL] [--ifeval [FILE]]
    python -m trainer export  ADAPTER [--merged DIR] [--gguf FILE] [--lora-gguf FILE]
    python -m trainer rollback NAME [VERSION] [--adapters DIR]
    python -m trainer make-shape --like llama-3.2-3b DIR

Exit codes: 0 done, now or by an earlier start; 3 the recipe, the data or this machine is not right (trying again will
not help); 75 memory did not suffice (trying again with --auto-batch will) or a disk is full (it will once there is
room), or evaluate's server is away or busy; 143 ended by SIGTERM with a checkpoint saved, and 130 by Ctrl-C (the same
`train` goes on from the last checkpoint); 1 other.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.arguments import parser
from trainer.errors import DiskFull, OutOfMemory, TrainerError
from trainer.full_disk import is_full_disk


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        if options.command == "recipes":
            return _recipes()
        if options.command == "prepare":
            return _prepare(options)
        if options.command == "plan":
            return _plan(options)
        if options.command == "evaluate":
            return _evaluate(options)
        if options.command == "export":
            return _export(options)
        if options.command == "rollback":
            return _rollback(options)
        if options.command == "make-shape":
            return _make_shape(options)
        return _train(options, given)
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"trainer: {error}", file=sys.stderr)
        return DiskFull.exit_code if is_full_disk(error) else 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint"
        print(f"trainer: stopped{goes_on * (options.command == 'train')}", file=sys.stderr)
        return 130


def _make_shape(options: argparse.Namespace) -> int:
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.shape import make_shape

    prepare_environment(needs_hub=False)
    hush_libraries()
    count = make_shape(options.like, options.folder, text=options.text, seed=options.seed)
    print(f"{options.folder}: {count:,} random parameters shaped like {options.like}")
    return 0


def _recipes() -> int:
    from trainer.recipe_file import load_recipe, shipped_recipes

    for name in shipped_recipes():
        recipe = load_recipe(name)
        where = "CUDA GPU" if recipe.cuda_needs() else "any machine"
        print(f"{name:28} {where:12} {recipe.description}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from trainer.adapters import find_adapter
    from trainer.against import BASE, find_against
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.errors import ConfigError
    from trainer.evaluate import evaluate, recipe_of, write_scores
    from trainer.progress import terminal
    from trainer.request import needs_hub
    from trainer.scores import Score

    adapter = find_adapter(options.adapter, options.adapters)
    against = find_against(
        options.against, adapter, options.base or adapter.base_id, options.adapters
    )
    reference = against.served_name if against else BASE
    checkers = None
    if options.ifeval is not None:
        from trainer.ifeval import checkable_instructions, find_checkers, read_prompts

        if options.server is None:
            raise ConfigError("--ifeval asks a running server: name it with --server URL.")
        checkers = find_checkers(options.lm_eval)
        prompts = read_prompts(options.ifeval, checkers)
    if not options.rows and checkers is None:
        raise ConfigError("Nothing to evaluate: --rows is 0 and there is no --ifeval.")
    pairs = [item.partition("=") for item in options.data]
    if any(not location for _, _, location in pairs):
        raise ConfigError("--data is not of the form SOURCE=FILE.")
    places = {name: location for name, _, location in pairs}
    scores: list[Score] = []
    with terminal() as reporter:
        if options.rows:
            recipe = recipe_of(adapter, options.base or adapter.base_id, places)
            prepare_environment(needs_hub=needs_hub(recipe))
            hush_libraries()
            scores += evaluate(
                adapter,
                recipe,
                reporter,
                against=against,
                rows=options.rows,
                answers=options.answers,
                max_new_tokens=options.max_new_tokens,
                server=options.server,
            )
        if checkers is not None:
            scores += checkable_instructions(
                options.server,
                adapter.served_name,
                reference,
                prompts,
                options.max_new_tokens,
                checkers,
                reporter,
            )
    for score in scores:
        print(
            f"{score.name}: {reference} {score.base:.3f}, tuned {score.tuned:.3f}; difference "
            f"{score.tuned - score.base:+.3f} (95 % between {score.low:+.3f} and {score.high:+.3f}, "
            f"{score.rows} rows): {score.verdict}"
        )
    if options.json is not None:
        write_scores(options.json, adapter, against, scores)
    return 0


def _export(options: argparse.Namespace) -> int:
    from trainer.adapters import find_adapter
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.errors import ConfigError
    from trainer.progress import terminal

    targets = {"merged": options.merged, "gguf": options.gguf, "lora_gguf": options.lora_gguf}
    if not any(targets.values()):
        raise ConfigError("Nothing to export: give --merged, --gguf or --lora-gguf.")
    adapter = find_adapter(options.adapter, options.adapters)
    base = options.base or adapter.base_id
    prepare_environment(needs_hub=not Path(base).is_dir())

    from trainer.export import export

    hush_libraries()
    with terminal() as reporter:
        export(adapter, base, reporter, dtype=options.dtype, **targets)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from trainer.rollback import rollback

    done = rollback(options.adapters, options.name, options.version)
    print(f"'latest' of {options.name} was {done.before or 'not set'} and is {done.after} now")
    print("running servers follow at their next look at the volume; nothing was removed")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.progress import terminal
    from trainer.recipe_file import load_recipe
    from trainer.request import needs_hub

    recipe = load_recipe(options.recipe, options.set)
    prepare_environment(needs_hub=needs_hub(recipe))

    from trainer.plan import make_plan
    from trainer.show_plan import show_plan

    hush_libraries()
    with terminal() as reporter:
        plan = make_plan(recipe, reporter)
    show_plan(recipe, plan)
    if options.html is not None:
        from trainer.report.plan_page import write_plan

        write_plan(recipe, plan, options.html)
        print(f"page: {options.html}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from trainer.environment import hush_libraries, prepare_environment
    from trainer.progress import terminal
    from trainer.recipe_file import load_recipe
    from trainer.request import needs_hub

    recipe = load_recipe(options.recipe, options.set)
    prepare_environment(needs_hub=needs_hub(recipe))

    from trainer.dataset import masked_samples
    from trainer.prepare import prepare_data
    from trainer.show import show_data

    hush_libraries()
    with terminal() as reporter:
        template, data = prepare_data(recipe, reporter)
    show_data(data, masked_samples(data.train, template, recipe.data, options.show))
    return 0


def _train(options: argparse.Namespace, given: list[str]) -> int:
    from trainer.outcome import earlier_outcome
    from trainer.processes import is_main, process_count
    from trainer.progress import terminal
    from trainer.recipe_file import load_recipe
    from trainer.request import RunRequest
    from trainer.run import run, summary

    request = RunRequest(
        recipe=load_recipe(options.recipe, options.set),
        output=options.output,
        name=options.name or options.output.resolve().name,
        adapters=None if options.no_publish else options.adapters,
        command=shlex.join(["python", "-m", "trainer", *given]),
    )
    if outcome := earlier_outcome(request):
        if is_main():
            print(f"already complete\n{outcome.summary}\nreport: {outcome.report}/report.html")
            print(f"adapter: {outcome.published or outcome.adapter}")
        return 0
    try:
        with terminal() as reporter:
            result = run(request, reporter)
    except OutOfMemory as error:
        if not options.auto_batch:
            raise
        from trainer.auto_batch import halve_passes

        change = halve_passes(request.recipe, request.output)
        print(f"trainer: memory does not suffice; {change}, and on", file=sys.stderr, flush=True)
        if process_count() > 1:  # the launcher starts all of them again
            return error.exit_code
        # A new process: what the libraries hold of the failed one's memory goes with it.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", *given])
    if result is not None:
        print(summary(result.record))
        print(f"report: {result.report / 'report.html'}")
        print(f"adapter: {result.published or result.adapter}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
