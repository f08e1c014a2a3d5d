"""Conversations as Gradio's Chatbot holds them, to and from the client's own messages.

The browser holds the conversation; nothing of it is kept here between two events. Each message has
text parts: the user's has one, the assistant's has the answer and then a note (figures or error).
"""

import re
from typing import Any

from client.figures import figures, seconds
from client.types import Message
from client.ui.answers import Answer

History = list[dict[str, Any]]

_MARKDOWN = re.compile(r"[\\`*_\[\]<>&#|~$]")


def user_entry(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [_part(text)]}


def answer_entry(answer: Answer) -> dict[str, Any]:
    """The assistant's message: what it has said so far, and the note below."""
    return {"role": "assistant", "content": [_part(answer.text), _part(note(answer))]}


def messages(history: History, system: str = "") -> tuple[Message, ...]:
    """What the server is told: the system prompt if there is one, then the turns.

    Questions that were never answered are left out together with their empty answers; the last
    question is kept.
    """
    turns: list[Message] = []
    for entry in history:
        text = entry["content"][0]["text"]
        if entry["role"] == "user":
            turns.append(Message("user", text))
        elif text:
            turns.append(Message("assistant", text))
        elif turns:
            turns.pop()
    return ((Message("system", system),) if system.strip() else ()) + tuple(turns)


def up_to_question(history: History, index: int | None = None) -> History:
    """The conversation up to and including the question at `index` or before it (default: the last).

    Empty if there is none.
    """
    end = len(history) if index is None else min(index + 1, len(history))
    while end and history[end - 1]["role"] != "user":
        end -= 1
    return history[:end]


def entry_index(index: int | tuple[int, int]) -> int:
    """The entry that an event of the Chatbot is about; it may name a part of the entry as well."""
    return index if isinstance(index, int) else index[0]


def note(answer: Answer) -> str:
    """The part under an answer, in Markdown: a line of figures, or an error as a quotation.

    Markdown rather than HTML, because screen readers are given this source.
    """
    if answer.error is not None:
        return f"> **{_escape(answer.error.sentence)}** {_escape(answer.error.next_step)}"
    if answer.done is not None:
        phrases = figures(answer.done)
    elif answer.is_stopped:
        phrases = [f"stopped after {seconds(answer.seconds)}"]
    elif answer.text:
        phrases = [f"writing, {answer.seconds:.0f} s"]
    else:
        phrases = [f"waiting for the first token, {answer.seconds:.0f} s"]
    return _escape(" · ".join([answer.model, *phrases] if answer.model else phrases))


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


def _part(text: str) -> dict[str, str]:
    # A bare string would do too, but Gradio "cleans" those: it cuts white space that the model wrote.
    return {"type": "text", "text": text}
