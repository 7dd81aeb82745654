"""The examples run as processes, as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


def run(*arguments, **environment):
    """Run the quickstart with no terminal."""
    return subprocess.run(
        [sys.executable, QUICKSTART, *arguments],
        env={**{k: v for k, v in os.environ.items() if k != "QAMERA_API_KEY"}, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_quickstart_ends_with_two_urls():
    """On the sandbox: both are DONE, their URLs printed, exit 0."""
    result = run()

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("DONE") == 2
    assert result.stdout.count(".mp4") == 2


def test_live_without_a_key_is_refused():
    """Exit 2 and one line, no traceback."""
    result = run("--live", "img_1")

    assert result.returncode == 2
    assert "QAMERA_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr


def test_live_spends_nothing_unasked():
    """Where nobody can agree, it says that it spends credits and stops."""
    result = run("--live", "img_1", QAMERA_API_KEY="mk_live_a.b", QAMERA_BASE_URL="http://127.0.0.1:9")

    assert result.returncode == 2
    assert "SPENDS CREDITS" in result.stdout
