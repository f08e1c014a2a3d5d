"""A training run from recipe to published adapter. The one place that knows all parts, in order.

Libraries are imported inside the functions: the backend decides what must be imported first.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import Recipe
from trainer.environment import hush_libraries, prepare_environment, versions
from trainer.errors import TrainingError
from trainer.hub import commit_of
from trainer.progress import Reporter, Silent
from trainer.recipe_file import dump_recipe
from trainer.record import BaseModel, HistoryPoint, RunRecord, SourceLoss
from trainer.request import RunRequest, check_request, needs_hub

if TYPE_CHECKING:
    from trainer.backends.base import Backend, LoadedModel
    from trainer.dataset import PreparedData
    from trainer.losses import LossSum
    from trainer.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came out."""

    record: RunRecord
    adapter: Path
    report: Path
    published: Path | None


def run(request: RunRequest, reporter: Reporter | None = None) -> RunResult:
    """Train, evaluate, save, report and publish.

    Writes OUTPUT/adapter, OUTPUT/report and OUTPUT/recipe.yaml. Raises ConfigError or DataError before the first
    step, TrainingError if the losses are not numbers, memory does not suffice or publishing fails.
    """
    began, started = time.monotonic(), datetime.now(UTC)
    say = reporter or Silent()
    recipe = request.recipe
    check_request(request)
    prepare_environment(needs_hub=needs_hub(recipe))

    import torch  # noqa: PLC0415 (after the environment is set)

    from trainer.backends.select import select_backend  # noqa: PLC0415
    from trainer.machine import MemoryMeter, this_machine  # noqa: PLC0415

    machine = this_machine()
    backend = select_backend(recipe, machine)
    backend.activate()
    memory = MemoryMeter(machine)
    hush_libraries()
    warnings = list(recipe.advice())
    for warning in warnings:
        say.warn(warning)

    from trainer.prepare import prepare_data  # noqa: PLC0415

    say.say(f"Preparing the data for {recipe.base_id}")
    template, data = prepare_data(recipe, say)
    warnings += data.warnings
    say.say(f"Loading the base model ({backend.name} on {machine.name})")
    loaded = backend.load(recipe, machine)
    base = _base(recipe, loaded)  # before the training: what it finds wrong must not cost a run
    memory.mark_start()
    stop_token_ids = template.stop_token_ids(loaded.model.generation_config.eos_token_id)
    try:
        fitted, losses, answers = _train_and_judge(
            recipe, machine, backend, loaded, template, data, stop_token_ids, request.output, say
        )
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"The memory of {machine.name} ({memory.read().total_gb:.0f} GB) does not suffice. Lower "
            "training.per_device_train_batch_size and raise training.gradient_accumulation_steps by the same factor, "
            "or lower model.max_seq_length."
        ) from error
    trainable, parameters = loaded.model.get_nb_trainable_parameters()
    adapter = request.output / "adapter"
    _save(loaded, template, adapter)
    record = RunRecord(
        name=request.name,
        backend=backend.name,
        command=request.command,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        wall_seconds=time.monotonic() - began,
        train_seconds=fitted.seconds,
        steps=fitted.steps,
        epochs=fitted.epochs,
        train_tokens_seen=fitted.tokens_seen,
        tokens_per_second=fitted.tokens_seen / fitted.seconds if fitted.seconds else 0.0,
        final_train_loss=_final_train_loss(fitted.history),
        base=base,
        memory=memory.read(),
        trainable_parameters=trainable,
        total_parameters=parameters,
        recipe=recipe.model_dump(mode="json"),
        resolved_arguments={"dtype": loaded.dtype, **fitted.resolved_arguments},
        versions=versions(),
        stop_token_ids=stop_token_ids,
        sources=data.counts,
        history=fitted.history,
        losses=losses,
        answers=answers,
        masked_samples=data.samples,
        warnings=tuple(warnings),
    )
    return _conclude(request, record, adapter, began, say)


def _train_and_judge(
    recipe: Recipe,
    machine: Any,
    backend: Backend,
    loaded: LoadedModel,
    template: ChatTemplate,
    data: PreparedData,
    stop_token_ids: tuple[int, ...],
    output: Path,
    say: Reporter,
) -> tuple[Any, tuple[SourceLoss, ...], tuple[Any, ...]]:
    from trainer.answers import answer_prompts  # noqa: PLC0415
    from trainer.dataset import curve_rows  # noqa: PLC0415
    from trainer.fit import fit  # noqa: PLC0415
    from trainer.losses import LossMeter, total  # noqa: PLC0415

    pad_token_id = template.tokenizer.pad_token_id
    meter = LossMeter(
        backend, loaded.model, loaded.dtype, pad_token_id, recipe.evaluation.batch_size
    )
    curve = curve_rows(data, recipe.data, recipe.evaluation.curve_rows)
    fitted = fit(
        recipe,
        machine,
        backend,
        loaded,
        template.tokenizer,
        data.epoch,
        output,
        lambda: total(meter.measure(curve)).mean,
        say.bar("Training", recipe.training.max_steps),
    )
    _check_finite(fitted.history)
    say.say(f"Measuring the losses of {len(data.test)} held-out rows, base and tuned")
    tuned = meter.measure(data.test)
    with loaded.model.disable_adapter():
        base = meter.measure(data.test)
    bar = say.bar("Answers", len(recipe.answers.prompts))
    answers = answer_prompts(
        recipe.answers, backend, loaded.model, template, stop_token_ids, bar.advance
    )
    return fitted, _source_losses(base, tuned), answers


def _source_losses(base: dict[str, LossSum], tuned: dict[str, LossSum]) -> tuple[SourceLoss, ...]:
    from trainer.losses import total  # noqa: PLC0415

    losses = [
        SourceLoss(name, base[name].mean, tuned[name].mean, tuned[name].rows, tuned[name].tokens)
        for name in sorted(tuned)
    ]
    all_base, all_tuned = total(base), total(tuned)
    losses.append(
        SourceLoss("all", all_base.mean, all_tuned.mean, all_tuned.rows, all_tuned.tokens)
    )
    return tuple(losses)


def _check_finite(history: tuple[HistoryPoint, ...]) -> None:
    for point in history:
        for loss in (point.train_loss, point.eval_loss):
            if loss is not None and not math.isfinite(loss):
                raise TrainingError(
                    f"The loss was not a number at step {point.step}: nothing is saved. "
                    "Try a lower training.learning_rate, or another model.dtype."
                )


def _final_train_loss(history: tuple[HistoryPoint, ...]) -> float:
    return next(
        (point.train_loss for point in reversed(history) if point.train_loss is not None), math.nan
    )


def _base(recipe: Recipe, loaded: LoadedModel) -> BaseModel:
    digest = None
    if loaded.float_folder is not None:
        from trainer.weights import weights_digest  # noqa: PLC0415

        digest = weights_digest(loaded.float_folder)
    revision = loaded.trained_on_revision
    if loaded.trained_on_id != recipe.base_id:  # trained on a copy; the adapter names the original
        asked = recipe.model.revision if recipe.model.base_id is None else None
        revision = commit_of("model", recipe.base_id, asked)
    return BaseModel(
        id=recipe.base_id,
        revision=revision,
        architecture=loaded.architecture,
        weights_digest=digest,
        trained_on_id=loaded.trained_on_id,
        trained_on_revision=loaded.trained_on_revision,
        quantization=loaded.quantization,
    )


def _save(loaded: LoadedModel, template: ChatTemplate, folder: Path) -> None:
    """The adapter, its tokenizer and its frozen template."""
    # save_embedding_layers: the default asks the hub whether the vocabulary has grown.
    loaded.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    template.tokenizer.save_pretrained(folder)


def _conclude(
    request: RunRequest, record: RunRecord, adapter: Path, began: float, say: Reporter
) -> RunResult:
    """Report and publish."""
    from trainer.publish import PublishError, publish  # noqa: PLC0415
    from trainer.report import write_report  # noqa: PLC0415

    (request.output / "recipe.yaml").write_text(dump_recipe(request.recipe), encoding="utf-8")
    record = replace(record, wall_seconds=time.monotonic() - began)
    report = request.output / "report"
    write_report(record, report)
    say.say(f"Report: {report / 'report.html'}")
    published = None
    if request.adapters is not None:
        try:
            published = publish(adapter, record, report, request.adapters)
        except PublishError as error:
            raise TrainingError(f"{error} The adapter is whole in {adapter}.") from error
        say.say(f"Published: {published}")
    return RunResult(record, adapter, report, published)


def summary(record: RunRecord) -> str:
    """The result in a few lines."""
    lines = [
        f"{record.steps} steps in {record.train_seconds:.0f} s, {record.tokens_per_second:,.0f} tokens/s; "
        f"train loss {record.final_train_loss:.3f}; peak memory {record.memory.peak_reserved_gb:.2f} GB "
        f"({record.memory.peak_share:.0%} of this machine's)"
    ]
    lines += [
        f"held-out loss, {loss.source}: {loss.base:.3f} -> {loss.tuned:.3f} "
        f"({loss.rows} rows, {loss.tokens} tokens)"
        for loss in record.losses
    ]
    return "\n".join(lines)
