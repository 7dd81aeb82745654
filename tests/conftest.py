"""What the tests share: settings that make minutes milliseconds, and a watch over lost exceptions."""

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
    """Settings of a session that doesn't keep a test waiting."""
    return {"polling": OFTEN, "timeouts": IMPATIENT, "retry": AT_ONCE}


@pytest.fixture
def path(tmp_path):
    """Where a ledger is to be."""
    return tmp_path / "jobs.db"


@pytest.fixture
def session(sandbox, quick, path):
    """Give a function that makes a session with the ledger; each call is another run of a program."""
    return lambda **options: sandbox.session(**quick | {"ledger": path} | options)


@pytest.fixture
async def on_the_sandbox(monkeypatch, quick, tmp_path):
    """Let a QameraSession() without arguments be one on the sandbox that polls without long pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(QameraSession.__init__.__kwdefaults__, "polling", quick["polling"])
    async with Sandbox(job_seconds=0.05) as sandbox:
        monkeypatch.setenv("QAMERA_BASE_URL", sandbox.url)
        monkeypatch.setenv("QAMERA_API_KEY", sandbox.api_key)
        yield sandbox


@pytest.fixture(scope="module")
def contexts():
    """What a server with a certificate for 127.0.0.1 needs, and who trusts its authority."""
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting


@pytest.fixture
async def no_lost_exceptions():
    """Fail where a task's exception reaches nobody: warnings alone don't show it."""
    lost = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    yield
    await asyncio.sleep(0)
    assert lost == []


def pytest_addoption(parser):
    """Let one case of trouble be run by its number."""
    parser.addoption("--case", type=int, choices=CASES, metavar="NUMBER", help="run the tests of a case only")


def numbers(item):
    """Give the cases that a test runs."""
    return {number for mark in item.iter_markers("case") for number in mark.args}


def pytest_configure(config):
    """Take note of the cases whose tests run, also of those that other processes run."""
    if config.getoption("--case") is not None and config.option.markexpr == FAST:
        config.option.markexpr = ""  # a case may have slow tests only
    config.pluginmanager.register(Run(config), "run-cases")


def is_slow(item):
    """Tell whether a test is slow by its folder or a parameter: fuzzing, or a test that uses PostgreSQL."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return FUZZING in item.path.parents or any(
        isinstance(value, str) and value == "postgres" for value in parameters
    )


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(config, items):
    """Mark slow tests, and leave the tests of the case that was asked for."""
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
        """Take note of the cases whose tests are in this tier."""
        self.selected |= {number for item in session.items for number in numbers(item)}

    def pytest_deselected(self, items):
        """Take note of the cases whose tests are in the other tier."""
        self.deselected |= {number for item in items for number in numbers(item)}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Take the notes of a worker of pytest-xdist, which collects the tests in place of this process."""
        output = getattr(node, "workeroutput", {})
        self.selected |= {*output.get("selected_cases", ())}
        self.deselected |= {*output.get("deselected_cases", ())}

    def pytest_runtest_logreport(self, report):
        """Take note of a report, which goes by where all of them come together."""
        if report.failed or (report.when == "call" and report.passed):
            self.cases |= {value for name, value in report.user_properties if name == "case"}

    def pytest_sessionfinish(self, session, exitstatus):
        """Say which cases are missing in a run of a whole tier."""
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
