"""What a client costs before it waits for anything: one request, and its import."""

import os
import resource
import subprocess
import sys
import time

import aiohttp
from clients import CLIENTS, KEY, REGISTER, installed
from processes import fake
from report import Row, Table, figure, row

from qamera_async import QameraSession, RateLimiter

HELP = "import sys; sys.argv = ['qamera', '--help']; from qamera_async.cli.main import main; main()"
FRESH = "both on a fresh connection each: on a kept one that the server closes a POST is ambiguous"
IMPORTS = {
    "aiohttp, a loop for each job": "import aiohttp",
    "httpx, a loop for each job": "import httpx; httpx.AsyncClient",
    "runwayml": "import runwayml; runwayml.AsyncRunwayML",
    "openai": "import openai; openai.AsyncOpenAI",
    "replicate": "import replicate.client",
}
REQUEST = """
CPU of one GET, and of one registration, over that of raw aiohttp with `.json()` and the same answer, in one
process and in turn. The list holds 10 videos; a peer asks for its own object, which is smaller. Not the
same work: qamera-async and the peers check and build values, raw aiohttp gives a dict.
"""
IMPORT = """
CPU of a new interpreter that imports the client, less that of one that imports nothing; in turn. httpx,
runwayml, openai and replicate bring another HTTP client than aiohttp.
"""


async def request(scale):
    """Measure one request of each client against raw aiohttp with .json(), on the same body."""
    table = Table("One request", REQUEST)
    names, table.left_out = installed()
    async with (
        fake(records=10, listed=True) as server,
        aiohttp.ClientSession(headers={"X-Api-Key": KEY}) as raw,
    ):
        fresh = aiohttp.ClientSession(
            headers={"X-Api-Key": KEY}, connector=aiohttp.TCPConnector(force_close=True)
        )
        budget = RateLimiter(10**6, 0.001)

        def bare(session, method, path):
            async def call():
                async with session.request(method, server.url + path, json=body.get(method)) as response:
                    await response.json()

            return call

        async def order():
            await ours.register_video(image_id="img_1")

        async with fresh, QameraSession(KEY, base_url=server.url, rate_limiter=budget) as ours:
            body = {"POST": {"imageId": "img_1"}}
            pairs = {}
            opened = [
                CLIENTS[name](server.url, **({"rate_limiter": budget} if "qamera" in name else {}))
                for name in names
            ]
            for name, client in zip(names, opened, strict=True):
                await client.__aenter__()
                pairs[name] = (client.get, bare(raw, "GET", client.path), "")
            pairs["qamera-async, a registration"] = (
                order,
                bare(fresh, "POST", REGISTER),
                FRESH,
            )
            ratios, spent = await _in_turn({name: pair[:2] for name, pair in pairs.items()}, scale)
            for client in opened:
                await client.__aexit__(None, None, None)
    for name, pair in pairs.items():
        target = 1.15 if name == "qamera-async" else None
        table.rows.append(
            Row(
                name,
                {
                    "over raw aiohttp": figure(ratios[name], "x", target),
                    "CPU of one": figure([seconds * 1000 for seconds in spent[name]], "ms"),
                },
                pair[2],
            )
        )
    return table


async def _in_turn(pairs, scale):
    ratios, spent = {name: [] for name in pairs}, {name: [] for name in pairs}
    for number in range(scale.rounds + 1):
        for name, calls in pairs.items():
            seconds = []
            for call in calls:
                start = time.process_time()
                for _ in range(scale.requests):
                    await call()
                seconds.append((time.process_time() - start) / scale.requests)
            if number:  # the first opens connections
                ratios[name].append(seconds[0] / seconds[1])
                spent[name].append(seconds[0])
    return ratios, spent


def _seconds(code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # With bytecode written for all, as an installation has it.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603 - our own code
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def imports(scale):
    """Measure the import of each client, net of the interpreter's own start, over aiohttp's."""
    table = Table("Import", IMPORT)
    names, table.left_out = installed()
    codes = {"qamera-async": "import qamera_async"}
    codes |= {name: IMPORTS[name] for name in names if name in IMPORTS}
    seconds = {"nothing": []} | {name: [] for name in codes}
    for number in range(scale.rounds + 1):
        for name, code in {"nothing": "pass", **codes}.items():
            spent = _seconds(code)
            if number:
                seconds[name].append(spent)
    empty = seconds.pop("nothing")
    net = {name: [s - e for s, e in zip(spent, empty, strict=True)] for name, spent in seconds.items()}
    base = net["aiohttp, a loop for each job"]
    for name, spent in net.items():
        target = 1.15 if name == "qamera-async" else None
        ratios = [s / b for s, b in zip(spent, base, strict=True)]
        table.rows.append(
            Row(
                name.partition(", a loop")[0],
                {
                    "over aiohttp": figure(ratios, "x", target),
                    "CPU": figure([s * 1000 for s in spent], "ms"),
                },
            )
        )
    return table


async def command(scale):
    """Measure what the command's help takes."""
    helps, libraries = [], []
    for _ in range(scale.rounds):
        helps.append(_seconds(HELP))
        libraries.append(_seconds("import aiohttp, cyclopts, rich"))
    ratio = figure([a / b for a, b in zip(helps, libraries, strict=True)]).median
    row("qamera --help, CPU over import aiohttp, cyclopts, rich", f"{ratio:.2f} x", "1.5 x", ratio <= 1.5)
