"""Conversations to token ids and labels: renders the chat template and masks all but the assistant's turns.

The mask is exact by construction. A conversation is rendered prefix by prefix; what a prefix with the generation
prompt lacks of the prefix with the answer is the trained text. The text is tokenised in these pieces, so no token
straddles a boundary and each answer's tokens follow the very prompt tokens that serving would feed.
It knows nothing about sources, splits or models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.conversation import Message
from trainer.errors import ConfigError

IGNORED = -100  # the label of a token without loss
SHIPPED = Path(__file__).parent / "templates"

PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "One"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Three"},
    {"role": "assistant", "content": "Four"},
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and labels of the same length: the id where the token is trained, else IGNORED.

    answer_ends: for each trained turn, the number of tokens up to its end.
    """

    input_ids: list[int]
    labels: list[int]
    answer_ends: tuple[int, ...]

    @property
    def trained_tokens(self) -> int:
        """Tokens with loss."""
        return len(self.labels) - self.labels.count(IGNORED)

    def cut(self, max_tokens: int) -> Encoded | None:
        """The conversation up to its last answer that ends within `max_tokens`; None if there is none."""
        ends = tuple(end for end in self.answer_ends if end <= max_tokens)
        if not ends:
            return None
        return Encoded(self.input_ids[: ends[-1]], self.labels[: ends[-1]], ends)


def template_text(name: str, tokenizer: Any) -> str:
    """The text of a shipped template, or with `base` of the tokenizer's own.

    Raises ConfigError if there is none, or if the base's prints the date of the day: it would differ from day to day.
    """
    if name == "base":
        text = tokenizer.chat_template
        if not isinstance(text, str):
            raise ConfigError(
                "The base model has no chat template of its own; choose a shipped one with "
                f"template.name ({', '.join(shipped_templates())})."
            )
        if "strftime_now" in text:
            raise ConfigError(
                "The base model's own chat template prints today's date, so serving would differ from training "
                f"tomorrow; choose a frozen one with template.name ({', '.join(shipped_templates())})."
            )
        return text
    if name not in shipped_templates():
        raise ConfigError(
            f"template.name: there is no template {name!r}; choose base or one of {', '.join(shipped_templates())}."
        )
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


def shipped_templates() -> list[str]:
    """The names of the templates in trainer/templates."""
    return sorted(path.stem for path in SHIPPED.glob("*.jinja"))


class ChatTemplate:
    """A tokenizer with a frozen chat template. Sets the tokenizer's own template to it, so that it is saved along."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        """tokenizer: a fast tokenizer of transformers. Raises ConfigError if it and the template do not fit."""
        tokenizer.chat_template = text
        self.tokenizer = tokenizer
        self.text = text
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._special = sorted(
            (str(token) for token in tokenizer.all_special_tokens + _control_tokens(tokenizer)),
            key=len,
            reverse=True,
        )
        self._special_pattern = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        self.begins_with_bos = bool(tokenizer.bos_token) and self.render(PROBE).startswith(
            tokenizer.bos_token
        )
        self.end_of_turn = self._find_end_of_turn()
        self.end_of_turn_id: int = self._vocabulary[self.end_of_turn]
        self._check_pieces()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation."""
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens to feed for an answer to `messages`."""
        return self._tokenize([self.render(messages, add_generation_prompt=True)])[0]

    def holds_control_tokens(self, messages: Sequence[Message]) -> bool:
        """Whether a turn's own text holds a special token, which would end the turn or begin another."""
        return any(self._special_pattern.search(message["content"]) for message in messages)

    def stop_token_ids(self, generation_eos: int | Sequence[int] | None) -> tuple[int, ...]:
        """All tokens that end an answer, sorted: end of turn, the tokenizer's end of text, the model's own."""
        ids = {self.end_of_turn_id}
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        if generation_eos is not None:
            ids.update([generation_eos] if isinstance(generation_eos, int) else generation_eos)
        return tuple(sorted(ids))

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Token ids and labels of a conversation. Raises ConfigError if the template does not allow an exact mask."""
        pieces = self._pieces(messages)
        input_ids: list[int] = []
        labels: list[int] = []
        ends = []
        for (_, is_trained), ids in zip(
            pieces, self._tokenize([text for text, _ in pieces]), strict=True
        ):
            input_ids += ids
            if is_trained:
                if not ids or ids[-1] != self.end_of_turn_id:
                    raise ConfigError(
                        f"The tokenizer does not keep the end-of-turn token {self.end_of_turn} in one piece."
                    )
                labels += ids
                ends.append(len(input_ids))
            else:
                labels += [IGNORED] * len(ids)
        self._check_beginning(input_ids)
        return Encoded(input_ids, labels, tuple(ends))

    def spans(self, encoded: Encoded) -> tuple[tuple[str, bool], ...]:
        """The text of a row as (text, is_trained) spans, special tokens shown."""
        spans: list[tuple[str, bool]] = []
        start = 0
        trained = [label != IGNORED for label in encoded.labels]
        for end in range(1, len(trained) + 1):
            if end == len(trained) or trained[end] != trained[start]:
                text = self.tokenizer.decode(
                    encoded.input_ids[start:end], clean_up_tokenization_spaces=False
                )
                spans.append((text, trained[start]))
                start = end
        return tuple(spans)

    def _pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The rendered text, cut into masked and trained pieces."""
        pieces: list[tuple[str, bool]] = []
        done = ""
        after = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1])
            if not before.startswith(done) or not after.startswith(before):
                raise ConfigError(
                    "The chat template renders earlier turns differently once later ones follow, so the loss cannot be "
                    "confined to the answers exactly; choose another with template.name."
                )
            answer, found, rest = after[len(before) :].rpartition(self.end_of_turn)
            if not found or rest.strip():
                raise ConfigError(
                    f"The chat template does not end every answer with {self.end_of_turn}; choose another."
                )
            pieces.append((before[len(done) :], False))
            pieces.append((answer + self.end_of_turn, True))
            done = before + answer + self.end_of_turn
        whole = self.render(messages)
        if not whole.startswith(done):
            raise ConfigError("The chat template changes an answer when a turn follows it.")
        if whole != done:
            pieces.append((whole[len(done) :], False))
        return pieces

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _find_end_of_turn(self) -> str:
        """The special token that follows an answer's text."""
        before = self.render(PROBE[:1], add_generation_prompt=True)
        after = self.render(PROBE[:2])
        if not after.startswith(before):
            raise ConfigError(
                "The chat template's generation prompt is not what precedes an answer, so the loss cannot be confined "
                "to the answers exactly; choose another with template.name."
            )
        ending = after[len(before) :].partition(PROBE[1]["content"])[2]
        match = self._special_pattern.search(ending)
        if match is None or ending[: match.start()].strip():
            raise ConfigError(
                "The chat template does not end an answer with a special token, so a model could not learn to stop; "
                "choose another with template.name."
            )
        return match.group()

    def _check_pieces(self) -> None:
        whole = self._tokenize([self.render(PROBE)])[0]
        if self.encode(PROBE).input_ids != whole:
            raise ConfigError(
                "The tokenizer treats the beginning of a text specially (it puts a space before the first word), "
                "so turns cannot be tokenised one by one. Base models with such a tokenizer are not supported."
            )

    def _check_beginning(self, input_ids: list[int]) -> None:
        bos_id = self.tokenizer.bos_token_id
        if self.begins_with_bos and (input_ids[0] != bos_id or input_ids[1:2] == [bos_id]):
            raise ConfigError(
                f"A row does not begin with exactly one {self.tokenizer.bos_token}; check the template."
            )


def _control_tokens(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
