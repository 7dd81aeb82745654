"""The page with all tables, and its charts."""

import sys
from importlib.util import find_spec

HEAD = """# How fast, and how much of it

What `python benchmarks/run.py --into docs` measured, after `pip install -e '.[bench]'`. `--only SECTION ...`
measures one or some of {sections} by themselves,
`--figures FILE` keeps what was measured before, and `--smoke` measures a little of everything. All of it
takes an hour and a half on the machine named. `benchmarks/display.py` and `benchmarks/postgres.py` are
commands of their own.

{made}

Everything is on one machine: the server is a process of its own on loopback, the client another. What is
compared goes in turn, in one run, but for what the table says. A figure is the median, with the least and
the most of its rounds. Where a target stands beside a figure, it says whether the median is within, or the
most where it says "at worst".

"""
SMOKE = "**A smoke run: it shows that everything is measured, and no figure of it means anything.**\n\n"


def write(folder, found, *, smoke):
    """Write the page and the charts of what was found into a folder."""
    head = HEAD.format(sections=", ".join(f"`{name}`" for name in found), made=_made(found))
    head += SMOKE if smoke else ""
    pictures = folder / "benchmarks"
    if find_spec("matplotlib"):
        import charts  # noqa: PLC0415 - only who draws needs it

        pictures.mkdir(exist_ok=True)
        drawn = charts.draw(pictures, found)
    else:
        print("left out: the charts, as matplotlib is not installed", file=sys.stderr)
        drawn = {}
    tables = []
    for name, of_section in found.items():
        for table in of_section:
            table.charts = {}
        of_section[-1].charts = drawn.get(name, {})
        tables += [table.markdown() for table in of_section]
    (folder / "benchmarks.md").write_text(head + "\n".join(tables), "utf-8")


def _made(found):
    """Tell of all sections when and with what they were measured."""
    sections = {}
    for name, tables in found.items():
        sections.setdefault(tables[0].made, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: measured on {made}" for made, names in sections.items())
