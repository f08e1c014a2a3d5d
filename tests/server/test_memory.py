"""The memory a process may use, and the share of it that the KV cache gets."""

from __future__ import annotations

from pathlib import Path

from server.memory import RESERVED_BYTES, available_bytes, kv_cache_budget


def test_a_containers_limit_counts_and_no_limit_does_not(tmp_path: Path) -> None:
    machine = available_bytes(())
    limit = tmp_path / "memory.max"
    limit.write_text(f"{machine // 2}\n")
    assert available_bytes((limit,)) == machine // 2
    limit.write_text("max\n")
    assert available_bytes((limit,)) == machine
    limit.write_text(f"{2**63 - 4096}\n")  # cgroup v1 writes "no limit" as a number
    assert available_bytes((limit, tmp_path / "absent")) == machine


def test_the_kv_cache_gets_half_of_what_is_left_and_never_more_than_enough() -> None:
    left = 2**30
    memory = 10 * 2**30 + RESERVED_BYTES + left
    assert kv_cache_budget(memory, 10 * 2**30, enough=2**40) == left // 2
    assert kv_cache_budget(memory, 10 * 2**30, enough=1000) == 1000
    assert kv_cache_budget(2**30, 2**30, enough=1000) < 0, "the runner says what is missing"
