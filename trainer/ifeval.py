"""Checkable instructions ("no commas", "at least 40 words") in IFEval's form (arXiv:2311.07911), through lm-eval.

lm-eval asks the running server and checks the answers with its own checkers; it lives in an environment of its own,
since what it needs does not go with what the trainer needs. Here: its task for a local file, its runs, its results as
scores. It knows nothing of what makes an answer right.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, DataError, RetryableError
from trainer.progress import Reporter
from trainer.scores import Score, compare
from trainer.served import BUSY

ENVIRONMENT = Path(__file__).resolve().parent.parent / ".venv-ifeval"
INSTALL = (
    "scripts/setup-tools .venv-ifeval requirements/constraints-ifeval.txt requirements/ifeval.txt"
)
TASK = "checkable_instructions"
# As IFEval reports them: the measure's name, lm-eval's name for it.
MEASURES = (
    ("prompts with all instructions followed, strict", "prompt_level_strict_acc"),
    ("instructions followed, strict", "inst_level_strict_acc"),
    ("prompts with all instructions followed, loose", "prompt_level_loose_acc"),
    ("instructions followed, loose", "inst_level_loose_acc"),
)
# What the checkers know, and whether their sentence splitter has its data (nltk's punkt_tab, which is a download).
PROBE = """
import contextlib, importlib.metadata, json, sys
with contextlib.redirect_stdout(sys.stderr):
    from lm_eval.tasks.ifeval import instructions_registry, instructions_util
    try:
        has_sentences = bool(instructions_util.count_sentences("One. Two."))
    except LookupError:
        has_sentences = False
known = sorted(instructions_registry.INSTRUCTION_DICT)
version = importlib.metadata.version("lm_eval")
print(json.dumps({"version": version, "known": known, "has_sentences": has_sentences}))
"""
# Of rows on standard input, the first whose arguments a checker does not take, and why.
TRY = """
import contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
for number, row in enumerate(json.load(sys.stdin)):
    for name, given in zip(row["instruction_id_list"], row["kwargs"]):
        try:
            INSTRUCTION_DICT[name](name).build_description(**{k: v for k, v in given.items() if v})
        except (TypeError, ValueError, AttributeError) as error:
            sys.exit(print(json.dumps([number, f"{name}: {error}"])))
"""
# How a traceback ends, and how requests says a status.
ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Timeout)\b.*$", re.MULTILINE)
HTTP_STATUS = re.compile(r"HTTPError: (\d{3}) ")
NEEDS_SENTENCES = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)


@dataclass(frozen=True, slots=True)
class Checkers:
    """An lm-eval that works. python: of its environment."""

    python: Path
    version: str
    known: frozenset[str]  # instruction ids
    has_sentences: bool


def find_checkers(python: Path | None) -> Checkers:
    """lm-eval in the environment of `python`; None: in this one, else in .venv-ifeval beside the programs.

    Raises ConfigError that says how to get it.
    """
    tried = [python] if python else [Path(sys.executable), ENVIRONMENT / "bin" / "python"]
    for candidate in tried:
        try:
            done = _run([str(candidate), "-c", PROBE], _offline({}))
        except OSError:
            continue
        if done.returncode == 0:
            said = json.loads(done.stdout)
            return Checkers(
                candidate, said["version"], frozenset(said["known"]), said["has_sentences"]
            )
    raise ConfigError(
        f"lm-eval with its IFEval checkers is not in {' or '.join(map(str, tried))}. Install it apart with "
        f"`{INSTALL}`, or name the Python of an environment that has lm-eval[api,ifeval] with --lm-eval."
    )


def read_prompts(path: Path, checkers: Checkers) -> list[dict[str, Any]]:
    """The rows of a file in google/IFEval's form: key, prompt, instruction_id_list and kwargs, one for each of them.

    Raises DataError naming the line, and ConfigError for a checker that is not at hand.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--ifeval {path} cannot be read: {error}.") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [_row(line, f"{path}, line {number}", checkers) for number, line in numbered]
    if not rows:
        raise DataError(f"--ifeval {path} has no rows.")
    # Else lm-eval would find out when all answers are written.
    tried = _run([str(checkers.python), "-c", TRY], _offline({}), json.dumps(rows))
    if tried.stdout.strip():
        index, problem = json.loads(tried.stdout)
        raise DataError(f"{path}, line {numbered[index][0]}: {problem}.")
    return rows


def _row(line: str, where: str, checkers: Checkers) -> dict[str, Any]:
    try:
        row = json.loads(line)
        names, arguments = row["instruction_id_list"], row["kwargs"]
        whole = isinstance(row["prompt"], str) and "key" in row and len(names) == len(arguments) > 0
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(
            f"{where} is not in google/IFEval's form: key, prompt, instruction_id_list and kwargs, of the same length."
        )
    if unknown := sorted(set(names) - checkers.known):
        raise DataError(f"{where}: lm-eval {checkers.version} has no checker {', '.join(unknown)}.")
    if not checkers.has_sentences and (needing := sorted(set(names) & NEEDS_SENTENCES)):
        raise ConfigError(
            f"{where} ({', '.join(needing)}) needs the data of nltk's sentence splitter: "
            f"{checkers.python} -m nltk.downloader punkt_tab, or leave such rows out."
        )
    return {name: row[name] for name in ("key", "prompt", "instruction_id_list", "kwargs")}


def checkable_instructions(
    server: str,
    adapter: str,
    reference: str,
    rows: list[dict[str, Any]],
    max_new_tokens: int,
    checkers: Checkers,
    reporter: Reporter,
) -> list[Score]:
    """Two models, as the server serves them, on the prompts of `read_prompts`; answered greedily.

    adapter, reference: their names on the server. Prompt-level scores are means over prompts, instruction-level ones
    over instructions; intervals are by bootstrap over prompts, in pairs. Raises ConfigError and RetryableError.
    """
    reporter.say(
        f"Asking {server} {len(rows)} prompts with checkable instructions, as {reference} and as {adapter}"
    )
    results = []
    for model in (reference, adapter):
        with tempfile.TemporaryDirectory() as folder:
            results.append(_ask(server, model, rows, max_new_tokens, checkers, Path(folder)))
    return score(*results)


def score(base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[Score]:
    """Scores from lm-eval's samples of both models, one per prompt in the same order."""
    scores = []
    for label, measure in MEASURES:
        first, second = (
            [_marks(sample[measure]) for sample in samples] for samples in (base, tuned)
        )
        scores.append(
            compare(
                f"IFEval, {label}",
                [sum(marks) / len(marks) for marks in first],
                [sum(marks) / len(marks) for marks in second],
                [len(marks) for marks in first],
                lower_is_better=False,
            )
        )
    return scores


def _marks(value: Any) -> list[float]:
    return [float(mark) for mark in value] if isinstance(value, list) else [float(value)]


def _ask(
    server: str, model: str, rows: list[dict[str, Any]], most: int, checkers: Checkers, folder: Path
) -> list[dict[str, Any]]:
    """lm-eval's samples, in the order of `rows`."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{TASK}.yaml").write_text(_task(data, checkers), encoding="utf-8")
    arguments = f"model={model},base_url={server.rstrip('/')}/v1/chat/completions,num_concurrent=1"
    done = _run(
        [str(checkers.python), "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args",
         f"{arguments},tokenizer_backend=None", "--tasks", TASK, "--include_path", str(folder), "--apply_chat_template",
         "--gen_kwargs", f"max_gen_toks={most}", "--log_samples", "--output_path", str(folder / "out")],
        _offline({"HF_DATASETS_CACHE": str(folder / "cache")}),
    )  # fmt: skip
    found = sorted((folder / "out").rglob("samples_*.jsonl"))
    if done.returncode or not found:
        # The last error of a traceback: a progress bar often comes after it.
        told = ERROR.findall(done.stderr) or done.stderr.strip().splitlines()
        reason = told[-1] if told else f"exit code {done.returncode}"
        status = HTTP_STATUS.search(reason)
        if status and int(status[1]) in BUSY:
            raise RetryableError(
                f"{server} is busy ({status[1]}) and gave no answer as {model}; try again later."
            )
        kind = reason.partition(":")[0]  # what follows may be the server's words
        if "Connect" in kind or "Timeout" in kind:
            raise RetryableError(f"{server} does not answer: {reason}; is the server running?")
        raise ConfigError(f"lm-eval could not ask {server} as {model}: {reason}")
    samples = [json.loads(line) for line in found[0].read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _task(data: Path, checkers: Checkers) -> str:
    """lm-eval's own IFEval task, on a local file: its prompts, checkers and measures."""
    own = _run(
        [str(checkers.python), "-c", "import lm_eval; print(*lm_eval.__path__)"], _offline({})
    ).stdout.strip()
    return (
        f"include: {own}/tasks/ifeval/ifeval.yaml\ntask: {TASK}\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files: {json.dumps(str(data))}\n"
    )


def _offline(more: dict[str, str]) -> dict[str, str]:
    key = os.environ.get("LORACHAT_API_KEY") or "unused"
    return os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": key, "PYTHONPATH": ""} | more


def _run(
    command: list[str], environment: dict[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, input=given
    )
