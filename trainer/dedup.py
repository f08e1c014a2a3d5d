"""Near-duplicate texts: which pairs have a Jaccard similarity of word triples at or over a threshold.

The join is exact, not sampled (no MinHash): by prefix filtering, two sets that similar must share one of the rarest
elements of each. So what follows from it, such as "no near-duplicate crosses the split", holds without exception.
It knows nothing about conversations or tokens.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

WORDS_PER_SHINGLE = 3

Shingles = frozenset[tuple[str, ...]]


def normalise(text: str) -> str:
    """The words of a text: compatibility forms unified, case, punctuation and spacing dropped.

    A text without any letter or digit is kept as it is, but for its spacing.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(letter if letter.isalnum() else " " for letter in folded).split()
    return " ".join(words or folded.split())


def shingles(normalised: str) -> Shingles:
    """The set of word triples; of a text of fewer words, the text as one element."""
    words = normalised.split(" ")
    if len(words) < WORDS_PER_SHINGLE:
        return frozenset([tuple(words)])
    last = len(words) - WORDS_PER_SHINGLE + 1
    return frozenset(tuple(words[i : i + WORDS_PER_SHINGLE]) for i in range(last))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Size of the intersection over size of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class Groups:
    """Disjoint sets of the numbers 0..count-1 (union-find). A group's name is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """The name of the group that holds `item`."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, left: int, right: int) -> None:
        """Make the groups of two items one."""
        first, second = sorted((self.find(left), self.find(right)))
        self._parent[second] = first


def near_duplicates(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, that link all near-duplicates: j's equal or similar earlier texts.

    Texts equal after normalisation are linked to the first of them only, and similarity is found between such
    firsts; every pair at or over `threshold` is therefore linked directly or through equal texts.
    """
    firsts: dict[str, int] = {}
    for index, text in enumerate(texts):
        key = normalise(text)
        if key in firsts:
            yield firsts[key], index
        else:
            firsts[key] = index
    originals = list(firsts.values())
    for left, right in _similar([shingles(key) for key in firsts], threshold):
        yield originals[left], originals[right]


def _similar(sets: Sequence[Shingles], threshold: float) -> Iterator[tuple[int, int]]:
    """All pairs (i, j), i < j, with jaccard(sets[i], sets[j]) >= threshold."""
    frequency = Counter(element for items in sets for element in items)
    postings: dict[tuple[str, ...], list[int]] = {}
    for right, items in enumerate(sets):
        size = len(items)
        # Rarest first. |A & B| >= ceil(t * |A|) for a similar B, so B holds one of the first |A| - ceil(t |A|) + 1.
        needed = math.ceil(threshold * size - 1e-9)
        prefix = sorted(items, key=lambda element: (frequency[element], element))[
            : size - needed + 1
        ]
        candidates = {left for element in prefix for left in postings.get(element, ())}
        for left in sorted(candidates):
            smaller, larger = sorted((len(sets[left]), size))
            if smaller >= threshold * larger - 1e-9 and (
                jaccard(sets[left], items) >= threshold - 1e-9
            ):
                yield left, right
        for element in prefix:
            postings.setdefault(element, []).append(right)


def duplicates_to_remove(texts: Sequence[str], threshold: float) -> tuple[set[int], Groups]:
    """Which texts to remove so that no two that stay are near-duplicates, and the groups of near-duplicates.

    Of two near-duplicates the earlier stays. A text that resembles only removed ones stays, in their group.
    """
    groups = Groups(len(texts))
    earlier: dict[int, list[int]] = {}
    for left, right in near_duplicates(texts, threshold):
        groups.join(left, right)
        earlier.setdefault(right, []).append(left)
    removed: set[int] = set()
    # An equal text is linked to its first only: it goes even if that first is itself removed.
    keys: set[str] = set()
    for index, text in enumerate(texts):
        key = normalise(text)
        if key in keys or any(left not in removed for left in earlier.get(index, ())):
            removed.add(index)
        keys.add(key)
    return removed, groups
