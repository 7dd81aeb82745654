"""What the command says of itself."""

import subprocess
import sys

import pytest
from command import SCRIPT, environment, qamera

COMMANDS = (
    "demo",
    "sandbox",
    "video",
    "reel",
    "wait",
    "videos",
    "download",
    "batch",
    "ledger",
    "report",
)


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_help_of_each_command_has_an_example(command):
    """One that begins as one would type it; and the options of output, which all of them have."""
    ended = await qamera(command, "--help")

    assert ended.code == 0
    assert f"qamera {command}" in ended.out.split("Example")[1]
    assert {"--json", "--quiet", "--debug"} <= {*ended.out.split()}


async def test_the_help_names_all_commands_and_exit_codes():
    """A stranger finds what there is, where the key comes from, and what an exit code means."""
    ended = await qamera("--help")
    words = ended.out.split()

    assert ended.code == 0
    assert {*COMMANDS} <= {*words}
    assert "QAMERA_API_KEY," in words
    assert [code for code in ("0", "1", "2", "3", "4", "130", "141") if code not in words] == []


async def test_no_command_takes_a_key():
    """An argument can be seen by everybody on the machine."""
    texts = [(await qamera(command, "--help")).out for command in COMMANDS]

    assert [text for text in texts if "--key" in text or "--api-key" in text] == []


def test_without_its_extra_it_says_what_to_install():
    """One line, no traceback."""
    code = (
        "import sys; sys.modules['cyclopts'] = None\n"
        "from qamera_async.cli.main import main\n"
        "sys.argv = ['qamera', 'demo']\n"
        "main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
    )

    assert run.returncode == 1
    assert run.stderr.splitlines() == ["error: cyclopts is not installed: pip install 'qamera-async[cli]'"]


def test_the_shell_can_be_taught(tmp_path):
    """The completion script knows the commands."""
    run = subprocess.run(
        [SCRIPT, "--install-completion", "--shell", "bash", "--output", tmp_path / "qamera"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(HOME=str(tmp_path)),
    )

    assert run.returncode == 0, run.stderr
    assert "download" in (tmp_path / "qamera").read_text()
