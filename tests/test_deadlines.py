"""The deadlines of those who wait: each at its time, however many there are and whoever leaves before."""

import asyncio
import contextvars
import gc
import threading
import weakref

import pytest

from qamera_async._jobs.deadlines import Deadlines, TimeIsUp


class Loop(asyncio.SelectorEventLoop):
    """A loop in which time passes when the test says so."""

    now = 1000.0

    def time(self):
        return self.now


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


def run(loop, promise):
    loop.run_until_complete(asyncio.wait_for(promise, None))


async def at(moment):
    """Let the time be ``moment`` seconds from the start, and what is due then happen."""
    loop = asyncio.get_running_loop()
    loop.now = 1000.0 + moment
    for _ in range(3):
        await asyncio.sleep(0)


def waiters(number):
    return [asyncio.get_running_loop().create_future() for _ in range(number)]


def over(futures):
    return [future.done() and isinstance(future.exception(), TimeIsUp) for future in futures]


def test_each_rings_at_its_time(loop):
    """Whatever the timeouts, and in whatever order they came."""

    async def promise():
        deadlines, futures = Deadlines(), waiters(4)
        deadlines.add(futures[0], 10.0)
        deadlines.add(futures[1], 5.0)
        await at(3.0)
        deadlines.add(futures[2], 10.0)
        deadlines.add(futures[3], 1)

        seen = []
        for moment in (3.9, 4.0, 4.9, 5.0, 9.9, 10.0, 12.9, 13.0):
            await at(moment)
            seen.append(over(futures))
        assert seen == [
            [False, False, False, False],
            [False, False, False, True],
            [False, False, False, True],
            [False, True, False, True],
            [False, True, False, True],
            [True, True, False, True],
            [True, True, False, True],
            [True, True, True, True],
        ]

    run(loop, promise())


def test_who_leaves_takes_nobody_elses_deadline_along(loop):
    """The first of many leaves, before and after others came; those ring at their time."""

    async def promise():
        deadlines, futures = Deadlines(), waiters(3)
        deadlines.add(futures[0], 5.0)
        await at(1.0)
        deadlines.add(futures[1], 5.0)
        deadlines.discard(futures[0], 5.0)
        await at(5.0)
        deadlines.add(futures[2], 5.0)

        assert over(futures) == [False, False, False]
        await at(6.0)
        assert over(futures) == [False, True, False]
        await at(10.0)
        assert over(futures) == [False, True, True]

    run(loop, promise())


def test_what_is_done_is_left_alone(loop):
    """A result stays one, and so does a cancellation."""

    async def promise():
        deadlines, futures = Deadlines(), waiters(2)
        for future in futures:
            deadlines.add(future, 1.0)
        futures[0].set_result(None)
        futures[1].cancel()
        await at(2.0)

        assert futures[0].result() is None
        assert futures[1].cancelled()

    run(loop, promise())


def test_nothing_is_kept_of_who_has_left(loop):
    """Neither an entry nor a timer; to leave twice, or without having come, is no mistake."""

    async def promise():
        deadlines, futures = Deadlines(), waiters(100)
        for future in futures:
            deadlines.add(future, 60.0)
        for future in [*futures, futures[0]]:
            deadlines.discard(future, 60.0)
        timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]

        assert (deadlines._queues, deadlines._timers, timers) == ({}, {}, [])

    run(loop, promise())


def test_many_that_are_due_together_ring_together(loop):
    """Ten thousand in one turn, and in the order in which they came."""

    async def promise():
        deadlines, futures, rung = Deadlines(), waiters(10_000), []
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: rung.append(number))
            deadlines.add(future, 1.0)
        await at(1.0)

        assert all(over(futures))
        assert rung == [*range(10_000)]

    run(loop, promise())


def test_a_timer_that_comes_early_is_in_time(loop):
    """A loop rings up to its clock's resolution too soon, and must not be asked for more until then."""

    async def promise():
        asyncio.get_running_loop()._clock_resolution = 0.5
        deadlines, futures = Deadlines(), waiters(1)
        deadlines.add(futures[0], 5.0)
        await at(4.4)
        assert over(futures) == [False]
        await at(4.6)
        assert over(futures) == [True]

    run(loop, promise())


def test_loops_in_several_threads_ring_at_the_same_time():
    """Nobody is left waiting, however often the timers of two loops meet."""
    left = []

    async def many():
        deadlines, futures = Deadlines(), waiters(3_000)
        for number, future in enumerate(futures):
            deadlines.add(future, 0.001 * (1 + number % 100))
        await asyncio.wait(futures, timeout=10)
        left.append(over(futures).count(False))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert left == [0, 0, 0, 0]


def test_a_timer_keeps_nothing_of_its_caller(loop):
    """What the first of a queue had in its context is not kept alive by the timer of all."""

    async def promise():
        class Kept:
            pass

        variable, kept = contextvars.ContextVar("variable"), Kept()
        seen = weakref.ref(kept)
        deadlines, futures = Deadlines(), waiters(1)

        def add(value):
            variable.set(value)
            deadlines.add(futures[0], 60.0)

        contextvars.copy_context().run(add, kept)
        del kept
        gc.collect()

        assert seen() is None
        deadlines.discard(futures[0], 60.0)

    run(loop, promise())
