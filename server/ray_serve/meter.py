"""One request's part of its key's quota, counted at an engine and told to the gateway, which has the whole of it."""

from __future__ import annotations

from server.api.quota import Quota


class Meter(Quota):
    """tokens_left: of the key's tokens_per_minute when the request was sent here. Without a limit it only counts."""

    def __init__(self, tokens_per_minute: int | None, tokens_left: int) -> None:
        super().__init__(None, tokens_per_minute)
        if tokens_per_minute is not None:
            super().spend_tokens(tokens_per_minute - tokens_left)
        self.unsaid = 0

    def spend_tokens(self, num_tokens: int) -> None:
        super().spend_tokens(num_tokens)
        self.unsaid += num_tokens

    def take_unsaid(self) -> int:
        unsaid, self.unsaid = self.unsaid, 0
        return unsaid
