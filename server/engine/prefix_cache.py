"""Finds computed KV blocks again by the tokens in them: a tree, one node per block; the least recently used go first.

It knows which block holds what and who uses it; which blocks are free is the pool's to know.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

Namespace = tuple[
    str, str
]  # what besides the tokens must agree: the adapter's digest, the cache scope
Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """One computed block; its content depends on all tokens from the root of the tree to here.

    token_ids: block_size of them, or fewer where a sequence ended (then it has no children, and is only copied from).
    children and tails hold those of full and of fewer tokens. A root has no tokens and no block.
    """

    token_ids: Tokens
    block_id: int  # -1 once evicted
    parent: Node | None = None
    namespace: Namespace | None = None  # of a root
    children: dict[Tokens, Node] = field(default_factory=dict)
    tails: dict[Tokens, Node] = field(default_factory=dict)
    # Running sequences whose next block, still filling, follows this one.
    open_tables: list[BlockTable] = field(default_factory=list)
    # Running sequences that use this block. All of them use its parent too, so no parent has fewer.
    users: int = 0
    last_used: int = 0

    @property
    def is_evictable(self) -> bool:
        return self.users == 0 and self.block_id >= 0 and not self.children and not self.tails


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one running sequence, in order of position.

    token_ids: the sequence's own list, which grows. The first num_computed positions have their keys and values;
    of the blocks, the first len(path) are full and in the tree.
    """

    token_ids: list[int]
    root: Node
    block_ids: list[int]
    path: list[Node]
    num_computed: int

    @property
    def last_node(self) -> Node:
        return self.path[-1] if self.path else self.root


class PrefixCache:
    """Keyed by the token ids themselves, not by hashes of them: there is nothing to collide."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._roots: dict[Namespace, Node] = {}
        self._clock = 0
        self._num_nodes = 0
        self._num_idle = 0
        # (last_used, node) of every evictable node, and entries that are out of date.
        self._by_age: list[tuple[int, Node]] = []

    @property
    def num_idle(self) -> int:
        """Blocks that no running sequence uses. All of them can be evicted, leaves first."""
        return self._num_idle

    @property
    def num_namespaces(self) -> int:
        return len(self._roots)

    def path(self, namespace: Namespace, token_ids: Sequence[int], limit: int) -> list[Node]:
        """The full blocks that hold the beginning of token_ids, of its first `limit` tokens at most."""
        node = self._roots.get(namespace)
        found: list[Node] = []
        for end in range(self._block_size, limit + 1, self._block_size):
            if node is not None:
                node = node.children.get(tuple(token_ids[end - self._block_size : end]))
            if node is None:
                break
            found.append(node)
        return found

    def open(self, namespace: Namespace, token_ids: list[int], path: list[Node]) -> BlockTable:
        """A table that uses the blocks of path."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node((), -1, namespace=namespace)
        for node in path:
            self._use(node)
        blocks = [node.block_id for node in path]
        table = BlockTable(token_ids, root, blocks, path, len(path) * self._block_size)
        table.last_node.open_tables.append(table)
        return table

    def longest_part(self, table: BlockTable, limit: int) -> tuple[int, int]:
        """(block, length): the block that holds most of the tokens after the table's path, and how many.

        Only a copy of it can be used, because it goes on with other tokens. length is 0 if there is none.
        """
        start = len(table.path) * self._block_size
        wanted = tuple(table.token_ids[start : min(limit, start + self._block_size)])
        block, length = -1, 0
        for tokens, candidate in self._continuations(table, start):
            if length < len(wanted) and tokens[: length + 1] == wanted[: length + 1]:
                block, length = candidate, _common_length(tokens, wanted)
        return block, length

    def register(self, table: BlockTable) -> list[int]:
        """Put the table's first block that is not in the tree, now full, into it. Returns blocks that are free now.

        If an equal one is there, the table switches to it: contents of equal tokens are bit-identical.
        """
        parent, index = table.last_node, len(table.path)
        start = index * self._block_size
        tokens = tuple(table.token_ids[start : start + self._block_size])
        own = table.block_ids[index]
        node = parent.children.get(tokens)
        if node is None:
            node = Node(tokens, own, parent, users=1)
            parent.children[tokens] = node
            self._num_nodes += 1
            freed = self._remove_beginnings(parent, tokens)
        else:
            self._use(node)
            table.block_ids[index] = node.block_id
            freed = [own]
        parent.open_tables.remove(table)
        node.open_tables.append(table)
        table.path.append(node)
        return freed

    def close(self, table: BlockTable, *, keep_tail: bool) -> list[int]:
        """The table's sequence runs no more; its blocks stay findable. Returns the blocks that are free now.

        keep_tail: whether the block that is not full is kept, too.
        """
        parent, root = table.last_node, table.root
        parent.open_tables.remove(table)
        start = len(table.path) * self._block_size
        freed = table.block_ids[len(table.path) :]
        tail = tuple(table.token_ids[start : table.num_computed]) if keep_tail else ()
        if tail:
            block, *freed = freed
            freed += self._insert_tail(parent, tail, block)
        for node in table.path:
            node.users -= 1
            self._touch(node)
            if node.users == 0:
                self._num_idle += 1
                self._note_if_evictable(node)
        table.block_ids, table.path = [], []
        self._drop_if_empty(root)
        return freed

    def evict(self) -> int | None:
        """Forget the leaf that was not used for longest; its block, or None if all are in use."""
        while self._by_age:
            last_used, node = heapq.heappop(self._by_age)
            if node.is_evictable and node.last_used == last_used:
                return self._remove(node)
        return None

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots. For checks; it walks the whole tree."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            below = [*node.children.values(), *node.tails.values()]
            yield from below
            pending += below

    def _continuations(self, table: BlockTable, start: int) -> Iterator[tuple[Tokens, int]]:
        """Blocks that follow the table's path: the tokens in each, and its id."""
        parent = table.last_node
        for node in chain(parent.children.values(), parent.tails.values()):
            yield node.token_ids, node.block_id
        for other in parent.open_tables:
            if other is not table and other.num_computed > start:
                yield (
                    tuple(other.token_ids[start : other.num_computed]),
                    other.block_ids[len(other.path)],
                )

    def _insert_tail(self, parent: Node, tokens: Tokens, block_id: int) -> list[int]:
        """Returns the blocks that are free now; block_id itself, if another block begins with the same tokens."""
        for node in chain(parent.children.values(), parent.tails.values()):
            if node.token_ids[: len(tokens)] == tokens:
                self._touch(node)
                self._note_if_evictable(node)
                return [block_id]
        node = parent.tails[tokens] = Node(tokens, block_id, parent)
        self._num_nodes += 1
        self._num_idle += 1
        self._touch(node)
        self._note_if_evictable(node)
        # Only now: a root that is left empty is dropped.
        return self._remove_beginnings(parent, tokens)

    def _remove_beginnings(self, parent: Node, tokens: Tokens) -> list[int]:
        """Remove the tails that a block with these tokens makes superfluous; their blocks."""
        covered = [t for t in parent.tails if len(t) < len(tokens) and t == tokens[: len(t)]]
        return [self._remove(parent.tails[t]) for t in covered]

    def _remove(self, node: Node) -> int:
        parent = node.parent
        assert parent is not None, "a root has no block"
        siblings = parent.children if node.token_ids in parent.children else parent.tails
        del siblings[node.token_ids]
        self._num_nodes -= 1
        self._num_idle -= 1
        block_id, node.block_id = node.block_id, -1
        self._note_if_evictable(parent)
        self._drop_if_empty(parent)
        return block_id

    def _drop_if_empty(self, node: Node) -> None:
        """Callers choose their scopes, so roots must not pile up."""
        if node.namespace is not None and not (node.children or node.tails or node.open_tables):
            self._roots.pop(node.namespace, None)

    def _use(self, node: Node) -> None:
        if node.users == 0:
            self._num_idle -= 1
        node.users += 1

    def _touch(self, node: Node) -> None:
        self._clock += 1
        node.last_used = self._clock

    def _note_if_evictable(self, node: Node) -> None:
        if not node.is_evictable:
            return
        heapq.heappush(self._by_age, (node.last_used, node))
        if len(self._by_age) > 2 * self._num_nodes + 64:  # else it would grow with every reuse
            current = {e for e in self._by_age if e[1].is_evictable and e[1].last_used == e[0]}
            self._by_age = sorted(current)  # a sorted list is a heap; no two nodes have one date


def _common_length(one: Tokens, other: Tokens) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
