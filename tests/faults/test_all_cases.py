"""The table in docs/promises.md and the tests have the same fault cases."""

import re
from pathlib import Path

from cases import CASES

ROOT = Path(__file__).parents[2]


def test_table_has_one_row_for_each_case_in_order():
    """The plugin in conftest.py fails a complete test run in which a case had no test."""
    table = (ROOT / "docs" / "promises.md").read_text("utf-8").partition("## The cases")[2]

    assert [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(CASES)


def test_files_named_in_promises_exist():
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    named = re.findall(r"`((?:tests|sweeps|benchmarks|fuzz)/[\w/*.-]*)`", page)

    assert named
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []
