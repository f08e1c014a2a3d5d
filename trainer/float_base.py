"""What the adapter does on the float32 base it will be served on: its held-out loss, and the probe of probe.py.

An adapter learns against de-quantised or narrower weights and is served on the originals. Nobody publishes the
difference.
The float base is loaded in a process of its own, which no training library has patched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.dataset import PreparedData, Row
from trainer.losses import LossMeter, LossSum, total
from trainer.machine import this_machine
from trainer.record import FloatBaseLoss, Probe
from trainer.split import spread
from trainer.template import Encoded

Losses = dict[str, LossSum]


def float_rows(data: PreparedData, count: int, seed: int) -> tuple[Row, ...]:
    """`count` held-out rows, spread over the sources."""
    chosen = spread([row.source for row in data.test], count, seed)
    return tuple(data.test[index] for index in chosen)


def measure_both(meter: LossMeter, model: Any, rows: tuple[Row, ...]) -> tuple[Losses, Losses]:
    """Losses of base (adapter off) and tuned model."""
    tuned = meter.measure(rows)
    with model.disable_adapter():
        return meter.measure(rows), tuned


@dataclass(frozen=True, slots=True)
class OnFloatBase:
    """losses: by source and of all; none without rows. problem: why there is nothing."""

    losses: tuple[FloatBaseLoss, ...]
    probe: Probe
    problem: str | None = None


def on_float_base(
    base: str,
    adapter: Path,
    rows: tuple[Row, ...],
    pad_token_id: int,
    quantised: tuple[Losses, Losses] | None,
    probe_ids: tuple[int, ...],
) -> OnFloatBase:
    """Load the float base, measure the losses of `rows`, compute the probe.

    base: folder or hub id of the float base. quantised: losses of the rows, of base and tuned on the quantised one,
    whose memory must be free by now; None without rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        encoded = [[row.source, row.encoded.input_ids, row.encoded.labels] for row in rows]
        job.write_text(
            json.dumps(
                {
                    "base": base,
                    "adapter": str(adapter.resolve()),
                    "pad": pad_token_id,
                    "rows": encoded,
                    "probe": probe_ids,
                }
            )
        )
        done = subprocess.run(
            [sys.executable, "-m", "trainer.float_base", str(job), str(result)],
            cwd=Path(__file__).resolve().parent.parent,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode or not result.is_file():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            problem = f"Nothing was measured on the float32 base: {reason}"
            return OnFloatBase((), Probe(absent=problem), problem)
        measured = json.loads(result.read_text())
    probe = Probe(probe_ids, tuple(measured["probe"]))
    if quantised is None:
        return OnFloatBase((), probe)
    base_sums, tuned_sums = (
        {name: LossSum(*sums) for name, sums in part.items()} for part in measured["losses"]
    )
    return OnFloatBase(_table(quantised, (base_sums, tuned_sums)), probe)


def _table(
    quantised: tuple[Losses, Losses], on_float: tuple[Losses, Losses]
) -> tuple[FloatBaseLoss, ...]:
    columns = [{**sums, "all": total(sums)} for sums in (*quantised, *on_float)]
    return tuple(
        FloatBaseLoss(
            source=name,
            base_quantised=columns[0][name].mean,
            tuned_quantised=columns[1][name].mean,
            base_float=columns[2][name].mean,
            tuned_float=columns[3][name].mean,
            rows=columns[0][name].rows,
            tokens=columns[0][name].tokens,
        )
        for name in [*sorted(quantised[0]), "all"]
    )


def _measure(job: Path, result: Path) -> None:
    """The child's work: load the float base with the adapter, measure, write the sums."""
    import torch  # noqa: PLC0415
    from peft import PeftModel  # noqa: PLC0415 (seconds to import)
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from trainer.backends.peft import PeftBackend  # noqa: PLC0415
    from trainer.conversation import Conversation  # noqa: PLC0415
    from trainer.probe import logprobs  # noqa: PLC0415

    work = json.loads(job.read_text())
    machine = this_machine()
    model = AutoModelForCausalLM.from_pretrained(
        work["base"],
        dtype=torch.float32,
        device_map={"": machine.index} if machine.has_cuda else None,
        attn_implementation="sdpa",
    )
    torch.set_float32_matmul_precision(
        "highest"
    )  # no TF32: the probe is compared with float32 sums
    model = PeftModel.from_pretrained(model, work["adapter"])
    model.eval()
    probe = logprobs(model, work["probe"])
    rows = tuple(
        Row(Conversation(source, index, ()), Encoded(ids, labels, ()))
        for index, (source, ids, labels) in enumerate(work["rows"])
    )
    meter = LossMeter(PeftBackend(), model, "float32", work["pad"], 1)
    measured = measure_both(meter, model, rows) if rows else ()
    parts = [
        {name: (sums.total, sums.tokens, sums.rows) for name, sums in part.items()}
        for part in measured
    ]
    result.write_text(json.dumps({"losses": parts, "probe": probe}))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), Path(sys.argv[2]))
