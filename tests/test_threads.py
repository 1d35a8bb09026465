"""Results come in order; few calls wait, and none is begun that nobody will take."""

import os
import threading

import pytest

from jaxseg.threads import Call, in_threads

THREADS = os.cpu_count() or 1


def test_results_come_in_the_order_of_the_calls():
    first_may_end = threading.Event()

    def first():
        assert first_may_end.wait(10)
        return "first"

    def second():
        first_may_end.set()
        return "second"

    calls = [first, second] if THREADS > 1 else [second, first]
    assert list(in_threads(map(Call, calls))) == [call.__name__ for call in calls]


@pytest.mark.parametrize(("room", "most"), [(1 << 30, 100), (25, 3), (5, 2)])
def test_few_calls_wait_and_hold_little(room, most):
    made = taken = 0
    ahead = []

    def calls():
        nonlocal made
        for i in range(100):
            made += 1
            ahead.append(made - taken)
            yield Call(lambda i=i: i, 10)

    for value in in_threads(calls(), room=room):
        assert value == taken
        taken += 1
    assert taken == 100 and max(ahead) == min(most, THREADS + 1)


def test_a_failure_comes_where_its_result_would_and_the_rest_is_left_out():
    began = []

    def work(i):
        began.append(i)
        if i == 3:
            raise OSError("no more")
        return i

    results = in_threads(Call(lambda i=i: work(i)) for i in range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no more"):
        next(results)
    assert len(began) <= 5 + THREADS


def test_a_generator_that_is_closed_waits_for_what_has_begun_alone():
    began, ended = [], []

    def work(i):
        began.append(i)
        ended.append(i)

    results = in_threads(Call(lambda i=i: work(i)) for i in range(1000))
    next(results)
    results.close()
    assert sorted(began) == sorted(ended) and len(began) <= 2 + THREADS
