"""The report holds all of the record, opens anywhere, and cannot be hurt by what a model wrote."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_records import WARMUP_WARNING, run_record, source

from trainer.record import Answer, Expectation, HistoryPoint, MaskedSample, SourceLoss
from trainer.report import write_report
from trainer.report.outcome import compare_with_plan
from trainer.report.page import describe_learning_rate, describe_loss, flatten

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """The text a reader sees, the tags met, and every address that is named."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "href", "action", "data"}:
                self.addresses.append(value or "")
            if name == "alt":
                self.alternatives.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # what is opened is closed, in order

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\xa0", " ")


def test_all_files_are_written(tmp_path: Path) -> None:
    write_report(run_record(), tmp_path / "runs" / "report")

    names = {path.name for path in (tmp_path / "runs" / "report").iterdir()}
    assert names == {
        *("report.html", "run.json", "history.csv", "losses.csv", "answers.csv"),
        *("loss.png", "learning_rate.png", "gradient_norm.png", "speed.png", "memory.png"),
    }
    for graph in (tmp_path / "runs" / "report").glob("*.png"):
        assert graph.read_bytes().startswith(PNG)


def test_run_json_is_the_record(tmp_path: Path) -> None:
    run = run_record()
    write_report(run, tmp_path)

    written = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))

    assert written == json.loads(json.dumps(dataclasses.asdict(run)))


def test_csv_files_give_back_every_value(tmp_path: Path) -> None:
    run = run_record()
    write_report(run, tmp_path)

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    history = rows("history.csv")
    assert [int(row["step"]) for row in history] == list(range(1, 41))
    assert [float(row["train_loss"]) for row in history] == [
        point.train_loss for point in run.history
    ]
    assert [row["step"] for row in history if row["eval_loss"]] == ["10", "20", "30", "40"]
    losses = rows("losses.csv")
    assert [(row["source"], float(row["base"]), float(row["tuned"])) for row in losses] == [
        (loss.source, loss.base, loss.tuned) for loss in run.losses
    ]
    assert float(losses[0]["base_perplexity"]) == pytest.approx(2.702, abs=1e-3)
    answers = rows("answers.csv")
    assert [(row["prompt"], row["base"], row["tuned"]) for row in answers] == [
        (answer.prompt, answer.base, answer.tuned) for answer in run.answers
    ]


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    write_report(run_record(), tmp_path)
    page = page_of(tmp_path)

    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|@font-face|https?://", content)


def test_the_page_says_the_verdict_first_and_then_the_rest(tmp_path: Path) -> None:
    write_report(run_record(), tmp_path)
    text = plain(page_of(tmp_path).text)

    order = [
        "Better than the base model: held-out loss 1.11 → 0.98 over 753 793 tokens, −12 %.",
        "1 h 07 min",
        "812 tokens/s",
        "6.53 GB",
        "42 % of 15.6 GB (Tesla T4)",
        "24 313 856",
        WARMUP_WARNING,
        "Training loss goes from",
        "evol-instruct",
        "Is it plugged in?",
        "near-duplicates removed",
        "not stated",  # the licence of a source that names none
        "9f86d081884c…",
        "I am well, thank you.",
        "lora.target_modules",
        "adamw_8bit",
        "2.13.0",
        "python -m trainer train",
    ]
    places = [text.find(words) for words in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_every_count_of_every_source_is_shown(tmp_path: Path) -> None:
    numbers = {
        field.name: 1000 + index
        for index, field in enumerate(dataclasses.fields(source("x")))
        if isinstance(getattr(source("x"), field.name), int)
    }
    write_report(run_record(sources=(source("x", **numbers),)), tmp_path)
    text = plain(page_of(tmp_path).text)

    assert len(numbers) >= 12
    assert [name for name, value in numbers.items() if f"1 {value - 1000:03d}" not in text] == []


def test_text_of_models_and_data_stays_text(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&</td>{{ run }}'
    run = run_record(
        name="smalltalk",
        command=evil,
        warnings=(evil,),
        answers=(Answer(evil, evil, evil, 1, 1, "stop", "length"),),
        masked_samples=(MaskedSample(evil, ((evil, False), (evil, True))),),
        sources=(
            source(evil, licence=evil, location=evil, revision=evil, fingerprint=evil, kind=evil),
        ),
        losses=(SourceLoss(evil, 1.0, 0.5, 1, 1),),
        recipe={evil: evil},
        resolved_arguments={evil: [evil]},
        versions={evil: evil},
    )
    write_report(run, tmp_path)
    page = page_of(tmp_path)

    assert "script" not in page.tags
    assert page.tags.count("img") == 5
    assert page.text.count(evil) >= 12
    assert evil not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_trained_text_is_marked_and_nothing_else_is(tmp_path: Path) -> None:
    run = run_record()
    write_report(run, tmp_path)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    sample = content[content.index('class="sample"') :]

    marked = [html.unescape(text) for text in re.findall(r"<mark>(.*?)</mark>", sample, re.DOTALL)]

    assert marked == [text for text, trained in run.masked_samples[0].spans if trained]
    assert "text-decoration" in content or "border-bottom" in content  # not by colour alone


def test_graphs_have_words_for_those_who_do_not_see_them(tmp_path: Path) -> None:
    write_report(run_record(), tmp_path)

    assert page_of(tmp_path).alternatives == [
        "Training and validation loss over steps. Training loss goes from 1.33 at step 1 to 1.10 at step 40. "
        "Validation loss goes from 1.24 at step 10 to 1.07 at step 40.",
        "Learning rate over steps. The learning rate starts at 4e-07, is highest at step 40 with 1.6e-05, "
        "and ends at 1.6e-05 at step 40.",
        "Gradient norm over steps. The gradient norm is between 0.9 and 0.9.",
        "Real tokens per second over steps. The speed is between 812 and 812.",
        "Memory over steps. The memory of a step in GB is between 5.1 and 5.18.",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"history": ()},
        {"history": (HistoryPoint(step=1, seconds=1.0),)},
        {
            "history": (
                HistoryPoint(step=1, seconds=1.0, train_loss=float("nan"), learning_rate=0.0),
            )
        },
        {"losses": ()},
        {"losses": (SourceLoss("all", 1.0, float("nan"), 1, 1),)},
        {"losses": (SourceLoss("all", 0.0, 2000.0, 1, 1),)},
        {
            "answers": (),
            "masked_samples": (),
            "sources": (),
            "warnings": (),
            "recipe": {},
            "versions": {},
        },
        {
            "final_train_loss": float("nan"),
            "tokens_per_second": float("inf"),
            "total_parameters": 0,
        },
    ],
    ids=",".join,
)
def test_a_run_with_gaps_still_has_a_report(changes: dict[str, object], tmp_path: Path) -> None:
    write_report(run_record(**changes), tmp_path)

    page_of(tmp_path)

    assert not re.search(r"\b(NaN|Infinity)\b", (tmp_path / "run.json").read_text(encoding="utf-8"))


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(run_record(), tmp_path)
    write_report(run_record(losses=()), tmp_path)

    assert "was not measured" in page_of(tmp_path).text
    assert len(list(tmp_path.iterdir())) == 10


def test_graphs_without_points_are_described_as_empty() -> None:
    assert describe_loss(()) == "No loss was logged."
    assert describe_learning_rate(()) == "No learning rate was logged."


def test_a_single_point_is_not_described_as_a_course() -> None:
    history = (HistoryPoint(step=1, seconds=1.0, train_loss=2.0, learning_rate=1e-3),)

    assert describe_loss(history) == "Training loss is 2.00 at step 1."
    assert describe_learning_rate(history) == "The learning rate is 0.001 at step 1."


def test_nested_settings_become_dotted_names() -> None:
    settings = {
        "lora": {"r": 16, "modules": ["q", "v"]},
        "sources": [{"rows": 5}],
        "seed": None,
        "extra": {},
    }

    assert flatten(settings) == [
        ("lora.r", "16"),
        ("lora.modules", "q, v"),
        ("sources.0.rows", "5"),
        ("seed", "None"),
        ("extra", "{}"),
    ]


def test_the_change_of_base_is_shown_and_repetition_too(tmp_path: Path) -> None:
    record = run_record()
    loop = dataclasses.replace(record.answers[0], tuned="round and round we go " * 8)
    write_report(dataclasses.replace(record, answers=(loop,)), tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    table = text[text.index("On the base it will be served on") :]
    assert "−0.020" in table
    assert "of it repeated" in text
    write_report(dataclasses.replace(record, float_losses=()), tmp_path)
    assert "On the base it will be served on" not in (tmp_path / "report.html").read_text("utf-8")


def test_the_plan_stands_beside_what_happened(tmp_path: Path) -> None:
    rows = {row.label: row for row in compare_with_plan(run_record())}
    steps = rows["time of the steps on one T4"]
    assert (steps.planned, steps.happened, plain(steps.change)) == (
        "3 min 51 s",
        "4 min 08 s",
        "+7 %",
    )
    peak = rows["peak memory, evaluations included"]
    assert (peak.planned, peak.happened, plain(peak.change)) == ("6.30 GB", "6.53 GB", "+4 %")
    # The highest step, not the last.
    assert rows["memory of a step, held by tensors"].happened == "5.00 GB"
    write_report(run_record(), tmp_path)
    assert "The plan, and what happened" in page_of(tmp_path).text

    unknown = Expectation(steps=40, tokens=0)
    rows = {row.label: row for row in compare_with_plan(run_record(expected=unknown))}
    assert "memory of a step, held by tensors" in rows  # measured, though not planned
    unmeasured = run_record(expected=unknown, history=())
    assert "memory of a step, held by tensors" not in {
        r.label for r in compare_with_plan(unmeasured)
    }
    assert (rows["time of the steps"].planned, rows["real tokens"].change) == ("–", "–")
    assert compare_with_plan(run_record(expected=None)) == ()
