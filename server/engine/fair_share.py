"""Whose turn it is: counts the tokens that were computed for each tenant, and who has least goes first.

The virtual token counter of "Fairness in Serving Large Language Models" (arXiv:2401.00588, algorithm 2), with every
token weighing the same. It knows no sequences and no limits; tenants are plain names.
"""

from __future__ import annotations


class FairShare:
    """A tenant is active while it has sequences, waiting or running. Counters of active tenants are comparable.

    Between its busy times a tenant saves nothing up: when it comes back it is counted no lower than the least served of
    those that are active. What it had more than that it keeps, so going away and coming back gains nothing either.
    """

    def __init__(self) -> None:
        self._sequences: dict[str, int] = {}  # of active tenants
        self._served: dict[str, int] = {}  # tokens; of active tenants, and of some that left
        self._last_left = 0

    def enter(self, tenant: str) -> None:
        """One more sequence of this tenant."""
        if tenant not in self._sequences:
            least = min((self._served[t] for t in self._sequences), default=self._last_left)
            self._served[tenant] = max(self._served.get(tenant, 0), least)
            self._sequences[tenant] = 0
        self._sequences[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One sequence less."""
        self._sequences[tenant] -= 1
        if self._sequences[tenant]:
            return
        del self._sequences[tenant]
        self._last_left = self._served[tenant]
        # Whoever comes back would be lifted over these, so they need no remembering.
        least = min((self._served[t] for t in self._sequences), default=self._last_left)
        self._served = {t: n for t, n in self._served.items() if t in self._sequences or n > least}

    def charge(self, tenant: str, tokens: int) -> None:
        """So many tokens were computed for an active tenant."""
        self._served[tenant] += tokens

    def served(self, tenant: str) -> int:
        """Tokens, comparable between active tenants only."""
        return self._served[tenant]
