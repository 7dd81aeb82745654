"""What the README shows works as it stands there."""

import re

import pytest
from aiohttp.test_utils import TestClient, TestServer
from snippets import COMMANDS, ROOT, blocks, execute, leave_something_to_look_into

README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = [block.text for block in blocks(ROOT / "README.md") if block.kind == "python"]


def test_there_are_snippets():
    """An expression that finds nothing would test nothing."""
    assert len(SNIPPETS) >= 9


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_stand_in_the_readme(command):
    """CI reads the test command from there, so that it can't drift."""
    assert f"```bash\n{command}\n```" in README


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[0][:40])
async def test_a_snippet_runs(snippet, on_the_sandbox):
    """Each snippet runs on the sandbox; one that is a test runs with its fixtures."""
    if "ambiguous()" in snippet or "LedgerFile" in snippet:
        await leave_something_to_look_into(on_the_sandbox)
    awaited = await execute(snippet, "README.md")

    # The web app and the tests only define something, and one snippet brings a sandbox of its own.
    assert on_the_sandbox.requests or not awaited or "Sandbox(" in snippet


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
