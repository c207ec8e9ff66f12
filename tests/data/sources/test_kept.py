"""What is kept is opened once, few at a time, and closed when nobody has it any more."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipfast.data.sources.kept import Kept
from clipfast.data.sources.samples import UnusableError


class Thing:
    """Counts those that are open."""

    def __init__(self, number, opened):
        self.number, self._opened = number, opened
        opened.append(number)

    def __del__(self):
        self._opened.remove(self.number)


def test_the_things_used_last_are_kept():
    opened, made = [], []

    def make(number):
        made.append(number)
        return Thing(number, opened)

    kept = Kept(make, most=2)
    for number in (1, 2, 1, 3, 1, 2):
        assert kept.get(number).number == number
        assert len(opened) <= 2
    assert made == [1, 2, 3, 2]


def test_a_thing_in_use_lives_on():
    opened = []
    kept = Kept(lambda number: Thing(number, opened), most=1)
    first = kept.get(1)
    kept.get(2)
    kept.get(3)
    assert opened == [1, 3]
    del first
    assert opened == [3]


def test_threads_that_want_the_same_thing_open_it_once():
    made, together = [], threading.Barrier(4)

    def make(number):
        made.append(number)
        time.sleep(0.05)
        return number

    kept = Kept(make, most=4)

    def get(number):
        together.wait()
        return kept.get(number)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(get, [7] * 4)) == [7] * 4
    assert made == [7]


def test_a_thing_that_takes_long_keeps_nobody_from_another():
    slow = threading.Event()

    def make(number):
        if number == 1:
            assert slow.wait(10)
        return number

    kept = Kept(make, most=4)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(kept.get, 1)
        assert kept.get(2) == 2
        assert not waiting.done()
        slow.set()
        assert waiting.result() == 1


def test_what_was_unusable_is_not_tried_again_at_once():
    tried = []

    def make(number):
        tried.append(number)
        raise UnusableError("the disk is off")

    kept = Kept(make, most=2)
    for _ in range(3):
        with pytest.raises(UnusableError, match="the disk is off"):
            kept.get(1)
    assert tried == [1]


def test_what_was_unusable_is_tried_again_after_the_pause():
    answers = iter([UnusableError("the disk is off"), "content"])

    def make(number):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    kept = Kept(make, most=2, pause=0.0)
    with pytest.raises(UnusableError):
        kept.get(1)
    assert kept.get(1) == "content"


def test_what_is_given_up_is_closed_and_not_given_out():
    opened = []
    kept = Kept(lambda number: Thing(number, opened), most=2)
    kept.get(1)
    kept.fail(1, "cut short")
    assert opened == []
    with pytest.raises(UnusableError, match="cut short"):
        kept.get(1)
