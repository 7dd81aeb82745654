"""What the README shows works as it stands there."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from qamera_async import AmbiguousSubmissionError, QameraSession, Timeouts
from qamera_async.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -e '.[cli]' && .venv/bin/qamera demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
]


@pytest.fixture
async def on_the_sandbox(monkeypatch, quick, tmp_path):
    """Let a QameraSession() without arguments be one on the sandbox that polls without long pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(QameraSession.__init__.__kwdefaults__, "polling", quick["polling"])
    async with Sandbox(job_seconds=0.05) as sandbox:
        monkeypatch.setenv("QAMERA_BASE_URL", sandbox.url)
        monkeypatch.setenv("QAMERA_API_KEY", sandbox.api_key)
        yield sandbox


def test_there_are_snippets():
    """An expression that finds nothing would test nothing."""
    assert len(SNIPPETS) >= 9


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_stand_in_the_readme(command):
    """CI reads the test command from there, so that it can't drift."""
    assert f"```bash\n{command}\n```" in README


async def leave_something_to_look_into(sandbox):
    """Leave what a run that was killed leaves: an unfinished job, and two that are ambiguous."""
    async with QameraSession(ledger="jobs.db", timeouts=Timeouts(lookup=0.1)) as qamera:
        await qamera.register_video(image_id="img_1", ref="sku-1")
        for name in ("reset_after", "reset_before"):
            sandbox.trouble(name)
            with pytest.raises(AmbiguousSubmissionError):
                await qamera.register_video(image_id="img_1", ref=name)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[0][:40])
async def test_a_snippet_runs(snippet, on_the_sandbox):
    """Each snippet runs on the sandbox; one that is a test runs with its fixtures."""
    if "ambiguous()" in snippet or "LedgerFile" in snippet:
        await leave_something_to_look_into(on_the_sandbox)
    names = {"__name__": "readme"}
    code = compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)  # noqa: S307 - our own README
    if inspect.iscoroutine(result):
        await result

    # The web app and the tests only define something, and one snippet brings a sandbox of its own.
    assert on_the_sandbox.requests or not inspect.iscoroutine(result) or "Sandbox(" in snippet


@pytest.mark.parametrize("name", re.findall(r"async def (test_\w+)", README))
async def test_the_tests_of_the_readme(name, qamera, qamera_sandbox):
    """The README's tests pass with the fixtures of the plugin."""
    snippet = next(s for s in SNIPPETS if name in s)
    names = {"__name__": "readme"}
    exec(snippet, names)  # noqa: S102 - our own README
    await names[name](qamera, qamera_sandbox)

    assert len(qamera_sandbox.orders) == 1


async def test_the_web_app_of_the_readme(on_the_sandbox):
    """The README's app starts a clip and shows it."""
    names = {"__name__": "readme"}
    exec(next(s for s in SNIPPETS if "make_app" in s), names)  # noqa: S102 - our own README
    async with TestClient(TestServer(names["make_app"]())) as client:
        started = await (await client.post("/videos?image=img_1")).json()
        shown = await (await client.get(f"/videos/{started['ids'][0]}")).json()

    assert shown["url"].startswith(on_the_sandbox.cdn_url)
