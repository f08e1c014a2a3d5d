"""The loss on the float base is measured in a process of its own, on the same rows, and told with the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import write_peft_adapter
from tests.trainer.recipes import prepared, tiny_recipe
from trainer.float_base import measure_both, on_float_base


def test_it_is_that_of_the_float_base(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.backends.peft import PeftBackend
    from trainer.losses import LossMeter
    from trainer.probe import logprobs

    write_peft_adapter(tiny_model, tmp_path / "adapter")
    _, rows = prepared(tiny_recipe(tiny_model, tmp_path, rows=5))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter"
    )
    model.eval()
    here = measure_both(LossMeter(PeftBackend(), model, "float32", 0, 2), model, tuple(rows))
    ids = (1, 5, 9, 200, 7)
    there = on_float_base(
        str(tiny_model), tmp_path / "adapter", tuple(rows), 0, here, probe_ids=ids
    )
    assert there.problem is None
    assert there.probe.token_ids == ids
    assert there.probe.logprobs == pytest.approx(logprobs(model, ids), abs=1e-5)
    assert [loss.source for loss in there.losses] == ["chats", "all"]
    for loss in there.losses:
        assert loss.base_float == pytest.approx(loss.base_quantised, rel=1e-5)
        assert loss.tuned_float == pytest.approx(loss.tuned_quantised, rel=1e-5)
        assert loss.tuned_float != pytest.approx(loss.base_float, rel=1e-3)
    alone = on_float_base(str(tiny_model), tmp_path / "adapter", (), 0, None, probe_ids=ids)
    assert (alone.losses, alone.probe) == ((), there.probe)
    nothing = on_float_base(
        str(tmp_path / "nowhere"), tmp_path / "adapter", tuple(rows), 0, here, probe_ids=ids
    )
    assert nothing.losses == ()
    assert nothing.problem is not None
    assert nothing.problem.startswith("Nothing was measured on the float32 base: ")
    assert nothing.probe.absent == nothing.problem
