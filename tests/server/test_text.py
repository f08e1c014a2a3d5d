from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.text import TextStream


class Pieces:
    """A decoder whose token n is the n-th piece of text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return ""


def stream(pieces: list[str], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    text = TextStream(Pieces(pieces), stop)
    shown = []
    for index in range(len(pieces)):
        shown.append(text.push(index))
        if text.is_stopped:
            return shown, True
    shown.append(text.flush())
    return shown, text.is_stopped


def expected(text: str, stops: tuple[str, ...]) -> str:
    """Character by character: the answer ends before the stop string that is complete first."""
    for end in range(len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            return text[: end - len(max(ending, key=len))]
    return text


few = st.text("abc", max_size=6)


@given(st.lists(few, max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    shown, stopped = stream(pieces, tuple(stops))
    text = "".join(pieces)
    assert "".join(shown) == expected(text, tuple(stops))
    assert stopped == any(s in text for s in stops)


@given(st.lists(few, max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_no_moment_shows_a_part_of_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    final = expected("".join(pieces), tuple(stops))
    shown, _ = stream(pieces, tuple(stops))
    for count in range(len(shown) + 1):
        assert final.startswith("".join(shown[:count]))


def test_text_is_shown_at_once_where_no_stop_string_can_begin() -> None:
    assert stream(["Hello", " wor", "ld"], ("END",))[0] == ["Hello", " wor", "ld", ""]


@given(st.lists(few, max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_stop_string_is_shown_where_that_is_asked_for(
    pieces: list[str], stops: list[str]
) -> None:
    text = TextStream(Pieces(pieces), tuple(stops), include_stop=True)
    shown = "".join(text.push(index) for index in range(len(pieces))) + text.flush()
    without = expected("".join(pieces), tuple(stops))
    assert shown == without + (text.stopped_by or "")
    assert text.stopped_by is None or text.stopped_by in stops


@given(
    st.lists(few, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.integers(0, 12),
)
def test_a_stop_string_that_comes_too_early_is_text_like_any_other(
    pieces: list[str], stops: list[str], first: int
) -> None:
    """Only one that is complete in piece number `first` or later ends the text."""
    text = TextStream(Pieces(pieces), tuple(stops))
    shown = ""
    for index in range(len(pieces)):
        shown += text.push(index, may_stop=index >= first)
    shown += text.flush()
    whole, early = "".join(pieces), len("".join(pieces[:first]))
    ends = [
        (end, start)
        for end in range(early + 1, len(whole) + 1)
        for s in stops
        if (start := end - len(s)) >= 0 and whole[start:end] == s
    ]
    assert shown == (whole[: min(ends)[1]] if ends else whole)
    assert text.is_stopped == bool(ends)
