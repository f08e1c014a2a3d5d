"""The memory a process may use, and the share of it that the KV cache gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.memory import RESERVED_BYTES, available_bytes, kv_cache_budget

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
# What /proc/self/cgroup says in a container, under systemd, and in a group outside of what a container sees.
OWN_V2 = {
    "": "0::/\n",
    "system.slice/chat.service": "0::/system.slice/chat.service\n",
    "..": "0::/../..\n",
}
OWN_V1 = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.mark.parametrize("group", OWN_V2)
def test_the_limit_of_cgroup_v2_counts_and_no_limit_does_not(tmp_path: Path, group: str) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(OWN_V2[group])
    assert available_bytes(root, own) == MACHINE, "no files, no limit"
    write(root / "memory.max", "max")
    assert available_bytes(root, own) == MACHINE
    write(root / "memory.max", MACHINE // 2)
    assert available_bytes(root, own) == MACHINE // 2
    if group.startswith("system"):
        # The least of the group's own limit and those above it.
        write(root / group / "memory.max", MACHINE // 4)
        write(root / "system.slice" / "memory.max", MACHINE // 3)
        assert available_bytes(root, own) == MACHINE // 4
        write(root / group / "memory.max", "max")
        assert available_bytes(root, own) == MACHINE // 3
    own.unlink()
    assert available_bytes(root, own) == MACHINE // 2


def test_the_limit_of_cgroup_v1_counts_and_no_limit_does_not(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(OWN_V1)
    limit = root / "memory" / "memory.limit_in_bytes"
    write(limit, 2**63 - 4096)  # v1 writes "no limit" as a number
    assert available_bytes(root, own) == MACHINE
    write(limit, MACHINE // 2)  # in the container, its own group is the root
    assert available_bytes(root, own) == MACHINE // 2
    write(
        root / "memory/docker/abc/memory.limit_in_bytes", MACHINE // 4
    )  # on the machine it is not
    assert available_bytes(root, own) == MACHINE // 4


def test_an_unreadable_limit_is_none(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("nonsense\n0\n::\n")
    write(root / "memory.max", "a lot")
    assert available_bytes(root, own) == MACHINE


def test_the_kv_cache_gets_half_of_what_is_left_and_never_more_than_enough() -> None:
    left = 2**30
    memory = 10 * 2**30 + RESERVED_BYTES + left
    assert kv_cache_budget(memory, 10 * 2**30, enough=2**40) == left // 2
    assert kv_cache_budget(memory, 10 * 2**30, enough=1000) == 1000
    assert kv_cache_budget(2**30, 2**30, enough=1000) < 0, "the runner says what is missing"
