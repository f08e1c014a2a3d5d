"""The simulation: nothing is lost, it is the textbook's queue in a limit, and policies differ where they must."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.simulation.__main__ import hardware
from benchmarks.simulation.fit import log_normal
from benchmarks.simulation.replica import Hardware
from benchmarks.simulation.routing import PLACES, ROUTERS
from benchmarks.simulation.run import Outcome, router_chance, simulate
from benchmarks.simulation.traffic import SCENARIOS, Conversation, Scenario, Turn, conversations
from server.engine.scheduler import Limits
from server.sizing.step_time import StepWork, step_seconds

SMALL = hardware("smollm2-135m", 25, 27, 270)
CHAT = Scenario("chat", 1, 200, 4.0, think_seconds=5)
TENANTS = Scenario("tenants", 40, 1500, 1.5, think_seconds=5)


def play(
    scenario: Scenario, policy: str, *, replicas: int = 4, requests: int = 100, machine: Hardware = SMALL,
    seed: int = 3, arrivals: str = "poisson",
) -> tuple[list[Conversation], Outcome]:  # fmt: skip
    talks = conversations(
        scenario, requests=requests, per_second=0.1 * replicas, arrivals=arrivals, seed=seed
    )
    return talks, simulate(machine, ROUTERS[policy](router_chance(seed)), talks, replicas)


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
@pytest.mark.parametrize("policy", ROUTERS)
def test_every_request_finishes_once_with_all_its_tokens(policy, arrivals):
    talks, outcome = play(CHAT, policy, arrivals=arrivals)
    asked = {(talk.number, turn) for talk in talks for turn in range(len(talk.turns))}
    assert outcome.finished == dict.fromkeys(asked, 1)
    assert outcome.requests == len(asked)
    assert outcome.generated == sum(t.answer_tokens for talk in talks for t in talk.turns)


def test_nothing_is_lost_where_memory_is_so_short_that_answers_lose_their_place():
    cramped = replace(SMALL, num_blocks=40)
    talks = [
        Conversation(n, 0.0, (), (Turn(tuple(range(1000 * n, 1000 * n + 300)), 300, 0.0),))
        for n in range(12)
    ]
    outcome = simulate(cramped, ROUTERS["round-robin"](router_chance(0)), talks, 2)
    assert outcome.preemptions > 0
    assert outcome.finished == {(n, 0): 1 for n in range(12)}
    assert outcome.generated == 12 * 300


def test_the_same_seed_gives_the_same_run_and_another_another():
    one, same, other = (play(CHAT, "prefix", seed=seed)[1] for seed in (3, 3, 4))
    assert one == same
    assert one.first_tokens != other.first_tokens


def test_one_replica_with_fixed_service_is_an_m_d_1_queue():
    """Mean wait ρD / (2 (1 - ρ)): Pollaczek and Khinchine for service that always takes D.

    One at a time, one step each: a prompt of 200 tokens, then one token.
    """
    lone = replace(SMALL, limits=Limits(1, 256, 256, 0))
    service = step_seconds(lone.model, lone.machine, StepWork(1, 199, 200, 200 * 100))
    load, count = 0.6, 20_000
    chance, now, talks = random.Random(5), 0.0, []
    for number in range(count):
        now += chance.expovariate(load / service)
        talks.append(
            Conversation(
                number, now, (), (Turn(tuple(range(200 * number, 200 * number + 200)), 1, 0.0),)
            )
        )
    outcome = simulate(lone, ROUTERS["round-robin"](router_chance(0)), talks, 1)
    mean = sum(outcome.first_tokens) / count
    assert min(outcome.first_tokens) == pytest.approx(service, rel=1e-6)
    assert mean - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)
    assert outcome.busy_share == pytest.approx(load, rel=0.03)


def test_rates_are_of_the_time_in_which_conversations_begin():
    """Half a load is served at the rate that comes, however long the last conversation lasts."""
    single = Scenario("single", 0, 0, 1.0)
    talks, outcome = play(single, "two-choices", requests=2000)
    assert outcome.window == talks[-1].begins
    assert outcome.requests_per_second == pytest.approx(0.4, rel=0.06)
    tokens = sum(turn.answer_tokens for talk in talks for turn in talk.turns)
    assert outcome.tokens_per_second == pytest.approx(tokens / outcome.window, rel=0.02)
    assert 0 < outcome.busy_share < 1


def test_a_hash_keeps_a_conversation_and_goes_on_where_its_replica_is_full():
    router = ROUTERS["hash"](router_chance(1))
    empty = [0] * 8
    homes = [router.choose(n, (), empty) for n in range(400)]
    assert homes == [router.choose(n, (), empty) for n in range(400)]
    # Of 400 on 8, each has about 50: a ring of 100 points a replica is uneven by a tenth or two.
    assert all(25 <= homes.count(replica) <= 80 for replica in range(8))
    full = [PLACES if replica == homes[0] else 0 for replica in range(8)]
    assert router.choose(0, (), full) != homes[0]
    others = [n for n in range(400) if homes[n] != homes[0]]
    assert all(router.choose(n, (), full) == homes[n] for n in others)
    assert router.choose(0, (), [PLACES] * 8) == homes[0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hashing_the_system_prompt_finds_more_than_hashing_the_conversation(seed):
    """Where many share one each: as with `prompt_cache_key` under Ray."""
    by_prompt = play(TENANTS, "hash-prompt", seed=seed, requests=200)[1]
    by_session = play(TENANTS, "hash", seed=seed, requests=200)[1]
    assert by_prompt.hit_share > by_session.hit_share


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_affinity_finds_more_of_a_conversation_than_any_blind_policy(seed):
    kept = play(CHAT, "affinity", seed=seed)[1]
    for policy in ("round-robin", "random", "two-choices"):
        blind = play(CHAT, policy, seed=seed)[1]
        assert kept.hit_share > blind.hit_share
        assert kept.busy_seconds < blind.busy_seconds


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prefix_routing_beats_affinity_where_conversations_share_long_prompts(seed):
    by_prefix = play(TENANTS, "prefix", seed=seed, requests=200)[1]
    kept = play(TENANTS, "affinity", seed=seed, requests=200)[1]
    assert by_prefix.hit_share > kept.hit_share


def test_where_nothing_is_shared_prefix_routing_is_two_choices():
    single = Scenario("single", 0, 0, 1.0)
    assert play(single, "prefix")[1] == play(single, "two-choices")[1]
    assert play(single, "prefix")[1].hit_share == 0


def test_all_policies_are_asked_the_same_at_the_same_moments():
    scenario = SCENARIOS["chat"]
    first, second = (
        conversations(scenario, requests=50, per_second=1, arrivals="bursty", seed=9) for _ in "ab"
    )
    assert first == second


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
def test_conversations_begin_at_the_rate_that_was_asked_for(arrivals):
    single = Scenario("single", 0, 0, 1.0)
    talks = conversations(single, requests=20_000, per_second=2.0, arrivals=arrivals, seed=1)
    assert len(talks) / talks[-1].begins == pytest.approx(2.0, rel=0.06)


def test_bursts_make_people_wait():
    single = Scenario("single", 0, 0, 1.0)
    means = []
    for arrivals in ("poisson", "bursty"):
        talks = conversations(single, requests=600, per_second=0.5, arrivals=arrivals, seed=1)
        outcome = simulate(SMALL, ROUTERS["round-robin"](router_chance(0)), talks, 1)
        means.append(sum(outcome.first_tokens) / outcome.requests)
    assert means[1] > 1.5 * means[0]


def test_a_fit_gives_back_what_the_lengths_were_drawn_from():
    chance = random.Random(1)
    found = log_normal(round(chance.lognormvariate(5, 0.8)) for _ in range(20_000))
    assert found["mu"] == pytest.approx(5, abs=0.03)
    assert found["sigma"] == pytest.approx(0.8, abs=0.03)
