"""What was measured, as values: rows of figures, tables of rows, and how they look in Markdown."""

import math
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import attrs

PACKAGES = ("qamera-async", "aiohttp", "msgspec", "httpx", "httpx2", "openai", "replicate", "runwayml")


@attrs.frozen
class Figure:
    """A median with its spread, and what was wanted of it.

    Attributes:
        median: of what was measured.
        least: of what was measured.
        most: of what was measured.
        unit: what follows the number.
        target: at most so much is wanted; None: nothing is.
        worst: whether that is wanted of the most, not of the median.
    """

    median: float
    least: float
    most: float
    unit: str = ""
    target: float | None = None
    worst: bool = False

    @property
    def met(self):
        """Whether the target was met."""
        return self.target is None or (self.most if self.worst else self.median) <= self.target

    def __str__(self):
        text = number(self.median)
        if self.least != self.most:
            text += f" ({number(self.least)} to {number(self.most)})"
        text += f" {self.unit}" if self.unit else ""
        if self.target is not None:
            kept = "within" if self.met else "**over**"
            text += f"; {'at worst ' if self.worst else ''}{kept} {number(self.target)}"
        return text


def figure(values, unit="", target=None, *, worst=False):
    """Give the figure of several measurements, or of one."""
    values = values if isinstance(values, list | tuple) else [values]
    return Figure(statistics.median(values), min(values), max(values), unit, target, worst)


def number(value):
    """Write a number with three digits that matter."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def made():
    """Give when and with what something is measured."""
    versions = ", ".join(f"{name} {number}" for name in PACKAGES if (number := version(name)))
    return f"{datetime.now(UTC):%Y-%m-%d}: {machine()}. Python {platform.python_version()}, {versions}"


@attrs.define
class Row:
    """One line: whose it is, what was measured by column, and what is unfair about it.

    Attributes:
        name: the client, or what was done.
        figures: by column; text where there is no figure.
        note: what is unfair about it, or what happened.
    """

    name: str
    figures: dict[str, object]
    note: str = ""


@attrs.define
class Table:
    """One comparison.

    Attributes:
        title: its heading.
        about: what was done, and what is unfair about all of it.
        rows: its lines.
        left_out: the clients that aren't installed.
        charts: file names of its charts, with their descriptions.
        made: when it was measured, with what.
    """

    title: str
    about: str = attrs.field(converter=lambda text: " ".join(text.split()))
    rows: list[Row] = attrs.field(factory=list)
    left_out: list[str] = attrs.field(factory=list)
    charts: dict[str, str] = attrs.field(factory=dict)
    made: str = attrs.field(factory=made)

    @classmethod
    def of(cls, values):
        """Give a table of what `attrs.asdict` made of one."""
        rows = [
            Row(
                **row
                | {
                    "figures": {
                        k: Figure(**v) if isinstance(v, dict) else v for k, v in row["figures"].items()
                    }
                }
            )
            for row in values["rows"]
        ]
        return cls(**values | {"rows": rows})

    def markdown(self):
        """Give it as Markdown."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        notes = any(row.note for row in self.rows)
        lines = [f"## {self.title}", "", *([self.about, ""] if self.about else [])]
        if self.left_out:
            lines += [f"Left out, as not installed: {', '.join(self.left_out)}.", ""]
        lines += [
            f"| | {' | '.join(columns)} |{' |' if notes else ''}",
            "|---" * (1 + len(columns) + notes) + "|",
        ]
        for row in self.rows:
            cells = [
                row.name,
                *(str(row.figures.get(name, "")) for name in columns),
                *([row.note] if notes else []),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for file, what in self.charts.items():
            lines += ["", f"![{what}](benchmarks/{file})"]
        return "\n".join(lines) + "\n"


CLAIMS = []


def row(what, measured, target, met):
    """Print one line of the table of claims, and keep it."""
    print(f"| {what} | {measured} | {target} | {'ok' if met else 'MISSED'} |", flush=True)
    CLAIMS.append(Row(what, {"measured": measured, "target": target, "met": "yes" if met else "**no**"}))


def machine():
    """Give the processor, the cores and the memory of this machine."""
    model = platform.machine()
    cores, memory = os.cpu_count(), 0.0
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{model}, {cores} cores, {memory:.0f} GiB, {system}"


def version(package):
    """Give the version that is installed; None where none is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
