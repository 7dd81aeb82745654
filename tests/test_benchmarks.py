"""The benchmarks run, whoever is installed to be compared with."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
SECTIONS = ["waiting", "request", "imports", "waiters", "stall", "poll", "growth", "claims"]
COMPARED = ["waiting", "request", "imports", "waiters"]
PEERS = ["httpx", "runwayml", "openai", "replicate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run of a little of everything has written."""
    folder = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, RUN, "--smoke", "--into", folder, "--figures", folder / "figures.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def sections(folder):
    return json.loads((folder / "figures.json").read_text("utf-8"))


def _ours(tables):
    return [row for table in tables for row in table["rows"] if row["name"] == "qamera-async"]


def test_each_section_has_rows_with_finite_figures(sections):
    """Every section measures something, and what it measures is a number."""
    numbers = {
        name: [
            figure["median"]
            for table in tables
            for row in table["rows"]
            for figure in row["figures"].values()
            if isinstance(figure, dict)
        ]
        for name, tables in sections.items()
    }

    assert list(sections) == SECTIONS
    assert all(table["rows"] for tables in sections.values() for table in tables)
    assert all(numbers[name] for name in SECTIONS if name != "claims")
    assert all(math.isfinite(number) for found in numbers.values() for number in found)


def test_all_jobs_of_the_product_finish_without_a_429(sections):
    """Under the quota, with and without Retry-After, this library gets every result and provokes no 429."""
    rows = [row["figures"] for row in _ours(sections["waiting"])]

    assert len(rows) == 2
    assert [row["finished"]["least"] for row in rows] == [row["jobs"]["median"] for row in rows]
    assert [row["429s"]["most"] for row in rows] == [0, 0]


def test_who_is_not_installed_is_named(sections):
    """A comparison says whom it left out, and has a row for everybody else."""
    missing = {peer for peer in PEERS if find_spec(peer) is None}

    for name in COMPARED:
        for table in sections[name]:
            rows = {row["name"].partition(",")[0].partition(":")[0] for row in table["rows"]}
            left_out = {client.partition(",")[0] for client in table["left_out"]}
            assert left_out == missing
            assert rows == {"qamera-async", "aiohttp", *PEERS} - missing


def test_the_page_has_every_table_and_chart(folder, sections):
    """The page shows all tables, what the machine was, and the charts where they can be drawn."""
    page = (folder / "benchmarks.md").read_text("utf-8")
    shown = [line for line in page.splitlines() if line.startswith("![")]
    drawn = {path.name for path in folder.glob("benchmarks/*.svg")}

    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [
        table["title"] for name in SECTIONS for table in sections[name]
    ]
    assert " cores, " in page
    assert all(
        f"| {row['name']} |" in page for tables in sections.values() for t in tables for row in t["rows"]
    )
    # One of them is for the README.
    assert {line.rpartition("/")[2].rstrip(")") for line in shown} == drawn - {"front.svg"}
    assert ("front.svg" in drawn) == bool(drawn)
    assert bool(drawn) == (find_spec("matplotlib") is not None)
