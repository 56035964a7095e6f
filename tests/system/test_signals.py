"""Who saves is asked; who has nothing to save is interrupted; what was ignored stays ignored."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from limbeck.system.signals import interruptible, stop_on_signals, stop_requests

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def heard():
    """Whoever runs the tests may ignore some (`nohup`)."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_the_second_would_end(number):
    with stop_requests() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked() and all(signal.getsignal(each) is signal.SIG_DFL for each in NUMBERS)
    assert all(signal.getsignal(each) is signal.default_int_handler for each in NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_work_without_anything_to_save_is_interrupted(number):
    with stop_requests() as asked, pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert asked()


def test_work_that_saves_is_asked_also_within_such_that_does_not():
    with stop_requests() as asked, interruptible(), interruptible(False):
        signal.raise_signal(signal.SIGTERM)
        assert asked()


@pytest.mark.parametrize("number", NUMBERS)
def test_what_was_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with stop_requests() as asked, interruptible():
        signal.raise_signal(number)
        assert not asked()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with stop_requests() as asked, interruptible():
            seen.append((asked(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.default_int_handler)]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_event_loop_is_asked(number):
    async def work() -> bool:
        asked = asyncio.Event()
        stop_on_signals(asked)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(asked.wait(), 10)
        return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert asyncio.run(work())


def test_a_second_signal_ends_the_process():
    code = (
        "import os, signal\nfrom limbeck.system.signals import stop_requests\n"
        "with stop_requests() as asked:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(asked(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", -signal.SIGHUP)
