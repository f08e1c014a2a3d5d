"""TRL's trainer with its forward and backward replaced: rows end to end, a fused loss, CUDA graphs where they work.

The mathematics of a step is that of padded rows: the mean loss over all trained tokens of the step's rows. Everything
else (optimiser, schedule, checkpoints, callbacks) stays the library's. Imports TRL at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from trl import SFTTrainer

from trainer.machine import lacks_memory
from trainer.packed.attention import packed_attention
from trainer.packed.graphs import GraphedStep
from trainer.packed.head import head_loss
from trainer.packed.kernels import use_fused_kernels
from trainer.packed.layout import Pass, largest_pass, lay_out, split_rows
from trainer.packed.lora import use_fused_lora
from trainer.progress import Reporter
from trainer.template import IGNORED

SHAPE_TOKENS = 512  # lengths of passes are multiples of it, so that few graphs serve all steps
SEGMENT_MULTIPLE = 16


class PackedTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Takes batches of `collate_flat`: all rows of a step at once, however many passes they need."""

    def __init__(
        self,
        *args: Any,
        max_pass_tokens: int,
        max_row_tokens: int,
        use_graphs: bool,
        reporter: Reporter,
        **kwargs: Any,
    ) -> None:
        """max_pass_tokens: bounds a pass, and with it the memory; max_row_tokens: the longest row there can be."""
        super().__init__(*args, **kwargs)
        self._max_pass_tokens = max_pass_tokens
        self._multiple = min(SHAPE_TOKENS, max_row_tokens)
        self._longest = max(max_row_tokens, self._multiple)
        self._reporter = reporter
        self._graphs = GraphedStep(self._run_pass) if use_graphs else None
        self._gradients: dict[torch.nn.Parameter, Tensor] = {}
        use_fused_lora(self.model)
        problem = use_fused_kernels(self.model.get_base_model())
        if problem and use_graphs:
            reporter.warn(
                f"Fused kernels are not used, which costs about a quarter of the speed: {problem}."
            )

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        """Loss and gradients of one step: the mean over the trained tokens of all rows, of all processes."""
        del num_items_in_batch  # counted here: by the library it depends on the version
        model.train()
        self._point_gradients()
        batch = self._prepare_inputs(inputs)
        lengths = batch["lengths"].tolist()
        labels, input_ids = batch["labels"][0], batch["input_ids"][0]
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        trained = (labels != IGNORED).sum() - (labels[starts[:-1]] != IGNORED).sum()
        if self.accelerator.num_processes > 1:
            distributed.all_reduce(trained)
        factor = 1.0 / trained.clamp(min=1).float()
        scaler = self.accelerator.scaler
        factor = scaler.scale(factor) if scaler is not None else factor
        loss = torch.zeros_like(factor)
        # The same for all passes of a step, so that only their lengths tell shapes apart.
        segments = -(-(len(lengths) + 1) // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
        for first, last in split_rows(lengths, self._max_pass_tokens):
            part = slice(starts[first], starts[last])
            tokens = starts[last] - starts[first]
            places = -(-tokens // self._multiple) * self._multiple
            if self._graphs is not None:
                places = self._graphs.near(places, segments) or places
            rows = lay_out(input_ids[part], labels[part], lengths[first:last], places, segments)
            loss += self._graphed(rows, factor)
        loss = loss / trained.clamp(min=1)
        if self.accelerator.num_processes > 1:
            self._sum_gradients()
            # The library averages the processes' losses for its log: each gives its share of the mean.
            loss = loss * self.accelerator.num_processes
        result: Tensor = loss.detach()
        return result

    def _graphed(self, rows: Pass, factor: Tensor) -> Tensor:
        if self._graphs is None:
            return self._run_pass(rows, factor)
        try:
            if not self._graphs.shapes:
                self._graphs.reserve(self._largest(rows), factor)
            return self._graphs(rows, factor)
        except RuntimeError as error:
            # Where it has worked before, this is something else.
            if lacks_memory(error) or self._graphs.shapes:
                raise
            self._graphs = None
            self._reporter.warn(
                f"A step cannot be recorded as a CUDA graph here ({str(error).splitlines()[0]}); training goes on "
                "without, bound by the processor."
            )
            self._zero_gradients()
            return self._run_pass(rows, factor)

    def _largest(self, like: Pass) -> Pass:
        """A pass without targets of the largest size that this process will meet; otherwise shaped as `like`."""
        rows = self.args.per_device_train_batch_size
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        tokens = largest_pass(lengths, rows, self._max_pass_tokens, process, processes)
        places = max(-(-tokens // self._multiple) * self._multiple, like.tokens)
        filled = [places // rows] * rows
        ids = like.input_ids.new_zeros(sum(filled))
        ignored = torch.full_like(ids, IGNORED)
        return lay_out(ids, ignored, filled, places, like.boundaries.numel() - 1)

    def _run_pass(self, rows: Pass, factor: Tensor) -> Tensor:
        """Sum of the losses of a pass; its gradients times `factor` are added to .grad."""
        model = self.model.get_base_model()
        with packed_attention(model.config):
            hidden = model.model(
                input_ids=rows.input_ids,
                position_ids=rows.position_ids,
                use_cache=False,
                cu_seq_lens_q=rows.boundaries,
                max_length_q=self._longest,
            ).last_hidden_state
            total = head_loss(hidden[0], model.lm_head.weight, rows.targets[0])
            # In the same context: recomputed activations must meet the same attention.
            torch.autograd.backward(total * factor)
        return total.detach()

    def _point_gradients(self) -> None:
        """Make .grad our own buffers: a graph writes to the addresses it was recorded with.

        The library forgets .grad after each step, which is when they are due to be emptied.
        """
        if not self._gradients:
            self._gradients = {
                parameter: torch.zeros_like(parameter)
                for parameter in self.model.parameters()
                if parameter.requires_grad
            }
        if any(parameter.grad is None for parameter in self._gradients):
            self._zero_gradients()
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient

    def _zero_gradients(self) -> None:
        torch._foreach_zero_(list(self._gradients.values()))

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes, in one message."""
        flat = torch.cat([gradient.flatten() for gradient in self._gradients.values()])
        distributed.all_reduce(flat)
        start = 0
        for gradient in self._gradients.values():
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
