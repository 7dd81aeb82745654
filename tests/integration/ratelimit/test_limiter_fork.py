"""The rate limiter in forked processes: each has its own state, and none uses the locks of its parent."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import asyncio, os, sys, threading, time
    from qamera_async import ConfigurationError, RateLimiter, RetryPolicy
    from qamera_async._ratelimit import Priority, session_limiter

    ACCOUNT = "forked"
    limiter = RateLimiter(2, 60.0)

    async def use(session, number=1):
        slots = [await asyncio.wait_for(session.acquire(Priority.POLL), 5) for _ in range(number)]
        session.reserve_polls(15.0)
        session.poll_delay(3.0, 15.0)
        slots[0].give_back()
        return session.rate_limiter.used

    def in_child(function):
        pid = os.fork()
        if not pid:
            try:
                function()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return "stuck"
"""

UNUSED = """
    session = session_limiter(ACCOUNT, limiter)

    def child():
        assert asyncio.run(use(session)) == 0  # one that was built before the fork
        session.leave()
        other = session_limiter(ACCOUNT, limiter)
        assert asyncio.run(use(other, 2)) == 1
        assert limiter.used == 1

    print(in_child(child), limiter.used)
"""

IN_USE = """
    async def main():
        session = session_limiter(ACCOUNT, limiter)
        slots = [await session.acquire(Priority.POLL) for _ in range(2)]
        slots[0].on_429(1000.0, RetryPolicy(max_delay=1000.0))
        waiting = asyncio.ensure_future(session.acquire(Priority.POLL))
        await asyncio.sleep(0.01)

        def child():
            asyncio.events._set_running_loop(None)
            assert (limiter.used, limiter.waiting, limiter.cooldown) == (0, 0, 0)
            slots[1].on_response()  # of the parent, as a finally clause may call it
            assert limiter.used == 0
            assert asyncio.run(use(session_limiter(ACCOUNT, limiter), 2)) == 1
            session.leave()
            session_limiter("other", RateLimiter(3)).leave()

        print(in_child(child), limiter.used, limiter.waiting)
        waiting.cancel()

    asyncio.run(main())
"""

OTHER_NUMBERS = """
    session = session_limiter(ACCOUNT, limiter)

    def child():  # each worker takes its share
        assert asyncio.run(use(session_limiter(ACCOUNT, RateLimiter(1, 60.0)))) == 0
        try:
            session_limiter(ACCOUNT, limiter)
        except ConfigurationError:
            return
        os._exit(2)

    print(in_child(child), limiter.used)
"""

LOCKED = """
    holding, release = threading.Event(), threading.Event()

    def clock():
        if threading.current_thread().name == "holder":
            holding.set()
            release.wait(60)
        return time.monotonic()

    session = session_limiter(ACCOUNT, limiter, clock)
    slot = asyncio.run(session.acquire(Priority.POLL))
    session.leave()
    # Building a session looks for unused limiters: under the lock of the registry and of each limiter.
    holder = threading.Thread(target=session_limiter, args=("another", None), name="holder")
    holder.start()
    holding.wait(60)

    def child():
        slot.on_response()  # as a finally clause of the parent's coroutine may call it
        session.leave()
        assert (limiter.used, limiter.waiting) == (0, 0)
        assert asyncio.run(use(session_limiter(ACCOUNT, limiter), 2)) == 1

    result = in_child(child)
    release.set()
    holder.join()
    print(result, limiter.used)
"""


@pytest.mark.case(97)
@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="this system can't fork")
@pytest.mark.parametrize(
    ("program", "expected"),
    [(UNUSED, "0 0"), (IN_USE, "0 2 1"), (OTHER_NUMBERS, "0 0"), (LOCKED, "0 1")],
    ids=["unused", "in-use", "other-numbers", "locked"],
)
def test_forked_process_has_its_own_state(program, expected):
    """The child can use the rate limiter, and the state of the parent does not change."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(program)
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (run.stdout.strip(), run.returncode) == (expected, 0), run.stderr
