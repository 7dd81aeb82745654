"""The layers of the package: imports run one way, and each outside library is used in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qamera_async

PACKAGE = Path(qamera_async.__file__).parent
LAYERS = [
    "errors",
    "_models",
    "_config",
    "events",
    "_protocol",
    "_ratelimit",
    "ledger",
    "_transport",
    "_polling",
    "_submission",
    "download",
    "_jobs",
    "_registration",
    "_batch",
    "_session",
]
ABOVE_ALL = {"_version", "_boot"}


def run_time_imports(path):
    """Yield the absolute names of what a module imports when it runs."""
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


def modules(layer):
    """Return the files of a layer."""
    single = PACKAGE / f"{layer}.py"
    return [single] if single.exists() else sorted((PACKAGE / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_imports_only_from_those_above_it(layer):
    allowed = {*LAYERS[: LAYERS.index(layer) + 1]} | ABOVE_ALL
    if layer == "errors":
        # Errors carry models and models raise errors; annotations of both are resolved at run time.
        allowed.add("_models")
    found = {
        name.split(".")[1]
        for file in modules(layer)
        for name in run_time_imports(file)
        if name.startswith("qamera_async.")
    }

    assert modules(layer)
    assert found <= allowed


@pytest.mark.parametrize(
    ("library", "layer"),
    [("aiohttp", "_transport"), ("backoff", "_config"), ("sqlite3", "ledger"), ("psycopg", "ledger")],
)
def test_each_outside_library_is_used_in_one_layer(library, layer):
    users = {
        name
        for name in LAYERS
        for file in modules(name)
        for imported in run_time_imports(file)
        # The session takes aiohttp's trace hooks as an argument, and names their type.
        if imported.split(".")[0] == library and (name, library) != ("_session", "aiohttp")
    }

    assert users == {layer}


def test_no_layer_imports_the_command():
    above = {name for layer in LAYERS for file in modules(layer) for name in run_time_imports(file)}

    assert [name for name in above if name.startswith("qamera_async.cli")] == []


def test_all_names_everything_that_is_public():
    assert sorted(qamera_async.__all__) == sorted(set(qamera_async.__all__))
    assert [name for name in qamera_async.__all__ if not hasattr(qamera_async, name)] == []


def test_the_pytest_plugin_imports_neither_the_client_nor_its_libraries():
    code = (
        "import sys, pytest_qamera; print({'aiohttp', 'attr', 'msgspec', 'qamera_async'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "set()"


async def test_the_fixtures_provide_a_session_on_a_sandbox(qamera, qamera_sandbox):
    assert (await (await qamera.register_video(image_id="i"))).id in qamera_sandbox.records


def test_the_typed_usage_covers_every_public_name():
    usage = (Path(__file__).parents[1] / "typing" / "api.py").read_text("utf-8")
    used = {node.id for node in ast.walk(ast.parse(usage)) if isinstance(node, ast.Name)}

    assert {name for name in qamera_async.__all__ if not name.startswith("_")} <= used
