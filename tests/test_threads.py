"""Results come in order; few calls wait, and none is begun that nobody will take."""

import threading
import time

import pytest

from jaxseg import threads
from jaxseg.threads import Call, in_threads

THREADS = 3


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: THREADS)


def test_results_come_in_the_order_of_the_calls():
    first_may_end = threading.Event()

    def first():
        assert first_may_end.wait(10)
        return "first"

    def second():
        first_may_end.set()
        return "second"

    assert list(in_threads([Call(first), Call(second)])) == ["first", "second"]


@pytest.mark.parametrize(
    ("cores", "room", "most"), [(3, 1 << 30, 4), (3, 25, 2), (3, 5, 1), (64, 1 << 30, 17)]
)
def test_few_calls_wait_and_hold_little(monkeypatch, cores, room, most):
    monkeypatch.setattr(threads, "cores", lambda: cores)
    lock = threading.Lock()
    held, seen = 0, []

    def work():
        nonlocal held
        with lock:
            held += 1
            seen.append(held)
        time.sleep(0.002)
        return 1

    for value in in_threads((Call(work, 10) for _ in range(100)), room=room):
        with lock:
            held -= value
    assert len(seen) == 100 and max(seen) <= most
    assert min(most, 2) <= max(seen), "they work beside each other where they may"


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
