"""The table of docs/promises.md and the tests are about the same cases."""

import re
from pathlib import Path

from cases import CASES

ROOT = Path(__file__).parents[2]


def test_every_case_is_a_row_of_the_table():
    """Once each, in their order; a whole run of the tests fails where one of them had no test that passed."""
    table = (ROOT / "docs" / "promises.md").read_text("utf-8").partition("## The cases")[2]

    assert [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(CASES)


def test_every_file_that_is_named_is_there():
    """What the page says of the tests can be looked up."""
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    named = re.findall(r"`((?:tests|sweeps|benchmarks|fuzz)/[\w/*.-]*)`", page)

    assert named
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []
