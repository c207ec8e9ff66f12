"""The crew: results in order, and no thread that works on after another has failed."""

import threading
import time

import pytest

from clipfast.shard_tools.crew import Crew


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    def work(item):
        time.sleep(0.01 * (item % 3))
        return item * item

    with Crew("squaring", 20, 4) as crew:
        assert list(crew.in_order(work, range(20))) == [(i, i * i) for i in range(20)]


def test_an_endless_list_is_worked_on_a_few_items_ahead_only():
    begun = []

    def numbers():
        while True:
            begun.append(len(begun))
            yield begun[-1]

    with Crew("counting", 0, 2) as crew:
        results = crew.in_order(lambda item: item, numbers())
        assert [next(results)[0] for _ in range(10)] == list(range(10))
    assert len(begun) < 20


def test_the_failure_of_one_ends_all_and_is_raised():
    stopped = threading.Event()

    def work(item):
        if item == 0:
            raise OSError("disk full")
        try:
            while True:
                crew.advance(1)
                time.sleep(0.001)
        finally:
            stopped.set()

    with pytest.raises(OSError, match="disk full"), Crew("failing", 9, 2) as crew:
        list(crew.in_order(work, range(9)))
    assert stopped.is_set()
