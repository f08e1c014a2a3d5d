"""Messages -> ids through a chat template, and ids -> text as they are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from server.errors import ChatTemplateError
from server.types import Message

# A UTF-8 character has at most four bytes, and every byte-level token carries at least one.
MAX_HELD_TOKENS = 4
REPLACEMENT = "\ufffd"


class ChatTokenizer:
    """A transformers tokenizer with the chat template to use; the template may be an adapter's own.

    Rendering runs in transformers' sandboxed Jinja environment. Only the template can write control tokens: the same
    words in a message's own text are tokenised as the plain text they are, so that no text can end its turn and
    begin another's.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template or _template_of(tokenizer)
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        # Longest first: one may begin with another.
        self._control_tokens = sorted(special, key=lambda token: (-len(token), token))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation with the assistant's turn opened.

        Raises ChatTemplateError if the template refuses the messages, or if there is none.
        """
        if not self._template:
            raise ChatTemplateError("this model has no chat template")
        texts = "".join(m.content for m in messages)
        forged = [token for token in self._control_tokens if token in texts]
        if not forged:
            return self._encode(self._render(messages))
        # Each forged token's words pass the template as one character that no message holds.
        unused = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in texts)
        stand_ins = {next(unused): token for token in forged}
        hidden = []
        for message in messages:
            content = message.content
            for stand_in, token in stand_ins.items():
                content = content.replace(token, stand_in)
            hidden.append(Message(message.role, content))
        ids: list[int] = []
        for part in re.split(f"([{''.join(stand_ins)}])", self._render(hidden)):
            token = stand_ins.get(part)
            # In two pieces the words of a control token are not one. (The tokenizer's own switch for that is shared by
            # all threads.)
            ids += (
                self._encode(part)
                if token is None
                else self._encode(token[0]) + self._encode(token[1:])
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        # The template writes the special tokens itself, so the tokenizer must not add its own: one BOS, not two.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise ChatTemplateError(str(error)) from None
        return text

    def text_decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self._tokenizer)


def _template_of(tokenizer: Any) -> str | None:
    """A tokenizer may have several templates by name; `default` is the one for chat."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


class IncrementalDecoder:
    """Decodes ids one at a time; joined, the pieces equal decoding all ids at once.

    A token's text can depend on the token before it (leading spaces) and on the ones after it (characters of several
    tokens). So each push decodes a short window twice, with and without the new token, and shows the difference;
    text that ends in an incomplete character waits.
    """

    def __init__(self, tokenizer: Any) -> None:
        # The library's own tokenizer under transformers' wrapper, whose decode does the same in thrice the time.
        self._backend = tokenizer.backend_tokenizer
        self._ids: list[int] = []
        # Where the window starts: tokens already shown that the next one's text may depend on.
        self._context = 0
        self._shown = 0  # tokens whose text has been shown
        self._incomplete = 0  # tokens since the text began to end in an incomplete character

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._advance(at_end=False)

    def flush(self) -> str:
        """What was held back, without the incomplete character at its end, if there is one."""
        return self._advance(at_end=True)

    def _advance(self, *, at_end: bool) -> str:
        before = self._decode(self._context, self._shown)
        after = self._decode(self._context, len(self._ids))
        if at_end:
            after = after.rstrip(REPLACEMENT) if self._incomplete else after
        elif after.endswith(REPLACEMENT):
            self._incomplete += 1
            if self._incomplete < MAX_HELD_TOKENS:
                return ""
        self._incomplete = 0
        if len(after) <= len(before):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _decode(self, first: int, last: int) -> str:
        text: str = self._backend.decode(self._ids[first:last], skip_special_tokens=True)
        return text
