"""What the documentation shows works as it stands there, and all that is public is in it."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import typing

import pytest
from snippets import FILE, ROOT, Reader, blocks, leave_something_to_look_into, looks_like

import pytest_qamera
import qamera_async
from qamera_async import download, events, ledger, report, sandbox

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS)): path
    for path in sorted(DOCS.rglob("*.md"))
    if not path.relative_to(DOCS).parts[0].startswith(("benchmarks", "promises"))
}
RUN = {"python", "bash", "text"}
DIRECTIVES = {"{toctree}", "{eval-rst}", "{literalinclude}", "{figure}"}
WITH_DOUBTS = {"howto/ambiguous.md"}
"""The pages that begin where a run was killed."""

NEEDED = {"howto/other-languages.md": ["curl"]}
"""What the snippets of a page run besides Python and the command."""

SNIPPETS = [name for name, path in PAGES.items() if RUN & {block.kind for block in blocks(path)}]


EVENTS = [event.__name__ for event in typing.get_args(events.Event)]
PUBLIC = {
    **{f"qamera_async.{name}": getattr(qamera_async, name) for name in qamera_async.__all__},
    **{f"qamera_async.events.{name}": getattr(events, name) for name in ["Event", *EVENTS]},
    **{f"qamera_async.ledger.{name}": getattr(ledger, name) for name in ledger.__all__},
    **{f"qamera_async.sandbox.{name}": getattr(sandbox, name) for name in sandbox.__all__},
    "qamera_async.report.write_report": report.write_report,
    "qamera_async.download.safe_name": download.safe_name,
}
ERRORS = [name for name in qamera_async.__all__ if name.endswith("Error")]


def arguments_of(function):
    """Give the names of what a caller gives."""
    names = list(inspect.signature(function).parameters)
    return [name for name in names if name not in {"self", "cls"}]


def documented(text):
    """Give the names that the section of arguments, or of attributes, has."""
    section = re.search(
        r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", inspect.cleandoc(text) + "\n", re.MULTILINE
    )
    return set() if section is None else set(re.findall(r"^    (\w+):", section[1], re.MULTILINE))


def callables(name, value):
    """Give what is to be documented of a public name: a function, or a class and its methods."""
    if inspect.isfunction(value):
        yield name, value.__doc__, arguments_of(value)
    elif inspect.isclass(value):
        # One that is made by another, and one that is made as its base is, tell nothing of it.
        made = value.__init__ if "__init__" in vars(value) and value not in MADE_BY_OTHERS else None
        yield name, value.__doc__, [] if made is None else arguments_of(made)
        for member, method in vars(value).items():
            function = inspect.unwrap(method) if callable(method) else getattr(method, "fget", None)
            if not member.startswith("_") and inspect.isfunction(function):
                hidden = (name, member) in NOT_SHOWN
                yield f"{name}.{member}", function.__doc__, [] if hidden else arguments_of(function)


MADE_BY_OTHERS = {qamera_async.Job}
NOT_SHOWN = {
    *(("qamera_async.RateLimiter", name) for name in vars(qamera_async.RateLimiter)),
    ("qamera_async.sandbox.Record", "item"),
}
"""What rooms use of each other: the reference leaves it out."""


@pytest.mark.slow
def test_it_is_built_with_every_public_name(tmp_path):
    """Without a warning; each name, both fixtures and each command are where links find them."""
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", DOCS, tmp_path / "built"]
    done = subprocess.run(build, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run(
        [sys.executable, "-m", "sphinx.ext.intersphinx", tmp_path / "built" / "objects.inv"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = {line.split()[0] for line in listed.splitlines() if line.startswith("    ")}

    fixtures = {f"pytest_qamera.{name}" for name in ("qamera", "qamera_sandbox")}
    assert {*PUBLIC, *fixtures} - known == set()
    assert all(hasattr(pytest_qamera, name.rpartition(".")[2]) for name in fixtures)


def test_every_argument_is_documented():
    """Each argument of each public name has a line that says what it is."""
    found = [entry for name, value in PUBLIC.items() for entry in callables(name, value)]
    missing = {
        name: [argument for argument in arguments if argument not in documented(text or "")]
        for name, text, arguments in found
    }

    assert [name for name, text, _ in found if not text] == []
    assert {name: arguments for name, arguments in missing.items() if arguments} == {}


def test_every_error_has_its_troubleshooting():
    """What to do is said of each class, under its name."""
    headings = re.findall(r"^### (\w+)$", PAGES["troubleshooting.md"].read_text("utf-8"), re.MULTILINE)

    assert sorted(headings) == sorted(ERRORS)


def test_the_reference_has_each_command():
    """What ``qamera --help`` lists, and no other."""
    page = PAGES["reference/command.md"].read_text("utf-8")
    listed = re.findall(r"^│ (\w+)  ", page.partition("## qamera demo")[0], re.MULTILINE)

    assert re.findall(r"^## qamera (\w+)$", page, re.MULTILINE)
    assert sorted(re.findall(r"^## qamera (\w+)$", page, re.MULTILINE)) == sorted(listed)


def test_no_snippet_is_left_out():
    """A fence holds what is run, what it writes, or a directive: there are no other kinds."""
    found = [(str(block), block.kind) for path in PAGES.values() for block in blocks(path)]

    assert [(where, kind) for where, kind in found if kind not in RUN | DIRECTIVES] == []
    assert sum(kind in RUN for _, kind in found) >= 40


def test_every_fence_is_found():
    """The expression that finds the snippets misses none."""
    for name, path in PAGES.items():
        fences = sum(line.startswith("```") for line in path.read_text("utf-8").splitlines())

        assert fences == 2 * len(blocks(path)), name


def test_every_file_is_run():
    """What is to be saved under a name is a test, or a later snippet runs or imports it."""
    for path in PAGES.values():
        found = blocks(path)
        for place, block in enumerate(found):
            named = FILE.match(block.text) if block.kind == "python" else None
            if named is not None and not named[1].startswith("test_"):
                stem = named[1].removesuffix(".py")
                uses = rf"^(?:python {stem}\.py|from {stem} import .*)$"

                assert any(re.search(uses, later.text, re.MULTILINE) for later in found[place + 1 :]), block


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
async def test_the_snippets_of_a_page_run(name, on_the_sandbox, tmp_path):
    """One after the other, as a reader would, on the sandbox; each output is the one that is shown."""
    for program in NEEDED.get(name, ()):
        if shutil.which(program) is None and not os.environ.get("CI"):
            pytest.skip(f"there is no {program}")
    if name in WITH_DOUBTS:
        await leave_something_to_look_into(on_the_sandbox)
    reader = Reader(tmp_path, on_the_sandbox)
    await reader.read(PAGES[name])

    assert reader.ran > 0


@pytest.mark.parametrize(
    ("shown", "output", "alike"),
    [
        ("a\n", "a  \n\n", True),
        ("a ... c", "a b c", True),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("a", "a\nb", False),
        ("a.c", "abc", False),
        ("...", "", True),
    ],
)
def test_an_output_is_held_against_the_page(shown, output, alike):
    """Only dots stand for something else."""
    assert looks_like(shown, output) is alike
