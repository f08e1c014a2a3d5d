"""The event decoder: the same events come out however the bytes were cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from client.sse import EventDecoder

STREAM = (
    ": keep-alive\n\n"
    'data: {"text": "naïve — 数 🙂"}\r\n\r\n'
    "event: ignored\nid: 7\ndata:no space\n\n"
    "data: first line\ndata: second line\n\n"
    "data: \u2028 and \u0085 are no line ends\r\r"
    "data: [DONE]\n\n"
    "data: never completed"
).encode()
EVENTS = [
    '{"text": "naïve — 数 🙂"}',
    "no space",
    "first line\nsecond line",
    "\u2028 and \u0085 are no line ends",
    "[DONE]",
]


def test_whole():
    assert EventDecoder().feed(STREAM) == EVENTS


def test_byte_by_byte():
    decoder = EventDecoder()
    assert [e for byte in STREAM for e in decoder.feed(bytes([byte]))] == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cut_anywhere(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    decoder = EventDecoder()
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert [e for chunk in chunks for e in decoder.feed(chunk)] == EVENTS


def test_an_event_is_given_as_soon_as_it_ends():
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\n\r") == ["a"]
    assert decoder.feed(b"\ndata: b\n\n") == ["b"]
