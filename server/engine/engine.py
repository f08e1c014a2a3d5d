"""The engine: one thread owns the scheduler and the model; requests go in, events come out.

It knows nothing about HTTP, and nothing about tensors: the model is a Runner.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from server.engine.admission import Admission
from server.engine.generation import Generation, deliver
from server.engine.rows import check_results
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence, sequences_of
from server.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    UnavailableError,
)
from server.step import Runner
from server.types import (
    AdapterHandle,
    EngineStats,
    Event,
    Failed,
    Finished,
    GenerationRequest,
)

__all__ = ["DEAD", "MAX_FAILED_STEPS", "Engine", "Generation"]

log = logging.getLogger("lorachat.engine")

# A step that fails is the fault of its requests, until it happens this often with no good step between.
MAX_FAILED_STEPS = 3
T = TypeVar("T")
DEAD = "The engine has stopped after a failure and cannot go on."
# No step of a machine that can serve takes so long: whoever waits for it waits for ever.
MAX_STEP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Add:
    generation: Generation
    key: str
    sequences: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class _Cancel:
    key: str


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], object]
    future: Future[Any]


class Engine:
    """Runs steps as long as there is work. submit() and cancel() may be called from any thread.

    max_context: tokens of prompt and answer together. max_waiting: sequences that may wait beside max_running that run.
    max_waiting_tokens: prompt tokens that may wait, not counting a prompt that waits alone; None: as many as the KV
    cache holds.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        max_context: int,
        max_waiting: int,
        max_waiting_tokens: int | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = Scheduler(
            limits, num_blocks=runner.num_blocks, block_size=runner.block_size
        )
        self._max_tokens = min(max_context, runner.num_blocks * runner.block_size)
        self._inbox: deque[_Add | _Cancel | _Call] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._dead: Exception | None = None
        self._step_begun: float | None = None  # while the runner computes
        # Guarded by _wake, as is what they say.
        self._admission = Admission(
            limits.max_running + max_waiting,
            max_waiting_tokens or runner.num_blocks * runner.block_size,
        )
        self._stats = self._scheduler.stats
        self._generations: dict[str, Generation] = {}  # engine thread only
        self._failed_steps = 0  # since the last good one
        self._keys = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """End after the current step. Requests that are not finished get UnavailableError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    @property
    def failure(self) -> Exception | None:
        """Why the engine is dead, or will never come back from a step; None while it is well."""
        begun = self._step_begun
        if self._dead is None and begun is not None:
            seconds = time.monotonic() - begun
            if seconds > MAX_STEP_SECONDS:
                return TimeoutError(f"a step has been running for {seconds:.0f} s")
        return self._dead

    @property
    def stats(self) -> EngineStats:
        """May be read from any thread. Sequences that are accepted and do not run, wait."""
        with self._wake:
            return replace(
                self._stats,
                waiting=self._admission.unfinished - self._stats.running,
                waiting_tokens=self._admission.waiting_tokens,
            )

    def submit(
        self, request: GenerationRequest, adapter: AdapterHandle | None = None
    ) -> Generation:
        """Queue a request; must be called on the event loop that will read its events.

        adapter: what the runner computes with; None: the model has no adapter, or is its own handle. No part of the
        request, which may be kept for longer than the adapter's weights may be.

        Raises InvalidRequestError (ContextLengthError among them), OverloadedError, UnavailableError or
        EngineDeadError, and then nothing was queued.
        """
        self._check_length(request)
        with self._wake:
            # Before the work of making sequences, which a flood must not cost.
            self._check_open(request)
        key = f"{request.id}#{next(self._keys)}"  # callers choose request.id, so it may repeat
        generation = Generation(request, functools.partial(self.cancel, key))
        sequences = sequences_of(request, adapter or request.model.adapter, key)
        with self._wake:
            self._check_open(request)
            self._admission.enter(request.tenant, request.n, len(request.prompt_ids))
            self._inbox.append(_Add(generation, key, sequences))
            self._wake.notify()
        return generation

    def cancel(self, key: str) -> None:
        with self._wake:
            self._inbox.append(_Cancel(key))
            self._wake.notify()

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Run work in the engine's thread, between two steps; the future is done with what comes of it.

        Answers wait while it runs. The future fails with UnavailableError or EngineDeadError when the engine has ended.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._dead is not None or self._stopping:
                future.set_exception(self._ended())
                return future
            self._inbox.append(_Call(work, future))
            self._wake.notify()
        return future

    def _ended(self) -> Exception:
        if self._dead is not None:
            return EngineDeadError(DEAD)
        return UnavailableError("The server is shutting down.")

    def _check_length(self, request: GenerationRequest) -> None:
        prompt, answer = len(request.prompt_ids), request.params.max_tokens
        # A template may render nothing, and without a token there is nothing to go on from.
        if prompt == 0:
            raise InvalidRequestError("The messages come to an empty prompt.", param="messages")
        limit = self._max_tokens
        if prompt + answer > limit:
            raise ContextLengthError(limit, prompt, answer if prompt < limit else None)

    def _check_open(self, request: GenerationRequest) -> None:
        """Needs _wake."""
        if self.failure is not None:
            raise EngineDeadError(DEAD)
        if self._stopping:
            raise UnavailableError(
                "The server is shutting down. Try another, or again in a moment."
            )
        self._admission.check(request.tenant, request.n, len(request.prompt_ids))

    # --- from here on: the engine's thread ---

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # a bug of ours; without this everyone would wait for ever
            log.exception("the engine's thread failed")
            self._die(error)

    def _loop(self) -> None:
        while self._take_inbox():
            self._step()
            if self._dead is not None:
                return
        self._fail_all(UnavailableError("The server is shutting down."))

    def _step(self) -> None:
        """A method of its own so that nothing of a step outlives it: an idle engine keeps no adapter in memory."""
        begun = time.monotonic()
        batch = self._scheduler.next_batch()
        if batch is None:
            return
        num_dequeued = self._account()
        try:
            self._step_begun = time.monotonic()
            self._note_begun()
            results = self._runner.step(batch)
            check_results(batch, results)
        except Exception as error:
            log.exception("a step of %d rows failed", len(batch.rows))
            self._failed_steps += 1
            for key in self._scheduler.requests_in_step():
                self._fail(key, _step_failure(error), keep_tails=False)
            if self._failed_steps >= MAX_FAILED_STEPS:
                self._die(error)
            return
        finally:
            self._step_begun = None
        self._failed_steps = 0
        said = self._scheduler.commit(batch, results)
        seconds = time.monotonic() - begun
        num_ended = sum(isinstance(event, Finished) for _, event in said)
        self._publish(said)
        with self._wake:
            self._admission.observe(num_ended, num_dequeued, seconds)

    def _take_inbox(self) -> bool:
        """Wait for work, take all messages. False when the engine must stop."""
        with self._wake:
            while not (self._inbox or self._scheduler.has_work or self._stopping):
                self._wake.wait()
            messages = list(self._inbox)
            self._inbox.clear()
            # All are known before anything is done: whatever fails from here on, they are told.
            added = [message for message in messages if isinstance(message, _Add)]
            self._generations.update({message.key: message.generation for message in added})
            calls = [message for message in messages if isinstance(message, _Call)]
            if self._stopping:
                for call in calls:
                    _fail_call(call.future, self._ended())
                # The scheduler will not know these.
                for request in (message.generation.request for message in added):
                    self._admission.leave(request.tenant, request.n)
                    self._admission.dequeue(request.tenant, len(request.prompt_ids))
                return False
        for message in messages:
            match message:
                case _Add(sequences=sequences):
                    for sequence in sequences:
                        self._scheduler.add(sequence)
                case _Cancel(key):
                    self._end_request(key)
                case _Call(work, future):
                    self._step_begun = time.monotonic()  # it may hang like a step
                    _call(work, future)
                    self._step_begun = None
        return True

    def _account(self, ended: Iterable[Sequence] = ()) -> int:
        """Make public what the scheduler did: all at once, so that none is ever seen running and ended.

        Returns the number of prompt tokens that ceased to wait.
        """
        dequeued = self._scheduler.take_dequeued()
        with self._wake:
            for sequence in dequeued:
                self._admission.dequeue(sequence.tenant, sequence.queued_tokens)
            for sequence in ended:
                self._admission.leave(sequence.tenant)
            self._stats = self._scheduler.stats
        return sum(sequence.queued_tokens for sequence in dequeued)

    def _publish(self, said: list[tuple[Sequence, Event]]) -> None:
        """Give each generation its events: one call into each event loop for all of a step."""
        outbox: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Event]]] = {}
        finished: list[Sequence] = []
        failed: dict[str, Exception] = {}
        for sequence, event in said:
            if isinstance(event, Failed):
                failed.setdefault(sequence.request_id, event.error)
                continue
            if isinstance(event, Finished):
                finished.append(sequence)
            generation = self._generations[sequence.request_id]
            outbox.setdefault(generation.loop, []).append((generation, event))
        self._account(finished)
        for key in {sequence.request_id for sequence in finished}:
            # Other choices of it may still run, or fail in this very step.
            if key not in failed and not self._scheduler.has_request(key):
                self._generations.pop(key, None)
        for loop, events in outbox.items():
            deliver(loop, events)
        for key, error in failed.items():
            log.error("an answer failed", exc_info=error.__cause__)
            self._fail(key, error)

    def _note_begun(self) -> None:
        """What goes before a request's first step is waiting, and is told apart from computing."""
        now = time.perf_counter()
        for key in self._scheduler.requests_in_step():
            generation = self._generations[key]
            if generation.begun is None:
                generation.begun = now

    def _end_request(self, key: str, *, keep_tails: bool = True) -> Generation | None:
        """Take a request out, wherever it is. None if it had ended already."""
        generation = self._generations.get(key)
        if generation is None:
            return None
        self._account(self._scheduler.remove(key, keep_tails=keep_tails))
        # Last, so that a request is still told of its end if removing it fails.
        del self._generations[key]
        return generation

    def _fail(self, key: str, error: Exception, *, keep_tails: bool = True) -> None:
        generation = self._end_request(key, keep_tails=keep_tails)
        if generation is not None:
            deliver(generation.loop, [(generation, Failed(error))])

    def _fail_all(self, error: Exception) -> None:
        for key in list(self._generations):
            self._fail(key, error)

    def _die(self, cause: Exception) -> None:
        with self._wake:
            self._dead = cause
            for message in self._inbox:
                if isinstance(message, _Add):
                    self._generations[message.key] = message.generation
                elif isinstance(message, _Call):
                    _fail_call(message.future, self._ended())
            self._inbox.clear()
            self._admission.clear()
            self._stats = replace(self._stats, running=0, blocks_used=0)
        log.critical("the engine has stopped: %s", type(cause).__name__)
        for generation in self._generations.values():  # nothing of the model is touched any more
            deliver(generation.loop, [(generation, Failed(EngineDeadError(DEAD)))])
        self._generations.clear()


def _call(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)


def _fail_call(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _step_failure(error: Exception) -> EngineError:
    return EngineError(f"The model failed on this request ({type(error).__name__}).")
