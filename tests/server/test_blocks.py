from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.engine.blocks import BlockPool
from server.engine.prefix_cache import BlockTable, Node
from server.step import BlockCopy

SIZE = 4
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=3 * SIZE)
Content = tuple[Any, ...]  # of one position: the namespace and all tokens up to there


class Pool(RuleBasedStateMachine):
    """Allocate, share, grow, free, evict, send back; the memory is played along with what a runner would write."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7, SIZE)
        self.memory: dict[int, list[Content | None]] = {i: [None] * SIZE for i in range(7)}
        self.tables: dict[BlockTable, tuple[str, str]] = {}
        self.copies: list[BlockCopy] = []
        self.fresh: list[
            BlockTable
        ] = []  # opened since the last step: their copies have not been made

    @rule(prompt=tokens, scope=st.sampled_from(["", "key"]), reuse=st.integers(0, 12))
    def open(self, prompt: list[int], scope: str, reuse: int) -> None:
        opened = self.pool.open(
            ("", scope), prompt, reuse=min(reuse, len(prompt) - 1), headroom=len(self.tables)
        )
        if opened is None:
            assert len(self.tables) + self.pool.blocks_for(len(prompt)) > self.pool.num_available
            return
        table, copy = opened
        assert table.num_computed < len(prompt), "the last token's logits are needed"
        assert table.num_computed <= reuse
        assert len(table.block_ids) == self.pool.blocks_for(len(prompt))
        self.tables[table] = ("", scope)
        self.fresh.append(table)
        self.copies += [] if copy is None else [copy]

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """The copies in order, then some of each table's next tokens; a guess may be written behind the last."""
        for copy in self.copies:
            self.memory[copy.target] = list(self.memory[copy.source])
        self.copies.clear()
        self.fresh.clear()
        ends = {}
        for table in self.tables:
            ends[table] = data.draw(st.integers(table.num_computed, len(table.token_ids)))
            for position in range(table.num_computed, ends[table]):
                self.write(table, position, self.content(table, position))
            if ends[table] == len(table.token_ids) < len(table.block_ids) * SIZE:
                self.write(table, len(table.token_ids), ("a guess that was wrong",))
        for table, end in ends.items():
            self.pool.advance(table, end)

    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data: st.DataObject, token: int) -> None:
        if not self.tables:
            return
        table = data.draw(st.sampled_from(list(self.tables)))
        before = list(table.block_ids)
        if self.pool.grow(table, len(table.token_ids) + 1):
            table.token_ids.append(token)
        else:
            assert self.pool.num_available == 0
            assert table.block_ids == before

    @rule(data=st.data(), keep_tail=st.booleans())
    def close(self, data: st.DataObject, keep_tail: bool) -> None:
        closable = [table for table in self.tables if table not in self.fresh]
        if not closable:
            return
        table = data.draw(st.sampled_from(closable))
        computed = table.token_ids[: table.num_computed]
        namespace = self.tables.pop(table)
        self.pool.close(table, keep_tail=keep_tail)
        if keep_tail and not self.fresh:
            self.can_be_found(namespace, computed)

    def can_be_found(self, namespace: tuple[str, str], computed: list[int]) -> None:
        """All that was computed is found again, to the token."""
        again = self.pool.open(namespace, [*computed, 9], reuse=len(computed), headroom=0)
        if again is not None:
            table, copy = again
            assert table.num_computed == len(computed)
            if copy is not None:
                self.memory[copy.target] = list(self.memory[copy.source])
            self.pool.close(table)

    def content(self, table: BlockTable, position: int) -> Content:
        return (self.tables[table], *table.token_ids[: position + 1])

    def write(self, table: BlockTable, position: int, content: Content) -> None:
        self.memory[table.block_ids[position // SIZE]][position % SIZE] = content

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        in_tree = [node.block_id for node in self.pool.cache.nodes()]
        own = [block for table in self.tables for block in table.block_ids[len(table.path) :]]
        assert sorted([*self.pool.free, *in_tree, *own]) == list(range(7))
        idle = sum(node.users == 0 for node in self.pool.cache.nodes())
        assert self.pool.num_cached == idle
        assert self.pool.num_available == len(self.pool.free) + idle
        assert self.pool.num_used == 7 - self.pool.num_available

    @invariant()
    def users_are_counted_right(self) -> None:
        users = Counter(node for table in self.tables for node in table.path)
        for node in self.pool.cache.nodes():
            assert node.users == users[node]
        for table in self.tables:
            assert [node.block_id for node in table.path] == table.block_ids[: len(table.path)]

    @invariant()
    def contents_are_what_the_tokens_say(self) -> None:
        for node in self.pool.cache.nodes():
            content = contents(node)
            assert self.memory[node.block_id][: len(node.token_ids)] == content
        for table in self.tables:
            if table not in self.fresh:
                for position in range(table.num_computed):
                    block = self.memory[table.block_ids[position // SIZE]]
                    assert block[position % SIZE] == self.content(table, position)

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.close(table)
        assert self.pool.num_available == 7
        everything = self.pool.open(("", ""), [5] * 7 * SIZE, reuse=0, headroom=0)
        assert everything is not None, "a block has leaked"
        assert not list(self.pool.cache.nodes())
        self.pool.close(everything[0], keep_tail=False)
        assert self.pool.cache.num_namespaces == 0


def contents(node: Node) -> list[Content]:
    """What each position of a cached block must hold."""
    below: list[Node] = [node]
    while below[-1].parent is not None:
        below.append(below[-1].parent)
    before: list[int] = [t for above in reversed(below[1:]) for t in above.token_ids]
    namespace = below[-1].namespace
    return [(namespace, *before, *node.token_ids[: i + 1]) for i in range(len(node.token_ids))]


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def computed(pool: BlockPool, prompt: list[int], scope: str = "") -> tuple[BlockTable, int]:
    """A table whose text is all computed, and how much of it was found."""
    opened = pool.open(("", scope), prompt, reuse=len(prompt) - 1, headroom=0)
    assert opened is not None
    found = opened[0].num_computed
    pool.advance(opened[0], len(prompt))
    return opened[0], found


def test_a_later_turn_finds_all_of_the_earlier_one() -> None:
    pool = BlockPool(20, SIZE)
    first, found = computed(pool, list(range(10)))
    pool.close(first)
    assert found == 0
    assert computed(pool, [*range(10), 77, 78])[1] == 10


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    pool = BlockPool(20, SIZE)
    computed(pool, list(range(10)))
    assert computed(pool, [*range(9), 77, 78])[1] == 9


def test_nothing_is_found_in_another_scope() -> None:
    pool = BlockPool(20, SIZE)
    for scope in ("", "alice", "bob"):
        table, found = computed(pool, list(range(10)), scope)
        pool.close(table)
        assert found == 0


def test_equal_blocks_are_held_once() -> None:
    pool = BlockPool(20, SIZE)
    one = pool.open(("", ""), list(range(9)), reuse=8, headroom=0)
    two = pool.open(("", ""), list(range(9)), reuse=8, headroom=0)  # before anything was computed
    assert one is not None
    assert two is not None
    pool.advance(one[0], 9)
    pool.advance(two[0], 9)
    assert one[0].block_ids[:2] == two[0].block_ids[:2]
    assert pool.num_used == 4


def test_what_was_used_last_is_evicted_last_and_ends_before_beginnings() -> None:
    pool = BlockPool(7, SIZE)
    for start in (10, 20, 30):
        pool.close(computed(pool, list(range(start, start + 2 * SIZE)))[0])
    table, found = computed(pool, [*range(10, 10 + 2 * SIZE), 0])  # used again
    pool.close(table, keep_tail=False)
    assert found == 2 * SIZE
    order = []
    while pool.num_cached:
        before = {node.token_ids[0] for node in pool.cache.nodes()}
        pool.cache.evict()
        order += before - {node.token_ids[0] for node in pool.cache.nodes()}
    assert order == [24, 20, 34, 30, 14, 10]


def test_what_is_found_again_in_part_counts_as_used() -> None:
    pool = BlockPool(3, SIZE)
    for start in (10, 20):
        pool.close(computed(pool, [start, start + 1])[0])
    pool.close(computed(pool, [10, 11])[0])
    pool.cache.evict()
    assert [node.token_ids for node in pool.cache.nodes()] == [(10, 11)]


def test_the_books_do_not_grow_with_use() -> None:
    pool = BlockPool(3, SIZE)
    for _ in range(500):
        pool.close(computed(pool, [1, 2, 3, 4, 5])[0])
    assert len(pool.cache._by_age) < 100


def test_callers_scopes_do_not_pile_up() -> None:
    pool = BlockPool(3, SIZE)
    for scope in range(50):
        pool.close(computed(pool, [1, 2, 3, 4, 5], str(scope))[0], keep_tail=False)
        pool.close(computed(pool, [1, 2, 3], f"{scope}, cancelled")[0], keep_tail=False)
        assert pool.cache.num_namespaces <= 3


def test_a_longer_end_takes_the_place_of_a_shorter_one() -> None:
    pool = BlockPool(20, SIZE)
    for length in (1, 2, 3):
        pool.close(computed(pool, [7, 8, 9][:length])[0])
        assert pool.num_cached == 1
    assert computed(pool, [7, 8, 9, 6])[1] == 3
    assert [node.token_ids for node in pool.cache.nodes()] == [(7, 8, 9, 6)]
    assert pool.num_used == 1
