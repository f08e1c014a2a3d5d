from __future__ import annotations

from pathlib import Path

import pytest

from server.cores import available_cores


@pytest.mark.parametrize(
    ("text", "most"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10**6), ("", 10**6)],
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, text: str, most: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert 1 <= available_cores(file) <= most
    assert available_cores(tmp_path / "absent") >= available_cores(file)
