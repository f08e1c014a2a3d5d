"""The data stage: roles, duplicates, the split, and an account of every row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import byte_tokenizer
from tests.trainer.recipes import conversations, write_jsonl
from trainer.config import DataConfig, SourceConfig
from trainer.conversation import to_conversation
from trainer.dataset import PreparedData, curve_rows, prepare
from trainer.dedup import duplicates_to_remove, near_duplicates, normalise
from trainer.errors import DataError
from trainer.progress import Silent
from trainer.sources import choose_rows
from trainer.split import held_out, spread
from trainer.template import ChatTemplate

THRESHOLD = 0.8


def source(location: Path | str = "x.jsonl", **settings: Any) -> SourceConfig:
    values = {"name": "chats", "kind": "sharegpt", "location": str(location)}
    return SourceConfig.model_validate(values | settings)


def shingles(normalised: str) -> set[tuple[str, ...]]:
    words = normalised.split(" ")
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def jaccard(left: set[Any], right: set[Any]) -> float:
    return len(left & right) / len(left | right)


def similar(left: str, right: str) -> bool:
    left, right = normalise(left), normalise(right)
    return left == right or jaccard(shingles(left), shingles(right)) >= THRESHOLD


# Few words, so that texts resemble one another often.
TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=12).map(" ".join),
    min_size=1,
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_what_stays_holds_no_near_duplicates(texts: list[str]) -> None:
    removed, groups = duplicates_to_remove(texts, THRESHOLD)
    kept = [index for index in range(len(texts)) if index not in removed]
    for place, left in enumerate(kept):
        for right in kept[place + 1 :]:
            assert not similar(texts[left], texts[right])
    for index in removed:
        assert any(similar(texts[index], texts[other]) for other in kept if other < index) or any(
            normalise(texts[index]) == normalise(texts[other]) for other in range(index)
        )
    for left in range(len(texts)):
        for right in range(left):
            if similar(texts[left], texts[right]):
                assert groups.find(left) == groups.find(right)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.sampled_from([0.5, 0.7, 0.8, 1.0]))
def test_every_near_duplicate_is_found(texts: list[str], threshold: float) -> None:
    # The join is exact: compare with all pairs.
    keys = [normalise(text) for text in texts]
    found = set(near_duplicates(texts, threshold))
    firsts = [index for index, key in enumerate(keys) if keys.index(key) == index]
    expected = {
        (left, right)
        for left in firsts
        for right in firsts
        if left < right and jaccard(shingles(keys[left]), shingles(keys[right])) >= threshold
    } | {(keys.index(key), index) for index, key in enumerate(keys) if keys.index(key) < index}
    assert found == expected


def test_spelling_does_not_hide_a_duplicate() -> None:
    assert normalise("What's  AI?") == normalise("what s ai")
    assert normalise("ＡＩ") == "ai"
    assert normalise("?!") != normalise("...")  # nothing but signs is compared as it is


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b"])), min_size=1, max_size=80),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.integers(0, 5),
)
def test_groups_stay_whole_and_shares_are_kept(
    rows: list[tuple[int, str]], fraction: float, seed: int
) -> None:
    groups, sources = [group for group, _ in rows], [name for _, name in rows]
    test = held_out(groups, sources, fraction, seed)
    assert {groups[row] for row in test}.isdisjoint(
        groups[row] for row in range(len(rows)) if row not in test
    )
    for name in set(sources):
        wanted = max(round(sources.count(name) * fraction), 1)
        assert sum(sources[row] == name for row in test) <= wanted
    assert test == held_out(groups, sources, fraction, seed)


def test_the_split_gives_each_source_its_share() -> None:
    sources = ["a"] * 900 + ["b"] * 100
    test = held_out(range(1000), sources, 0.05, 1)
    assert sum(row < 900 for row in test) == 45
    assert sum(row >= 900 for row in test) == 5
    assert test != held_out(range(1000), sources, 0.05, 2)


def test_the_curve_subset_represents_the_sources() -> None:
    sources = ["a"] * 80 + ["b"] * 20
    rows = spread(sources, 10, 1)
    assert len(set(rows)) == 10
    assert sum(row >= 80 for row in rows) == 2
    assert spread(sources, 500, 1) == list(range(100))


def test_roles_are_normalised() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "u"},
            {"from": "gpt", "value": "a"},
            {"from": "human", "value": "not answered"},
        ]
    }
    assert [m["role"] for m in to_conversation(row, 0, source()).messages] == [
        "system",
        "user",
        "assistant",
    ]
    openai = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    assert len(to_conversation(openai, 0, source()).messages) == 2


def test_unknown_roles_are_an_error_until_the_recipe_says_what_they_mean() -> None:
    row = {"conversations": [{"from": "observation", "value": "u"}, {"from": "gpt", "value": "a"}]}
    with pytest.raises(DataError, match=r"Row 3 .*'observation'.*roles: \{observation: user\}"):
        to_conversation(row, 3, source())
    mapped = to_conversation(row, 3, source(roles={"observation": "user"}))
    assert mapped.messages[0]["role"] == "user"


def test_instruction_rows() -> None:
    kind = source(kind="instruction")
    row = {"instruction": "Add.", "input": "1 and 1", "output": "2"}
    assert to_conversation(row, 0, kind).messages == (
        {"role": "user", "content": "Add.\n\n1 and 1"},
        {"role": "assistant", "content": "2"},
    )
    with pytest.raises(DataError, match=r"it has conversations\. Is the kind right"):
        to_conversation({"conversations": []}, 0, kind)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    rows = conversations(5)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    chosen = choose_rows(source(path), seed=1)
    assert len(chosen.conversations) == chosen.read == 5
    reference = choose_rows(source(write_jsonl(tmp_path / "same.jsonl", rows)), seed=1)
    assert chosen.fingerprint == reference.fingerprint


def test_the_choice_is_seeded_and_identified(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(30))
    first, same, other = (choose_rows(source(path, samples=10), seed) for seed in (1, 1, 2))
    assert first == same
    assert len(first.conversations) == 10
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"conversations": []}\n{"conv', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1 is not a JSON object"),
        ("a.jsonl", "", "has no rows"),
        ("a.json", '{"a": 1}', "not a JSON list"),
        ("a.parquet", "PAR", "not a readable Parquet file"),
        ("a.csv", "a,b", "not one of the kinds"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        choose_rows(source(path), seed=1)


def test_a_missing_file_says_how_to_give_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--set data\.sources\.N\.location=FILE"):
        choose_rows(source(tmp_path / "none.jsonl"), seed=1)


def turn(question: str, *answers: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}]
    turns += [{"from": "gpt", "value": answer} for answer in answers]
    return {"conversations": turns}


def prepare_rows(tmp_path: Path, *row_lists: list[dict[str, Any]], **config: Any) -> PreparedData:
    sources = [
        {
            "name": f"source{index}",
            "kind": "sharegpt",
            "location": str(write_jsonl(tmp_path / f"{index}.jsonl", rows)),
        }
        for index, rows in enumerate(row_lists)
    ]
    max_tokens = config.pop("max_tokens", 512)
    tokenizer = byte_tokenizer()
    return prepare(
        DataConfig.model_validate({"sources": sources, "test_fraction": 0.2, **config}),
        ChatTemplate(tokenizer, tokenizer.chat_template),
        max_tokens,
        Silent(),
    )


@pytest.mark.parametrize("long_rows", ["drop", "truncate"])
def test_every_row_is_accounted_for(tmp_path: Path, long_rows: str) -> None:
    rows = [
        *conversations(20),
        turn("paint apple 0 please"),  # no answer
        turn("Say it", "<|im_end|>"),  # a control token as text
        turn("Say", ""),  # an empty turn
        {"conversations": [{"from": "gpt", "value": "I begin"}]},
        conversations(1)[0],  # twice
        turn("Recite at length the whole alphabet", "abc " * 200),
        {
            "conversations": [
                *turn("First of two", "short")["conversations"],
                *turn("more", "xyz " * 200)["conversations"],
            ]
        },
    ]
    data = prepare_rows(tmp_path, rows, long_rows=long_rows)
    (count,) = data.counts
    assert (count.read, count.chosen) == (27, 27)
    assert count.no_trained_token == 1
    assert count.rejected == 3
    assert count.duplicates == 1
    assert count.too_long == 2
    assert count.truncated == (1 if long_rows == "truncate" else 0)
    assert count.kept == len(data.train) + len(data.test) == 20 + count.truncated
    lost = count.no_trained_token + count.rejected + count.duplicates + count.too_long
    assert count.kept == count.chosen - lost + count.truncated
    assert count.train_tokens == sum(row.tokens for row in data.train)
    assert 0 < count.trained_tokens < count.train_tokens
    (told,) = (warning for warning in data.warnings if "could not be used" in warning)
    # What was cut is in use: the row that is left out has an answer too long even for that.
    cut = "(1 too long even when cut after their first answer, 3"
    assert (cut if long_rows == "truncate" else "(2 too long, 3") in told
    for row in [*data.train, *data.test]:
        assert row.tokens <= 512
        assert row.encoded.trained_tokens > 0


def test_no_question_is_on_both_sides(tmp_path: Path) -> None:
    # As in the demo's data: one question, several answers; and the same question in another source and spelling.
    rows = [
        turn(
            f"Tell me what a {word} really is, my friend number {index}", f"{answer} {word} {index}"
        )
        for index, word in enumerate(
            ["cat", "dog", "cow", "pig", "hen", "fox", "owl", "bat", "bee", "ant"] * 4
        )
        for answer in ("It is a", "Nobody knows the", "Ask another for the")
    ]
    others = [
        turn(row["conversations"][0]["value"].upper() + "?!", f"answer {index} of another kind")
        for index, row in enumerate(rows[::3])
    ]
    data = prepare_rows(tmp_path, rows, others)
    assert data.test
    for held in data.test:
        for row in data.train:
            assert not similar(held.conversation.prompt, row.conversation.prompt)
            assert not similar(held.conversation.text, row.conversation.text)


def test_duplicates_across_sources_count_for_the_later(tmp_path: Path) -> None:
    data = prepare_rows(tmp_path, conversations(20), conversations(25))
    assert [count.duplicates for count in data.counts] == [0, 20]


def test_preparing_twice_gives_the_same(tmp_path: Path) -> None:
    first, second = (prepare_rows(tmp_path, conversations(30)) for _ in range(2))
    assert first == second
    config = DataConfig.model_validate(
        {"sources": [{"name": "a", "kind": "sharegpt", "location": "x"}]}
    )
    assert curve_rows(first, config, 3) == curve_rows(second, config, 3)


def test_samples_show_the_mask(tmp_path: Path) -> None:
    from trainer.show import marked

    data = prepare_rows(tmp_path, conversations(30))
    assert len(data.samples) == 3
    for sample in data.samples:
        text = marked(sample).plain
        assert text.count("⟦") == 1
        assert "<|im_end|>⟧" in text


def test_a_source_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source1: no rows are left to train on of 2 chosen"):
        prepare_rows(tmp_path, conversations(20), [turn("q one"), turn("q two")])


def test_repeated_sources_count_for_more_and_held_out_rows_count_once(tmp_path: Path) -> None:
    few = [turn(f"how do I mend number {i}?", f"with tool {i}") for i in range(10)]
    once = prepare_rows(tmp_path, few, conversations(30))
    tripled = replace(once, repeats={"source0": 3, "source1": 1})
    assert len(once.epoch) == len(once.train) == len(set(map(id, once.epoch)))
    counts = Counter(row.source for row in tripled.epoch)
    assert counts == {
        "source0": 3 * once.counts[0].train_rows,
        "source1": once.counts[1].train_rows,
    }
    assert tripled.test == once.test
