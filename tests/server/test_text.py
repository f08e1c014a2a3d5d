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
