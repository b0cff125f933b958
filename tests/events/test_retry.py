"""When the next attempt may start: given a policy and an error, then this delay, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eventq.events.retry import DELAY_MAX_S, RetryPolicy, retry_delay_s, retry_in_s

POLICIES = st.builds(
    RetryPolicy,
    initial_s=st.floats(0, 86_400),
    factor=st.floats(1, 100),
    max_s=st.floats(0, DELAY_MAX_S),
    jitter=st.floats(0, 1),
)
RANDOM = st.floats(0, 1, exclude_max=True)
ODD = ("OddError", "shop.OddError", "ValueError", "builtins.ValueError", "Exception", "builtins.Exception")


@given(policy=POLICIES, failures=st.integers(1, 1000), random=RANDOM)
def test_a_delay_is_never_negative_nor_above_the_most(policy: RetryPolicy, failures: int, random: float) -> None:
    assert 0 <= retry_delay_s(policy, failures, random) <= policy.max_s


@given(policy=POLICIES, failures=st.integers(1, 1000))
def test_without_chance_delays_only_grow(policy: RetryPolicy, failures: int) -> None:
    assert retry_delay_s(policy, failures, 0) <= retry_delay_s(policy, failures + 1, 0)


@given(policy=POLICIES, failures=st.integers(1, 100), random=RANDOM)
def test_an_error_that_nobody_names_is_retried_by_the_delays(policy: RetryPolicy, failures: int, random: float) -> None:
    assert retry_in_s(policy, failures, random, errors=ODD) == retry_delay_s(policy, failures, random)


@pytest.mark.parametrize("name", ODD)
def test_an_error_is_known_by_any_name_of_any_class_above_it(name: str) -> None:
    assert retry_in_s(RetryPolicy(never=(name,)), 1, 0, errors=ODD) is None
    assert retry_in_s(RetryPolicy(only=(name,)), 1, 0, errors=ODD) == 1
    assert retry_in_s(RetryPolicy(after_s={name: 7}), 1, 0, errors=ODD) == 7


def test_never_comes_before_all_then_only_then_what_the_error_asks_for_then_its_own_delay() -> None:
    policy = RetryPolicy(never=("A",), only=("A", "B", "C"), after_s={"B": 5, "C": 6})
    assert retry_in_s(policy, 1, 0, errors=("A",), asked_s=1) is None
    assert retry_in_s(policy, 1, 0, errors=("D",), asked_s=1) is None
    assert retry_in_s(policy, 1, 0, errors=("B",), asked_s=2) == 2
    assert retry_in_s(policy, 1, 0, errors=("B",)) == 5
    assert retry_in_s(policy, 1, 0, errors=("C", "B")) == 6, "the nearest class counts"


def test_nobody_waits_longer_than_the_limit() -> None:
    assert retry_in_s(RetryPolicy(), 1, 0, asked_s=1e9) == DELAY_MAX_S


@pytest.mark.parametrize(
    "wrong",
    [
        {"never": [""]},
        {"only": ["x" * 201]},
        {"after_s": {"A": -1}},
        {"after_s": {"A": 1e9}},
        {"never": ["A"] * 51},
        {"factor": "2"},
        {"jitter": True},
        {"after_s": {"A": "1"}},
    ],
    ids=str,
)
def test_what_no_policy_can_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(wrong)


def test_a_policy_in_json_is_read_with_whole_numbers_and_arrays() -> None:
    policy = RetryPolicy.model_validate({"initial_s": 2, "factor": 3, "never": ["A"], "after_s": {"B": 4}})
    assert policy == RetryPolicy(initial_s=2.0, factor=3.0, never=("A",), after_s={"B": 4.0})
    assert RetryPolicy.model_validate_json(policy.model_dump_json()) == policy
    assert RetryPolicy.model_validate(policy.model_dump(mode="json")) == policy
