"""Signals ask, and the loop decides when."""

import os
import signal
import threading

from clipfast.train.checkpoints.signals import StopSignal


def test_the_first_signal_to_stop_is_a_request_and_the_second_is_as_usual():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with StopSignal() as stop:
            assert stop.requested == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.requested, got) == (signal.SIGTERM, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_request_to_save_is_read_once_and_does_not_stop():
    with StopSignal() as stop:
        assert not stop.save_requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [stop.save_requested, stop.save_requested, stop.requested] == [True, False, 0]


def test_after_the_run_signals_do_what_they_did():
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in watched]
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in watched] == before


def test_a_run_in_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def run():
        with StopSignal():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]
