"""What must not be in the project, and what its tools depend on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
SKIPPED = {".git", ".venv", "venv", "build", "dist", "qamera-demo", "htmlcov"}
BINARY = {".png", ".mp4", ".jpg"}

# In parts, so that this file is no finding itself.
SECRETS = {
    # Of any id but those that the examples and tests use.
    "an API key": re.compile(r"mk_live_(?!(?:a|canary|fuzz|other|sandbox)\.)[A-Za-z0-9]+\.[\w-]{6,}"),
    "a private key": re.compile("-----BEGIN [A-Z ]*PRIVATE " + "KEY-----"),
    "a token": re.compile(r"\b(?:ghp|gho|github_pat|pypi|sk|xox[bp])[_-][A-Za-z0-9_-]{24,}"),
    "a cloud key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
}


def texts():
    """Give the name and text of each file of the project."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = {part for part in parts if part.startswith(".")} - {".ci", ".github", ".gitignore"}
        made = "__pycache__" in parts or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not (hidden or made or SKIPPED & {*parts} or path.suffix in BINARY):
            yield "/".join(parts), path.read_text("utf-8", "replace")


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_is_in_the_tree(kind):
    """Nothing that looks like one, outside of the shapes that documentation uses."""
    found = [name for name, text in texts() if SECRETS[kind].search(text)]

    assert found == []


@pytest.mark.parametrize(
    ("kind", "sample"),
    [
        ("an API key", "mk_live_k3y" + ".9f8e7d6c5b4a39281706"),
        ("an API key", "mk_live_AbCd" + ".onlyletters"),
        ("a private key", "-----BEGIN RSA PRIVATE " + "KEY-----"),
        ("a token", "ghp" + "_abcdefghijklmnopqrstuvwxyz0123456789"),
        ("a cloud key", "AKIA" + "ABCDEFGHIJKLMNOP"),
    ],
)
def test_a_secret_would_be_found(kind, sample):
    """The search can fail."""
    assert SECRETS[kind].search(f'key = "{sample}"')


def test_no_registry_and_no_lock_is_in_the_tree():
    """Whoever installs it decides where from."""
    hosts = re.compile(
        r"(files\.pythonhosted|(www\.)?pypi(\.python)?|registry\.npmjs)" + r"\.org|--(extra-)?index-url"
    )

    assert [name for name, text in texts() if hosts.search(text) and name != "tests/test_tree.py"] == []
    assert [name for name, _ in texts() if name.endswith(".lock")] == []


def test_the_tools_are_pinned_with_hashes():
    """All that tools/requirements.in asks for, and what comes with it."""
    pinned = (TOOLS / "requirements.txt").read_text()
    wanted = [
        line.partition("[")[0]
        for line in (TOOLS / "requirements.in").read_text().splitlines()
        if line[:1] != "#"
    ]
    blocks = re.findall(
        r"^(\S+)==\S+ \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", pinned, re.MULTILINE
    )

    assert {*wanted} <= {name for name, _ in blocks}
    assert len(blocks) == len(re.findall(r"^\S+==", pinned, re.MULTILINE))


def test_every_dependency_has_a_lowest_version():
    """The one that CI runs the tests with, too."""
    run = subprocess.run([sys.executable, TOOLS / "lowest.py"], capture_output=True, text=True, check=True)

    assert {line.partition("==")[0] for line in run.stdout.splitlines()} >= {"aiohttp", "attrs", "cyclopts"}


def test_the_workflows_pin_what_they_use():
    """By commit, since a tag can be moved."""
    uses = [
        line.partition("uses:")[2].strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line and "uses: $/" not in line
    ]

    assert uses
    assert [use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", use)] == []
