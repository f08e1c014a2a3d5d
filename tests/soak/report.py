"""What the soak saw, as a table, and what of it must not be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from benchmarks.machine import Machine
from tests.soak.callers import CANCELLED, FINISHED, OUTCOMES, REFUSED, Tally
from tests.soak.watch import total

MIB = 2**20


@dataclass(slots=True)
class Evidence:
    """before, after: the server's metrics. memory: bytes in each tenth of the time. open_files: at start and end.

    deeds: what was done to the volume.
    """

    tally: Tally
    deeds: Counter[str]
    seconds: float
    before: dict[str, float]
    after: dict[str, float]
    memory: list[int]
    open_files: tuple[int, int]
    recovered: bool = False
    exit_code: int | None = None
    tracebacks: int = 0

    def done(self, name: str) -> float:
        """By how much a counter of the server has grown, over all its labels."""
        return total(self.after, name) - total(self.before, name)

    @property
    def held(self) -> dict[str, float]:
        names = (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "lorachat_kv_blocks_used",
            "lorachat_queue_tokens",
            "lorachat_adapter_requests_waiting",
        )
        return {name: total(self.after, name) for name in names}

    @property
    def growth(self) -> float:
        """Of memory, as a part: from the second tenth of the time, since the first is for warming up, to the last."""
        return self.memory[-1] / self.memory[1] - 1


def findings(evidence: Evidence, *, memory_growth: float) -> list[str]:
    """memory_growth: the part by which memory may have grown."""
    tally = evidence.tally
    found = [f"wrong: {text}" for text in tally.wrong] + [f"lost: {text}" for text in tally.lost]
    sent, ended = tally.sent.total(), tally.outcomes.total()
    if sent != ended:
        found.append(f"{sent} requests were sent, {ended} ended")
    found += [f"leaked: {name} is {value:.0f}" for name, value in evidence.held.items() if value]
    if evidence.growth > memory_growth:
        found.append(f"memory grew by {evidence.growth:.1%}")
    if evidence.open_files[1] > evidence.open_files[0] + 2:
        found.append(f"open files: {evidence.open_files[0]} before, {evidence.open_files[1]} after")
    if not evidence.recovered:
        found.append("answers after the disturbance are not those before it")
    if evidence.exit_code != 0:
        found.append(f"SIGTERM ended the server with {evidence.exit_code}")
    if evidence.tracebacks:
        found.append(f"{evidence.tracebacks} tracebacks in the server's log")
    if not all(tally.of(outcome) for outcome in (FINISHED, REFUSED, CANCELLED)):
        found.append("an outcome never came: the load does not try what it should")
    return found


def write_report(evidence: Evidence, machine: Machine) -> None:
    tally = evidence.tally
    print(f"\n{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB\n")
    print(f"{'caller':<20}{'sent':>8}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for kind in sorted(tally.sent):
        cells = "".join(f"{tally.outcomes[kind, outcome]:>11}" for outcome in OUTCOMES)
        print(f"{kind:<20}{tally.sent[kind]:>8}{cells}")
    cells = "".join(f"{tally.of(outcome):>11}" for outcome in OUTCOMES)
    print(f"{'all':<20}{tally.sent.total():>8}{cells}\n")
    print(f"refusals     {dict(tally.refusals.most_common())}")
    print(f"volume       {dict(evidence.deeds)}")
    print(
        f"answers      {tally.compared} compared with the same request alone, {len(tally.wrong)} wrong"
    )
    tokens = evidence.done("vllm:generation_tokens_total")
    print(
        f"tokens/s     {tokens / evidence.seconds:.0f} drawn ({tokens:.0f} in {evidence.seconds:.0f} s)"
    )
    print(f"engine       {evidence.done('lorachat_steps_total'):.0f} steps,"
          f" {evidence.done('vllm:num_preemptions_total'):.0f} preemptions,"
          f" {evidence.done('vllm:prefix_cache_hits_total'):.0f} of"
          f" {evidence.done('vllm:prefix_cache_queries_total'):.0f} prompt tokens cached;"
          f" {evidence.done('lorachat_adapter_loads_total'):.0f} adapters loaded,"
          f" {evidence.done('lorachat_adapter_evictions_total'):.0f} made room")  # fmt: skip
    tenths = " ".join(f"{bytes_ / MIB:.0f}" for bytes_ in evidence.memory)
    print(f"memory       {tenths} MiB, in tenths of the time ({evidence.growth:+.1%})")
    print(f"open files   {evidence.open_files[0]} before, {evidence.open_files[1]} after")
    print(f"left held    {evidence.held}")
    print(f"afterwards   same answers: {evidence.recovered}, exit code {evidence.exit_code}\n")
