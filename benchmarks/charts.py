"""The charts, as SVG that can be read on light and on dark pages."""

import re

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from report import Figure, number

INK, GRID, PAPER = "#1f2328", "#d1d9e0", "#fffffe"
DARK = {INK: "#e6edf3", GRID: "#3d444d", PAPER: "#0d1117"}
NAMES = {INK: "ink", GRID: "grid", PAPER: "paper"}
COLOURS = {
    "qamera-async": "#1f8a5b",
    "aiohttp": "#d4793a",
    "httpx": "#b99a2f",
    "runwayml": "#5b8fd6",
    "openai": "#9a7bd0",
    "replicate": "#d0709f",
}
FRONT = 100  # jobs of the README's picture
mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "benchmarks",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "axes.edgecolor": GRID,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "legend.frameon": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
        ),
    }
)


def draw(folder, found):
    """Draw what was found; give by section the names of the files and what they show."""
    drawn = {}
    for section, chart in CHARTS.items():
        if section in found:
            drawn[section] = chart(folder, found[section])
    return drawn


def _save(figure, folder, name):
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = path.read_text("utf-8")
    for colour, variable in NAMES.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    light = "".join(f"--{NAMES[colour]}:{colour};" for colour in NAMES)
    dark = "".join(f"--{NAMES[colour]}:{other};" for colour, other in DARK.items())
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    text = re.sub(r"(<svg [^>]*>)", rf"\1{style}", text, count=1)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
    return path.name


def _plain(axis):
    """Write the numbers of a logarithmic axis as one reads them."""
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def _client(name):
    """Give the short name of a client, or of what was done with it."""
    return name.partition(":")[0].partition(",")[0]


def _bars(axes, rows, column, title, *, log=False):
    """Draw a bar for each row, the first on top, with its figure and its target."""
    rows = [row for row in rows if isinstance(row.figures.get(column), Figure)]
    figures = [row.figures[column] for row in rows]
    places = range(len(rows))
    axes.barh(
        places,
        [figure.median for figure in figures],
        xerr=[
            [max(0.0, figure.median - figure.least) for figure in figures],
            [max(0.0, figure.most - figure.median) for figure in figures],
        ],
        color=[COLOURS.get(_client(row.name), "#8b949e") for row in rows],
        ecolor=INK,
        error_kw={"linewidth": 0.8},
        height=0.7,
        log=log,
    )
    for place, figure in zip(places, figures, strict=True):
        text = f"{number(figure.median)} {figure.unit}"
        axes.annotate(text, (figure.most, place), (6, 0), textcoords="offset points", va="center")
        if figure.target is not None:
            axes.plot(
                [figure.target] * 2, [place - 0.45, place + 0.45], color=INK, linewidth=1.5, linestyle=":"
            )
    axes.set_yticks(places, [row.name.replace(", a loop for each job", ", a loop each") for row in rows])
    axes.invert_yaxis()
    if log:
        _plain(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.25)
    axes.set_title(title)


def _simple(name, column, title):
    def chart(folder, tables):
        rows = tables[0].rows
        figure, axes = plt.subplots(figsize=(8, 0.9 + 0.36 * len(rows)), layout="constrained")
        _bars(axes, rows, column, title)
        return {_save(figure, folder, name): title}

    return chart


def _waiters(folder, tables):
    rows = tables[0].rows
    figure, axes = plt.subplots(2, 1, figsize=(8, 1.6 + 0.68 * len(rows)), layout="constrained")
    _bars(axes[0], rows, "memory of each", "Memory of a waiting job (bytes, log)", log=True)
    _bars(axes[1], rows, "CPU", "CPU while they wait (% of a core, log)", log=True)
    return {_save(figure, folder, "waiting"): "Memory and CPU of waiting jobs, by client"}


def _quota(folder, tables):
    drawn = {}
    for table, name in zip(tables, ("quota", "quota-retry-after"), strict=False):
        rows = [row for row in table.rows if "retries raised" not in row.name]
        clients = list(dict.fromkeys(row.name for row in rows))
        numbers = list(dict.fromkeys(row.figures["jobs"].median for row in rows))
        figure, axes = plt.subplots(3, 1, figsize=(8, 7.5), layout="constrained", sharex=True)
        wide = 0.8 / len(clients)
        for index, client in enumerate(clients):
            mine = [row.figures for row in rows if row.name == client]
            places = [place - 0.4 + wide * (index + 0.5) for place in range(len(numbers))]
            style = {"width": wide * 0.9, "color": COLOURS[_client(client)]}
            finished = [100 * f["finished"].median / f["jobs"].median for f in mine]
            axes[0].bar(places, finished, label=_client(client), **style)
            axes[1].bar(places, [f["requests"].median / f["jobs"].median for f in mine], **style)
            whole = [getattr(f["makespan"], "median", 0) for f in mine]
            axes[2].bar(places, whole, **style)
            for panel, heights in zip(axes[::2], (finished, whole), strict=True):
                for place, height in zip(places, heights, strict=True):
                    if not height:
                        panel.annotate("x", (place, 0), ha="center", va="bottom", color=style["color"])
        axes[0].set_title(f"{table.title.partition(': ')[2]}\nJobs that finished (%); x: none")
        axes[1].set_title("Requests for each job (log)")
        axes[1].set_yscale("log")
        _plain(axes[1].yaxis)
        axes[2].set_title("Makespan over the least that the quota allows; x: not all finished")
        axes[2].axhline(1, color=INK, linewidth=1, linestyle=":")
        axes[2].set_xticks(range(len(numbers)), [f"{number:g} jobs" for number in numbers])
        for panel in axes:
            panel.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=len(clients))
        if name == "quota":
            _front(folder, table)
        drawn[_save(figure, folder, name)] = f"Waiting under the quota, {table.title.partition(': ')[2]}"
    return drawn


def _front(folder, table):
    """Draw for the README what becomes of a hundred jobs; the others have their retries raised."""
    rows = [
        row
        for row in table.rows
        if row.figures["jobs"].median == FRONT
        and (row.name.startswith("qamera-async") or "retries raised" in row.name)
    ]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", sharey=True)
    names = [_client(row.name).replace("aiohttp", "a loop for each job") for row in rows]
    for panel, column, title in (
        (axes[0], "finished", f"Of {FRONT} jobs, finished"),
        (axes[1], "requests", "Requests sent for them"),
    ):
        found = [row.figures[column].median for row in rows]
        panel.barh(range(len(rows)), found, color=[COLOURS[_client(row.name)] for row in rows], height=0.7)
        for place, value in enumerate(found):
            panel.annotate(number(value), (value, place), (5, 0), textcoords="offset points", va="center")
        panel.set_yticks(range(len(rows)), names)
        panel.margins(x=0.2)
        panel.grid(visible=False, axis="y")
        panel.set_title(title)
    axes[0].invert_yaxis()
    return _save(figure, folder, "front")


def _lengths(name):
    return float(name.partition(" ")[0].replace(",", ""))


def _stall(folder, tables):
    rows = tables[0].rows
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for kind, line in (("changed, plain", "-"), ("changed, gzip", "--"), ("unchanged, plain", ":")):
        found = [row for row in rows if row.name.endswith(f", {kind}") or row.name.endswith(f" {kind}")]
        found = [row for row in found if row.name.partition("videos, ")[2] == kind]
        for column, colour in (("qamera-async", COLOURS["qamera-async"]), ("bare loop", COLOURS["aiohttp"])):
            axes.loglog(
                [_lengths(row.name) for row in found],
                [row.figures[column].median for row in found],
                line,
                color=colour,
                marker="o",
                markersize=4,
                label=f"{column}: {kind}",
            )
    for row in rows:
        target = row.figures["qamera-async"].target
        if target is not None:
            axes.plot(_lengths(row.name), target, "_", color=INK, markersize=14)
    axes.set_title("The worst stall of the event loop in a poll (ms); — the target")
    axes.set_xlabel("videos in the list")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.legend(fontsize=9)
    return {_save(figure, folder, "stall"): "The worst stall of the event loop, by the length of the list"}


def _growth(folder, tables):
    rows = tables[0].rows
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row, colour in zip(rows, ("#1f8a5b", "#5b8fd6", "#9a7bd0", "#d0709f", "#d4793a"), strict=True):
        points = {
            _lengths(name): value
            for name, value in row.figures.items()
            if name not in ("slope", "last decade")
        }
        unit = next(iter(points.values())).unit
        axes.loglog(
            list(points),
            [value.median for value in points.values()],
            "--" if unit == "MiB" else "-",
            color=colour,
            marker="o",
            markersize=4,
            label=f"{row.name} ({unit}), slope {number(row.figures['slope'].median)}",
        )
    axes.set_title("How the cost grows")
    axes.set_xlabel("jobs, or videos in the list")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.legend(fontsize=9)
    return {_save(figure, folder, "growth"): "CPU and memory over the number of jobs or videos"}


CHARTS = {
    "waiting": _quota,
    "request": _simple("request", "over raw aiohttp", "CPU of one request over raw aiohttp with .json()"),
    "imports": _simple("imports", "over aiohttp", "CPU of the import over aiohttp's"),
    "waiters": _waiters,
    "stall": _stall,
    "growth": _growth,
}
