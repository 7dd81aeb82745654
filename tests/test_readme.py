"""What the README and its neighbours show works as it stands there."""

import re

import pytest
from aiohttp.test_utils import TestClient, TestServer
from snippets import COMMANDS, ROOT, blocks, execute

README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = [block.text for block in blocks(ROOT / "README.md") if block.kind == "python"]


def test_there_are_snippets():
    """An expression that finds nothing would test nothing."""
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_stand_in_the_readme(command):
    """CI reads the test command from there, so that it can't drift."""
    assert f"```bash\n{command}\n```" in README


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[0][:40])
async def test_a_snippet_runs(snippet, on_the_sandbox):
    """Each snippet runs on the sandbox; the web app only defines something."""
    awaited = await execute(snippet, "README.md")

    assert bool(on_the_sandbox.requests) == awaited


async def test_the_web_app_of_the_readme(on_the_sandbox):
    """The README's app starts a clip and shows it."""
    names = {"__name__": "readme"}
    exec(next(s for s in SNIPPETS if "make_app" in s), names)  # noqa: S102 - our own README
    async with TestClient(TestServer(names["make_app"]())) as client:
        started = await (await client.post("/videos?image=img_1")).json()
        shown = await (await client.get(f"/videos/{started['ids'][0]}")).json()

    assert shown["url"].startswith(on_the_sandbox.cdn_url)


def test_what_contributing_asks_for_is_what_ci_runs():
    """Who has run it all finds nothing new there."""
    commands = [block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.kind == "bash"]
    checks = (ROOT / ".ci" / "run").read_text("utf-8")

    assert len(commands) == 2
    for command in commands[1].splitlines():
        assert command == "pytest" or any(
            line.endswith(command) or line.startswith(command)
            for line in checks.replace(".venv/bin/", "").splitlines()
        )


def test_the_links_of_the_front_door_lead_somewhere():
    """Each page and picture that is linked to is there."""
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text("utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == []
