"""One choice of one request while it is being computed: its tokens, its counters, and when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from server.engine.text import TextStream
from server.types import AdapterHandle, FinishReason, SamplingParams


@dataclass(slots=True)
class Sequence:
    """Created when the request arrives; owned by the engine's thread afterwards."""

    request_id: str
    index: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: Collection[int]
    adapter: AdapterHandle | None
    text: TextStream
    slot: int = -1  # -1 until admitted
    num_computed: int = 0  # prompt tokens whose keys and values are in the cache
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    # Of this choice's generator: choices of one request differ, and none shifts another's draws.
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.params.seed}:{self.index}".encode()).digest()
        self.seed = int.from_bytes(digest[:8], "little") >> 1

    @property
    def capacity(self) -> int:
        """Cache positions it may need. The last token drawn is never computed, hence the -1."""
        return len(self.prompt_ids) + self.params.max_tokens - 1

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < len(self.prompt_ids)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    def append(self, token_id: int) -> str:
        """Take a drawn token; return the text that may be shown now. Sets finish_reason at the end."""
        self.output_ids.append(token_id)
        if token_id in self.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return self.text.flush()
        shown = self.text.push(token_id)
        at_limit = len(self.output_ids) >= self.params.max_tokens
        if at_limit:
            shown += (
                self.text.flush()
            )  # may complete a stop string, hence before the question below
        if self.text.is_stopped:
            self.finish_reason = FinishReason.STOP
        elif at_limit:
            self.finish_reason = FinishReason.LENGTH
        return shown
