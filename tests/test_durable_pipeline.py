"""The recipe for durable pipelines: kill -9 loses no job and submits none twice."""

import ast
import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import children
import postgres
import pytest
from snippets import FILE, ROOT, blocks

import qamera_async as q
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "durable_pipeline.py"
WORKER = Path(__file__).with_name("durable_worker.py")
IMAGES = [f"img_{number}" for number in range(60)]
WINDOW = "1"  # seconds for 60 requests of the worker, so that the tests don't wait for the rate limit
LEFT = 5  # how many submissions are being sent at a kill


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.3, quota=None, credits=10**6) as sandbox:
        yield sandbox


class Workers:
    """Worker processes that share a ledger, a folder for clips, and DBOS's tables."""

    def __init__(self, sandbox, ledger, clips, options):
        self.sandbox, self.ledger, self.clips, self.options = sandbox, ledger, clips, options
        self.processes = {}

    async def start(self, name, *options, images=IMAGES):
        self.processes[name] = await children.start(
            sys.executable, WORKER, "--worker", name, "--window", WINDOW, *self.options, *options, *images,
            env={
                **os.environ,
                "QAMERA_BASE_URL": self.sandbox.url,
                "QAMERA_API_KEY": self.sandbox.api_key,
                "QAMERA_LEDGER": self.ledger,
                "QAMERA_CLIPS": str(self.clips),
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def signal(self, name, number):
        self.processes[name].send_signal(number)
        await self.processes[name].communicate()

    async def finish(self):
        """Wait for all workers; return their exit codes and what they wrote to stderr."""
        async with asyncio.timeout(90):
            errors = [(await process.communicate())[1].decode() for process in self.processes.values()]
        return {process.returncode for process in self.processes.values()}, "".join(errors)

    def done(self):
        return {path.stem for path in self.clips.glob("*.mp4")}

    async def resolve(self):
        """Resolve each ambiguous submission by the server's list; return their refs."""
        made = {order.body["imageId"]: order.record_ids for order in self.sandbox.orders}
        async with self.sandbox.session(ledger=self.ledger, timeouts=q.Timeouts(reconcile=0.1)) as session:
            intents = await session.ambiguous()
            for intent in intents:
                if intent.request.ref in made:
                    await session.adopt(intent, *made[intent.request.ref])
                else:
                    await session.abandon(intent)
        return {intent.request.ref for intent in intents}


@pytest.fixture
async def workers(sandbox, tmp_path):
    """Return a function that makes workers; all processes end with the test."""
    made = []

    def make(ledger=None, *options):
        made.append(Workers(sandbox, str(ledger or tmp_path / "jobs.db"), tmp_path / "clips", options))
        return made[-1]

    yield make
    for each in made:
        for name, process in each.processes.items():
            if process.returncode is None:
                await each.signal(name, signal.SIGKILL)


def orders(sandbox):
    return Counter(order.body["imageId"] for order in sandbox.orders)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def kill_while_sending(sandbox, workers, name):
    """Kill the only worker while accepted submissions wait for their answers."""
    sandbox.trouble("slow", times=len(IMAGES) // 3, seconds=0.01)
    sandbox.trouble("hang", times=LEFT)
    await workers.start(name)

    def unanswered():
        return [r for r in sandbox.requests if r.method == "POST" and r.status is None]

    def enough():
        return len(sandbox.orders) >= len(IMAGES) // 3 + LEFT and len(unanswered()) >= LEFT

    await until(enough)
    await workers.signal(name, signal.SIGKILL)


async def test_killed_only_worker_on_sqlite_loses_and_repeats_nothing(sandbox, workers):
    pipeline = workers()
    await kill_while_sending(sandbox, pipeline, "only")
    await pipeline.start("only")
    codes, errors = await pipeline.finish()

    assert codes == {4}
    assert "AmbiguousSubmissionError" in errors
    done = pipeline.done()
    ambiguous = await pipeline.resolve()
    assert len(ambiguous) >= LEFT
    assert done | ambiguous == set(IMAGES)
    assert not done & ambiguous

    await pipeline.start("only", "--run", "2")
    codes, errors = await pipeline.finish()

    assert (codes, errors) == ({0}, "")
    assert pipeline.done() == set(IMAGES)
    assert orders(sandbox) == Counter(IMAGES)


async def test_without_the_ledger_the_same_kill_submits_twice(sandbox, workers):
    pipeline = workers(None, "--without-ledger")
    await kill_while_sending(sandbox, pipeline, "only")
    accepted = set(orders(sandbox))
    await pipeline.start("only")
    codes, _ = await pipeline.finish()

    assert codes == {0}
    doubled = {image for image, count in orders(sandbox).items() if count > 1}
    assert len(doubled) >= LEFT
    assert doubled <= accepted


async def test_one_of_three_workers_on_postgresql_is_killed(sandbox, workers):
    sandbox.trouble("slow", times=10 * len(IMAGES), seconds=0.3)
    pipeline = workers(postgres.server().database())
    for name in ("videos-0", "videos-1", "videos-2"):
        await pipeline.start(name)
    await until(lambda: len(sandbox.orders) >= len(IMAGES) // 3)
    await pipeline.signal("videos-1", signal.SIGKILL)
    await pipeline.start("videos-1")
    codes, errors = await pipeline.finish()

    done = pipeline.done()
    ambiguous = await pipeline.resolve()
    assert codes == ({4} if ambiguous else {0}), errors
    assert done | ambiguous == set(IMAGES)
    assert not done & ambiguous

    await pipeline.start("videos-1", "--run", "2")
    codes, errors = await pipeline.finish()

    assert pipeline.processes["videos-1"].returncode == 0, errors
    assert pipeline.done() == set(IMAGES)
    assert orders(sandbox) == Counter(IMAGES)


async def test_workflow_of_an_ambiguous_submission_ends_with_the_error(sandbox, workers):
    pipeline = workers()
    sandbox.trouble("reset_after")
    async with sandbox.session(ledger=pipeline.ledger, timeouts=q.Timeouts(reconcile=0.1)) as session:
        with pytest.raises(q.AmbiguousSubmissionError):
            await session.register_video(image_id="img_0", ref="img_0")
    await pipeline.start("only", images=["img_0"])
    codes, errors = await pipeline.finish()

    assert codes == {4}
    assert "img_0: AmbiguousSubmissionError" in errors
    assert sum(request.method == "POST" for request in sandbox.requests) == 1


async def test_interrupted_worker_leaves_its_workflows_to_the_next_start(sandbox, workers):
    """Ctrl-C must not end a workflow with the error of a closed session."""
    pipeline = workers()
    sandbox.trouble("late", times=len(IMAGES), seconds=0.5)
    await pipeline.start("only")
    await until(lambda: len(sandbox.orders) >= LEFT)
    await pipeline.signal("only", signal.SIGINT)

    assert pipeline.processes["only"].returncode == 130
    assert len(pipeline.done()) < len(IMAGES)

    await pipeline.start("only")
    codes, errors = await pipeline.finish()

    assert (codes, errors) == ({0}, "")
    assert orders(sandbox) == Counter(IMAGES)


async def test_second_run_of_a_finished_pipeline_submits_nothing(sandbox, workers):
    pipeline = workers()
    for run in ("1", "1", "2"):
        await pipeline.start("only", "--run", run, images=IMAGES[:5])
        codes, errors = await pipeline.finish()
        assert (codes, errors) == ({0}, "")

    assert orders(sandbox) == Counter(IMAGES[:5])
    assert pipeline.done() == set(IMAGES[:5])


def steps(text):
    """Return the decorated functions of a program by name, as code without docstrings."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list:
            if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                del node.body[0]
            found[node.name] = ast.unparse(node)
    return found


def test_page_and_example_have_the_same_steps():
    (program,) = [b.text for b in blocks(ROOT / "docs/howto/durable.md") if FILE.match(b.text)]

    assert len(steps(program)) == 4
    assert steps(program) == steps(EXAMPLE.read_text("utf-8"))
