"""Who holds which KV block. Every block is free, used by running sequences, or kept by the prefix cache alone.

Arithmetic only: the memory behind the numbers is the runner's.
"""

from __future__ import annotations

from server.engine.prefix_cache import BlockTable, Namespace, PrefixCache
from server.step import BlockCopy


class BlockPool:
    """num_blocks blocks of block_size positions each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if min(num_blocks, block_size) < 1:
            raise ValueError(f"there must be blocks and positions: {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cache = PrefixCache(block_size)
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free(self) -> tuple[int, ...]:
        """Blocks that nobody holds."""
        return tuple(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that a sequence can get: free, or cached and not in use."""
        return len(self._free) + self.cache.num_idle

    @property
    def num_cached(self) -> int:
        """Blocks that only the prefix cache holds."""
        return self.cache.num_idle

    @property
    def num_used(self) -> int:
        """Blocks that running sequences hold."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)

    def open(
        self, namespace: Namespace, token_ids: list[int], *, reuse: int, headroom: int
    ) -> tuple[BlockTable, BlockCopy | None] | None:
        """Blocks for all of token_ids, or None if then not `headroom` blocks would be left.

        As many as possible of the first `reuse` tokens are found computed. table.num_computed counts them; it is
        right once the copy has been made. The copy's source may be given away at once: copies run in order, before
        anything is computed.
        """
        path = self.cache.path(namespace, token_ids, reuse)
        needed = self.blocks_for(len(token_ids)) - len(path)
        idle_on_path = sum(node.users == 0 for node in path)
        if needed + headroom > self.num_available - idle_on_path:
            return None
        table = self.cache.open(namespace, token_ids, path)
        source, length = self.cache.longest_part(table, reuse)
        table.block_ids += [self._take() for _ in range(needed)]
        if length == 0:
            return table, None
        table.num_computed += length
        target = table.block_ids[len(table.path)]
        # The oldest block of a full pool may be evicted for its own copy.
        return table, None if source == target else BlockCopy(source, target)

    def grow(self, table: BlockTable, num_positions: int) -> bool:
        """Make the table reach so far. False, and nothing is changed, if the blocks are not to be had."""
        missing = self.blocks_for(num_positions) - len(table.block_ids)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            table.block_ids.append(self._take())
        return True

    def advance(self, table: BlockTable, num_computed: int) -> None:
        """The first num_computed positions are computed now: blocks that are full can be found from here on."""
        table.num_computed = num_computed
        while (len(table.path) + 1) * self.block_size <= num_computed:
            self._free += self.cache.register(table)

    def close(self, table: BlockTable, *, keep_tail: bool = True) -> None:
        """Its sequence leaves. keep_tail: whether the content of its last block, not full, can be trusted and kept."""
        self._free += self.cache.close(table, keep_tail=keep_tail)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block = self.cache.evict()
        assert block is not None, "the caller has counted what is available"
        return block
