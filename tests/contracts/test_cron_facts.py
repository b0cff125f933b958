"""Facts about cronsim that schedules are built on, each tried: above all what it does on days on which a clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import given
from hypothesis import strategies as st

BERLIN = ZoneInfo("Europe/Berlin")


def times(expression: str, start: datetime, count: int) -> list[str]:
    return [f"{time.astimezone(UTC):%m-%d %H:%M}" for time in islice(CronSim(expression, start), count)]


def test_a_time_that_a_clock_skips_runs_right_after_the_gap() -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert times("30 2 * * *", start, 2) == ["03-29 01:00", "03-30 00:30"]  # 02:30 would be: 01:30 UTC before, 00:30 after


def test_a_time_that_a_clock_shows_twice_runs_the_first_time() -> None:
    start = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    assert times("30 2 * * *", start, 2) == ["10-25 00:30", "10-26 01:30"]


def test_two_times_in_one_gap_are_one_moment() -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert times("0,30 2 * * *", start, 2) == ["03-29 01:00", "03-30 00:00"]


def test_a_star_follows_the_time_that_passes() -> None:
    spring = datetime(2026, 3, 29, 1, 15, tzinfo=BERLIN)
    assert times("*/30 * * * *", spring, 3) == ["03-29 00:30", "03-29 01:00", "03-29 01:30"]
    autumn = datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN)
    assert times("*/30 * * * *", autumn, 4) == ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]


def test_a_search_from_the_second_pass_of_an_hour_finds_the_first_pass_that_is_over() -> None:
    """So whoever asks for times after a moment must leave out what lies before it."""
    second_pass = datetime(2026, 10, 25, 2, 5, tzinfo=BERLIN, fold=1)
    found = next(CronSim("15 2 * * *", second_pass))
    assert found.astimezone(UTC) < second_pass.astimezone(UTC)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 31 2,4,6 *", "Bad day-of-month"),
        ("60 * * * *", "Bad minute"),
        ("* 24 * * *", "Bad hour"),
        ("* * * 13 *", "Bad month"),
        ("* * * * 8", "Bad day-of-week"),
        ("*/0 * * * *", "Bad minute"),
        ("5-1 * * * *", "Bad minute"),
        ("* * * *", "Wrong number of fields"),
    ],
)
def test_what_can_never_be_is_refused_in_words(expression: str, problem: str) -> None:
    with pytest.raises(CronSimError, match=problem):
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))


def test_day_of_month_and_day_of_week_are_either_or_unless_one_starts_with_a_star() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday
    assert times("0 0 13 * FRI", start, 3) == ["01-02 00:00", "01-09 00:00", "01-13 00:00"]
    assert times("0 0 */13 * FRI", start, 2) == ["02-27 00:00", "03-27 00:00"]


def test_it_explains_itself() -> None:
    assert CronSim("30 2 * * MON-FRI", datetime(2026, 1, 1)).explain() == "At 02:30 on Monday through Friday"


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0,30 2,3 * * *", "15 */2 * * 1-5", "0 0 L * *"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
)
def test_times_never_go_back_by_more_than_the_hour_that_is_shown_twice(expression: str, start: datetime) -> None:
    found = list(islice(CronSim(expression, start.replace(tzinfo=UTC).astimezone(BERLIN)), 20))
    moments = [start.replace(tzinfo=UTC, microsecond=0), *(time.astimezone(UTC) for time in found)]
    assert all(after >= before for before, after in pairwise(moments[1:]))
    assert moments[1] >= moments[0] - timedelta(hours=1)
