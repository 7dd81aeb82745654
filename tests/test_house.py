"""The house: rooms only look up, and the table of contents is what is visible."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qamera_async

PACKAGE = Path(qamera_async.__file__).parent
ROOMS = [
    "errors",
    "models",
    "policies",
    "events",
    "protocol",
    "budget",
    "ledger",
    "transport",
    "poller",
    "submission",
    "job",
    "download",
    "session",
    "batch",
    "dbos",
]


def imports(path):
    """Give the absolute names of what a module imports when it runs."""
    package = ("qamera_async", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, [base, node.module]))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def files(room):
    """Give the modules of a room."""
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above(room):
    """A line's room can be found by looking up the list."""
    allowed = {*ROOMS[: ROOMS.index(room) + 1], "_version", "_boot"}
    # A batch stands on the session, whose method makes it: imported inside of that.
    allowed |= {"batch"} if room == "session" else set()
    found = [
        name.split(".")[1] for f in files(room) for name in imports(f) if name.startswith("qamera_async.")
    ]

    assert files(room)
    assert set(found) <= allowed


@pytest.mark.parametrize(
    ("library", "room"),
    [
        ("aiohttp", "transport"),
        ("backoff", "policies"),
        ("sqlite3", "ledger"),
        ("psycopg", "ledger"),
        ("dbos", "dbos"),
    ],
)
def test_each_outside_library_has_one_border(library, room):
    """One room imports the HTTP client, one backoff, one the database."""
    users = [r for r in ROOMS for f in files(r) if any(n.split(".")[0] == library for n in imports(f))]

    assert set(users) == {room}


def test_the_command_is_a_skin_over_the_public_names():
    """Whatever it does, a caller of the library can do too; and no room knows of it."""
    public = {f"qamera_async.{name}" for name in [*qamera_async.__all__, "sandbox.Sandbox"]}
    used = {name for f in files("cli") for name in imports(f) if name.startswith("qamera_async.")}
    foreign = {name for name in used if not name.startswith("qamera_async.cli.")} - public
    above = {name for room in ROOMS for f in files(room) for name in imports(f)}

    assert foreign == {"qamera_async._version.__version__"}  # so that --help needn't import the rest
    assert [name for name in above if name.startswith("qamera_async.cli")] == []


def test_all_is_what_is_visible():
    """Each name of __all__ can be had, and nothing else public can."""
    assert sorted(qamera_async.__all__) == sorted(set(qamera_async.__all__))
    assert [name for name in qamera_async.__all__ if not hasattr(qamera_async, name)] == []
    assert not hasattr(qamera_async, "nothing_of_that_name")
    assert set(qamera_async.__all__) <= set(dir(qamera_async))


def test_the_plugin_costs_nothing_where_it_is_not_used():
    """Importing the pytest plugin imports neither the client nor its libraries."""
    code = "import sys, pytest_qamera; print({'aiohttp', 'attr', 'msgspec'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "set()"


async def test_the_fixtures_give_a_session_on_a_sandbox(qamera, qamera_sandbox):
    """They can be used without any set-up."""
    assert (await (await qamera.register_video(image_id="i"))).id in qamera_sandbox.records


def test_the_typed_usage_names_everything_public():
    """What the type checkers look at is all of the public names."""
    usage = (Path(__file__).parent / "typing" / "api.py").read_text("utf-8")
    used = {node.id for node in ast.walk(ast.parse(usage)) if isinstance(node, ast.Name)}

    assert {name for name in qamera_async.__all__ if not name.startswith("_")} <= used
