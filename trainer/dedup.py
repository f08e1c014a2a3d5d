"""Near-duplicate texts: which pairs have a Jaccard similarity of word triples at or over a threshold.

The join is exact, not sampled (no MinHash): by prefix filtering, two sets that similar must share one of the rarest
elements of each. So what follows from it, such as "no near-duplicate crosses the split", holds without exception.
It knows nothing about conversations or tokens.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[^\W_]+")  # letters and digits of any script
WORD_BITS = (
    21  # three words fit into 63 bits; beyond two million different words some share a number
)

EPSILON = 1e-9  # for comparisons of sizes with shares of sizes

Shingles = NDArray[np.int64]  # (size,), ascending


def normalise(text: str) -> str:
    """The words of a text: compatibility forms unified, case, punctuation and spacing dropped.

    A text without any letter or digit is kept as it is, but for its spacing.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(WORD.findall(folded) or folded.split())


def _shingle_sets(texts: Sequence[str]) -> list[Shingles]:
    """The set of word triples of each normalised text, as numbers; of a text of fewer words, the text as one element.

    The numbers are ranks by rarity over all texts: the smaller, the rarer.
    """
    numbers: dict[str, int] = {}
    encoded = []
    for text in texts:
        words = [numbers.setdefault(word, len(numbers) + 1) for word in text.split(" ")]
        words += [0] * (3 - len(words))
        ids = np.array(words, dtype=np.int64) % (1 << WORD_BITS)
        encoded.append(np.unique((ids[:-2] << 2 * WORD_BITS) | (ids[1:-1] << WORD_BITS) | ids[2:]))
    values, counts = np.unique(np.concatenate(encoded), return_counts=True)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.lexsort((values, counts))] = np.arange(len(values))
    return [np.sort(ranks[np.searchsorted(values, items)]) for items in encoded]


def _jaccard(left: Shingles, right: Shingles) -> float:
    """Size of the intersection over size of the union."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
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
    if not texts:
        return
    firsts: dict[str, int] = {}
    for index, text in enumerate(texts):
        key = normalise(text)
        if key in firsts:
            yield firsts[key], index
        else:
            firsts[key] = index
    originals = list(firsts.values())
    for left, right in _similar(_shingle_sets(list(firsts)), threshold):
        yield originals[left], originals[right]


def _similar(sets: Sequence[Shingles], threshold: float) -> Iterator[tuple[int, int]]:
    """All pairs (i, j), i < j, of ranked sets with a Jaccard similarity at or over the threshold."""
    postings: dict[int, list[int]] = {}
    for right, items in enumerate(sets):
        size = len(items)
        # |A & B| >= ceil(t * |A|) for a similar B, so B holds one of A's |A| - ceil(t |A|) + 1 rarest, and the rarest
        # that they share is among B's own such.
        needed = math.ceil(threshold * size - EPSILON)
        prefix = items[: size - needed + 1].tolist()
        candidates = {left for element in prefix for left in postings.get(element, ())}
        for left in sorted(candidates):
            smaller, larger = sorted((len(sets[left]), size))
            if smaller < threshold * larger - EPSILON:
                continue
            if _jaccard(sets[left], items) >= threshold - EPSILON:
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
