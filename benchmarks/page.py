"""The page with all tables, and its charts."""

import platform
import sys
from importlib.util import find_spec

from clients import CLIENTS
from report import machine, version

HEAD = """# How fast, and how much of it

What `python benchmarks/run.py --into docs` measured, after `pip install -e '.[bench]'`. `--only SECTION ...`
measures one or some of {sections} by themselves, and
`--smoke` a little of everything.

Machine: {machine}, shared with other programs. Python {python}. {versions}.

Everything is on one machine: the server is a process of its own on loopback, the client another. What is
compared goes in turn, in one run. A figure is the median, with the least and the most of its rounds. Where
a target stands beside a figure, it says whether the median is within.

"""


def write(folder, found):
    """Write the page and the charts of what was found into a folder."""
    packages = [client.package for client in CLIENTS.values()] + ["msgspec", "httpx2"]
    versions = {package: version(package) for package in dict.fromkeys(packages)}
    head = HEAD.format(
        sections=", ".join(f"`{name}`" for name in found),
        machine=machine(),
        python=platform.python_version(),
        versions=", ".join(f"{package} {number}" for package, number in versions.items() if number),
    )
    pictures = folder / "benchmarks"
    if find_spec("matplotlib"):
        import charts  # noqa: PLC0415 - only who draws needs it

        pictures.mkdir(parents=True, exist_ok=True)
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.md").write_text(head + "\n".join(tables), "utf-8")
