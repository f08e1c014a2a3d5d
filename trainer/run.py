"""A training run from recipe to published adapter. The one place that knows all parts, in order.

Libraries are imported inside the functions: the backend decides what must be imported first.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.auto_batch import pass_setting, with_smaller_passes
from trainer.base_model import base_model
from trainer.checkpoints import newest_sealed, remove_broken, step_of
from trainer.config import Recipe
from trainer.environment import hush_libraries, prepare_environment, versions
from trainer.errors import (
    ConfigError,
    DiskFull,
    Interrupted,
    OutOfMemory,
    TrainerError,
    TrainingError,
)
from trainer.full_disk import disk_full, is_full_disk
from trainer.identity import check_identity, data_fingerprint, recipe_facts, text_fingerprint
from trainer.outcome import Outcome, earlier_outcome, write_outcome
from trainer.output_lock import output_lock
from trainer.processes import is_main, process_count
from trainer.progress import Reporter, Silent
from trainer.recipe_file import dump_recipe
from trainer.record import (
    FloatBaseLoss,
    HistoryPoint,
    Probe,
    RunRecord,
    SourceLoss,
)
from trainer.request import RunRequest, check_request, needs_hub

if TYPE_CHECKING:
    from trainer.backends.base import Backend, LoadedModel
    from trainer.dataset import PreparedData
    from trainer.machine import MemoryMeter
    from trainer.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came out. Of several processes the main one has it."""

    record: RunRecord
    adapter: Path
    report: Path
    published: Path | None


def run(request: RunRequest, reporter: Reporter | None = None) -> RunResult | None:
    """Train, evaluate, save, report and publish; go on where an earlier start with the same request was ended.

    Writes OUTPUT/adapter, OUTPUT/report, OUTPUT/recipe.yaml and, last, OUTPUT/complete.json. None in all processes but
    the main one. Raises ConfigError or DataError before the first step; Interrupted after SIGTERM, with a checkpoint
    saved; OutOfMemory; DiskFull, with what was complete kept; TrainingError if the losses are not numbers or publishing
    fails.
    """
    began, started = time.monotonic(), datetime.now(UTC)
    say = (reporter or Silent()) if is_main() else Silent()
    check_request(request)
    if earlier_outcome(request) is not None:
        raise ConfigError(
            f"{request.output} holds a complete run already; choose another --output."
        )
    with output_lock(request.output):
        try:
            return _locked_run(request, began, started, say)
        except Exception as error:
            if isinstance(error, TrainerError) or not is_full_disk(error):
                raise
            raise disk_full(request.output) from error


def _locked_run(
    request: RunRequest, began: float, started: datetime, say: Reporter
) -> RunResult | None:
    prepare_environment(needs_hub=needs_hub(request.recipe))

    from trainer.backends.select import select_backend  # noqa: PLC0415
    from trainer.expectation import expectation  # noqa: PLC0415
    from trainer.float_base import float_rows, on_float_base  # noqa: PLC0415
    from trainer.machine import (  # noqa: PLC0415
        MemoryMeter,
        free_memory,
        lacks_memory,
        this_machine,
    )
    from trainer.padding_free import padding_free_problem  # noqa: PLC0415
    from trainer.probe import peft_probe, probe_ids  # noqa: PLC0415
    from trainer.trackers import check_trackers  # noqa: PLC0415

    recipe = with_smaller_passes(request.recipe, request.output)
    check_trackers(recipe)
    machine = this_machine()
    backend = select_backend(recipe, machine)
    backend.activate()
    memory = MemoryMeter(machine)
    hush_libraries()
    warnings = list(recipe.advice())
    asked = machine.has_cuda and recipe.training.padding_free == "auto"
    if asked and (problem := padding_free_problem(machine)):
        warnings.append(
            f"training.padding_free: rows are padded, which is slower, since {problem}."
        )
    for warning in warnings:
        say.warn(warning)

    from trainer.prepare import prepare_data  # noqa: PLC0415

    say.say(f"Preparing the data for {recipe.base_id}")
    template, data = prepare_data(recipe, say)
    warnings += data.warnings
    say.say(f"Loading the base model ({backend.name} on {machine.name})")
    try:
        loaded = backend.load(recipe, machine)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise ConfigError(
            f"The base model does not fit into what is free of the {memory.read().total_gb:.0f} GB of {machine.name}. "
            "End what else holds memory there (nvidia-smi shows it), set model.load_in_4bit=true, or take a larger GPU."
        ) from error
    base = base_model(
        recipe, loaded
    )  # before the training: what it finds wrong must not cost a run
    if is_main():
        check_identity(
            request.output,
            recipe_facts(recipe)
            | {
                "data": data_fingerprint(data.epoch),
                "template": text_fingerprint(template.text),
                "base weights": base.weights_digest or f"{base.trained_on_id} {base.revision}",
                "backend": backend.name,
                "compute type": loaded.dtype,
                "processes": str(process_count()),
            },
        )
    expected = expectation(
        recipe, loaded.model.config, data, machine, padding_free=loaded.padding_free
    )
    memory.mark_start()
    stop_token_ids = template.stop_token_ids(loaded.model.generation_config.eos_token_id)
    try:
        judged = _train_and_judge(
            recipe,
            machine,
            backend,
            loaded,
            template,
            data,
            stop_token_ids,
            request.output,
            memory,
            say,
        )
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(
            f"The memory of {machine.name} ({memory.read().total_gb:.0f} GB) does not suffice. Start again with "
            "--auto-batch, which makes the forward passes smaller and keeps the rows of a step, or lower "
            f"{pass_setting(recipe)} yourself; the run goes on from its last checkpoint."
        ) from error
    if judged is None:
        return None
    fitted, losses, answers, quantised = judged
    trainable, parameters = loaded.model.get_nb_trainable_parameters()
    adapter = request.output / "adapter"
    _save(loaded, template, adapter)
    peak = memory.read()
    float_losses: tuple[FloatBaseLoss, ...] = ()
    if backend.name == "peft" and loaded.dtype == "float32" and not (quantised or machine.has_cuda):
        # In memory lies what is served, untouched but for the adapter: no need to load it again.
        probe = peft_probe(loaded.model.unload(), adapter, probe_ids(template))
    elif quantised is not None or loaded.float_folder is not None:
        say.say("Measuring on the float32 base, which the adapter is served on")
        loaded = replace(loaded, model=None)
        free_memory(machine)
        rows = recipe.evaluation.float_base_rows if quantised is not None else 0
        measured = on_float_base(
            recipe.model.base if loaded.float_folder else recipe.base_id,
            adapter,
            float_rows(data, rows, recipe.data.seed) if rows else (),
            template.tokenizer.pad_token_id,
            quantised,
            probe_ids(template),
        )
        float_losses, probe = measured.losses, measured.probe
        if measured.problem:
            warnings.append(measured.problem)
            say.warn(measured.problem)
    else:
        probe = Probe(
            absent=f"the float32 weights of {recipe.base_id} were not at hand where it was trained, and"
            " evaluation.float_base_rows is 0"
        )
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
        memory=peak,
        trainable_parameters=trainable,
        total_parameters=parameters,
        recipe=recipe.model_dump(mode="json"),
        resolved_arguments={
            "dtype": loaded.dtype,
            "padding_free": loaded.padding_free,
            **fitted.resolved_arguments,
        },
        versions=versions(),
        stop_token_ids=stop_token_ids,
        sources=data.counts,
        history=fitted.history,
        losses=losses,
        answers=answers,
        masked_samples=data.samples,
        warnings=tuple(warnings),
        float_losses=float_losses,
        probe=probe,
        expected=expected,
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
    memory: MemoryMeter,
    say: Reporter,
) -> tuple[Any, tuple[SourceLoss, ...], tuple[Any, ...], Any] | None:
    """None in all processes but the main one: their work is done with the last step."""
    from trainer.answers import answer_prompts  # noqa: PLC0415
    from trainer.dataset import curve_rows  # noqa: PLC0415
    from trainer.fit import fit  # noqa: PLC0415
    from trainer.float_base import float_rows, measure_both  # noqa: PLC0415
    from trainer.losses import LossMeter, compare, total  # noqa: PLC0415

    pad_token_id = template.tokenizer.pad_token_id
    meter = LossMeter(
        backend, loaded.model, loaded.dtype, pad_token_id, recipe.evaluation.batch_size
    )
    curve = curve_rows(data, recipe.data, recipe.evaluation.curve_rows)
    checkpoints = output / "checkpoints"
    _tell_resume(checkpoints, say)
    fitted = fit(
        recipe,
        machine,
        backend,
        loaded,
        template.tokenizer,
        data.epoch,
        checkpoints,
        lambda: total(meter.measure(curve)).mean,
        memory,
        say.bar("Training", recipe.training.max_steps),
        say,
    )
    _check_finite(fitted.history)
    if not fitted.is_complete:
        raise Interrupted(
            f"stopped by SIGTERM after step {fitted.steps} of {recipe.training.max_steps}, with a checkpoint saved; "
            "the same command goes on from it"
        )
    if not is_main():
        return None
    say.say(f"Measuring the losses of {len(data.test)} held-out rows, base and tuned")
    tuned = meter.measure(data.test)
    with loaded.model.disable_adapter():
        base = meter.measure(data.test)
    bar = say.bar("Answers", len(recipe.answers.prompts))
    answers = answer_prompts(
        recipe.answers, backend, loaded.model, template, stop_token_ids, bar.advance
    )
    quantised = None
    if loaded.quantization and recipe.evaluation.float_base_rows:
        rows = float_rows(data, recipe.evaluation.float_base_rows, recipe.data.seed)
        quantised = measure_both(meter, loaded.model, rows)
    return fitted, compare(base, tuned), answers, quantised


def _tell_resume(checkpoints: Path, say: Reporter) -> None:
    if not is_main():
        return
    for broken in remove_broken(checkpoints):
        say.warn(f"{broken.name} is not whole (the run was killed as it was written); removed.")
    if checkpoint := newest_sealed(checkpoints):
        say.say(f"Going on after step {step_of(checkpoint)}, from {checkpoint}")


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


def _save(loaded: LoadedModel, template: ChatTemplate, folder: Path) -> None:
    """The adapter, its tokenizer and its frozen template: all of it, or nothing under this name."""
    staging = folder.with_name(f".tmp-{folder.name}")
    for left in (staging, folder):  # by an earlier start that was killed after its last step
        shutil.rmtree(left, ignore_errors=True)
    # save_embedding_layers: the default asks the hub whether the vocabulary has grown.
    loaded.model.save_pretrained(staging, safe_serialization=True, save_embedding_layers=False)
    template.tokenizer.save_pretrained(staging)
    staging.rename(folder)


def _conclude(
    request: RunRequest, record: RunRecord, adapter: Path, began: float, say: Reporter
) -> RunResult:
    """Report and publish."""
    from trainer.publish import PublishError, publish, published_already  # noqa: PLC0415
    from trainer.report import write_report  # noqa: PLC0415

    (request.output / "recipe.yaml").write_text(dump_recipe(request.recipe), encoding="utf-8")
    record = replace(record, wall_seconds=time.monotonic() - began)
    report = request.output / "report"
    write_report(record, report)
    say.say(f"Report: {report / 'report.html'}")
    published = None
    if request.adapters is not None:
        try:
            published = published_already(adapter, record.name, request.adapters)
            published = published or publish(adapter, record, report, request.adapters)
        except PublishError as error:
            if is_full_disk(error):
                raise DiskFull(f"{error} The adapter is whole in {adapter}.") from error
            raise TrainingError(f"{error} The adapter is whole in {adapter}.") from error
        say.say(f"Published: {published}")
    write_outcome(
        request.output,
        Outcome(
            record.name,
            summary(record),
            str(adapter),
            str(report),
            str(published) if published else None,
        ),
    )
    shutil.rmtree(request.output / "checkpoints", ignore_errors=True)  # their use is over
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
