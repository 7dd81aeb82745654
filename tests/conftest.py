"""Shared fixtures: fast settings, sessions, TLS contexts; and a plugin that runs fault cases by number."""

import asyncio
import importlib.util
import ssl
from pathlib import Path

import pytest
import trustme
from cases import CASES

from qamera_async import PollPolicy, QameraSession, RetryPolicy, Timeouts
from qamera_async.sandbox import Sandbox

OFTEN = PollPolicy(interval=0.02, stale_after=0.1, max_interval=0.1)
IMPATIENT = Timeouts(connect=1.0, request=1.0, job=5.0, reconcile=0.3, close=1.0)
AT_ONCE = RetryPolicy(attempts=3, base=0.001, max_delay=0.01)

FAST, SLOW = "not slow", "slow"
"""The two tiers, as arguments of ``-m``; pyproject.toml makes the fast one the default."""

FUZZING = Path(__file__).with_name("fuzz")


LOOP_FACTORIES = {"asyncio": asyncio.new_event_loop}
if importlib.util.find_spec("uvloop") is not None:
    import uvloop

    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(config, item):
    """Run the async tests marked every_loop once on each event loop, and all others on asyncio."""
    if item.get_closest_marker("every_loop"):
        return LOOP_FACTORIES
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def quick():
    """Return settings that make a session poll, time out and retry within milliseconds."""
    return {"polling": OFTEN, "timeouts": IMPATIENT, "retry": AT_ONCE}


@pytest.fixture
def path(tmp_path):
    """Return the path of a new ledger."""
    return tmp_path / "jobs.db"


@pytest.fixture
def session(sandbox, quick, path):
    """Return a function that makes a session with a ledger; each call is another run of a program."""
    return lambda **options: sandbox.session(**quick | {"ledger": path} | options)


@pytest.fixture
async def on_the_sandbox(monkeypatch, quick, tmp_path):
    """Yield a sandbox that `QameraSession()` without arguments uses, and let it poll often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(QameraSession.__init__.__kwdefaults__, "polling", quick["polling"])
    async with Sandbox(job_seconds=0.05) as sandbox:
        monkeypatch.setenv("QAMERA_BASE_URL", sandbox.url)
        monkeypatch.setenv("QAMERA_API_KEY", sandbox.api_key)
        yield sandbox


@pytest.fixture(scope="module")
def contexts():
    """Return TLS contexts of a server with a certificate for 127.0.0.1 and of a client that trusts it."""
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting


@pytest.fixture
async def no_lost_exceptions():
    """Fail a test if an exception reaches only the exception handler of the event loop."""
    lost = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    yield
    await asyncio.sleep(0)
    assert lost == []


def pytest_addoption(parser):
    """Add the option --case, which runs the tests of one fault case."""
    parser.addoption("--case", type=int, choices=CASES, metavar="NUMBER", help="run the tests of a case only")


def numbers(item):
    """Return the numbers of the fault cases that a test covers."""
    return {number for mark in item.iter_markers("case") for number in mark.args}


def pytest_configure(config):
    """Record the cases whose tests run in this process and in other workers."""
    if config.getoption("--case") is not None and config.option.markexpr == FAST:
        config.option.markexpr = ""  # a case may have slow tests only
    config.pluginmanager.register(Run(config), "run-cases")


def is_slow(item):
    """Return whether a test is slow by its folder or a parameter: fuzzing, or a test that uses PostgreSQL."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return FUZZING in item.path.parents or any(
        isinstance(value, str) and value == "postgres" for value in parameters
    )


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(config, items):
    """Mark slow tests, and deselect the tests of other cases if --case is given."""
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
        item.user_properties += [("case", number) for number in sorted(numbers(item))]
    wanted = config.getoption("--case")
    if wanted is not None:
        left = [item for item in items if wanted not in numbers(item)]
        items[:] = [item for item in items if wanted in numbers(item)]
        config.hook.pytest_deselected(items=left)


UNTESTED = 10
"""The exit code of a run of a whole tier that skipped a case, or if a case has no test in either tier."""


class Run:
    """The cases of which a test has passed or failed, and was not skipped."""

    def __init__(self, config):
        self.config = config
        self.cases = set()
        self.selected = set()
        self.deselected = set()

    def pytest_collection_finish(self, session):
        """Record the cases whose tests are in this tier."""
        self.selected |= {number for item in session.items for number in numbers(item)}

    def pytest_deselected(self, items):
        """Record the cases whose tests are in the other tier."""
        self.deselected |= {number for item in items for number in numbers(item)}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Merge the records of a pytest-xdist worker, which collects the tests instead of this process."""
        output = getattr(node, "workeroutput", {})
        self.selected |= {*output.get("selected_cases", ())}
        self.deselected |= {*output.get("deselected_cases", ())}

    def pytest_runtest_logreport(self, report):
        """Record the cases of a report; the main process gets the reports of all workers."""
        if report.failed or (report.when == "call" and report.passed):
            self.cases |= {value for name, value in report.user_properties if name == "case"}

    def pytest_sessionfinish(self, session, exitstatus):
        """Print the cases that a run of a whole tier did not test, and fail the run."""
        if hasattr(self.config, "workerinput"):
            self.config.workeroutput["selected_cases"] = sorted(self.selected)
            self.config.workeroutput["deselected_cases"] = sorted(self.deselected)
            return
        option = self.config.option
        selected = option.keyword or option.collectonly or getattr(option, "lf", False)
        whole = self.config.args_source is pytest.Config.ArgsSource.TESTPATHS and not (
            selected or option.markexpr not in {FAST, SLOW, ""} or self.config.getoption("--case")
        )
        of_the_other_tier = self.deselected - self.selected
        missing = {*CASES} - self.cases - of_the_other_tier
        if whole and missing and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            self.config.get_terminal_writer().line(f"\nCases without a test that was run: {sorted(missing)}")
            session.exitstatus = UNTESTED
