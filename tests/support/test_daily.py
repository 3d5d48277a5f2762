"""Every slow test is run by CI on some day."""

from datetime import date, timedelta

import pytest

from tests.support.daily import order_of_day

DAY = date(2026, 11, 27)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7, 24, 30, 31])
def test_every_file_is_the_first_one_within_as_many_days_as_there_are_files(count: int) -> None:
    files = [f"tests/test_{number}.py" for number in range(count)]
    orders = [order_of_day(files, DAY + timedelta(days)) for days in range(count)]
    assert all(sorted(order) == sorted(files) for order in orders)
    assert {order[0] for order in orders} == set(files)


def test_four_days_reach_every_file_where_a_third_fits_into_a_day() -> None:
    files = [f"tests/test_{number}.py" for number in range(30)]
    orders = [order_of_day(files, DAY + timedelta(days)) for days in range(4)]
    assert {file for order in orders for file in order[:10]} == set(files)


def test_a_slice_starts_no_test_after_its_time(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from tests.support.daily import DailySlice\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(DailySlice(minutes=0.5 / 60))\n"
    )
    pytester.makepyfile(
        "import time\n"
        "def test_first(): time.sleep(0.6)\n"
        "def test_second(): raise AssertionError('it must not run')\n"
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["1 slow tests are left to other days"])
