"""The report in a real browser, opened as a file: it looks right, plays, and runs nobody's script."""

import asyncio
import itertools
import shutil
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from browser import chromium

import qamera_async as q
from qamera_async.ledger import LedgerEntry, LedgerState
from qamera_async.report import thumbnail_path, write_report
from qamera_async.report.page import write_page
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

ATTACK = "<img src=x onerror=alert(1)>"
LONG = "denim-jacket-" + "indigo" * 40
SUGGESTION = "A slow pan from the collar down to the hem; " * 7
ODD = ("a b #1", "what?", "100%25", "ü 服 <b>&'")
SIZES = pytest.mark.parametrize("width", [1280, 390])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def report(tmp_path_factory):
    """Give the report of 14 requests on the sandbox: one failed, one ambiguous, one refused, odd names."""
    folder = tmp_path_factory.mktemp("report")
    clips = folder / "clips"
    quick = {"polling": q.PollPolicy(0.02, 0.1, 0.1), "timeouts": q.Timeouts(reconcile=0.2)}
    async with Sandbox(job_seconds=0.1, quota=None) as sandbox:
        async with sandbox.session(**quick, ledger=folder / "jobs.db") as qamera:
            sandbox.trouble("fail_job")
            await qamera.batch([q.VideoRequest("img_f", ref="sku-failed")])
            sandbox.trouble("reset_after")
            await qamera.batch([q.VideoRequest("img_a", ref=ATTACK, suggestion=ATTACK)])
            sandbox.trouble("error", status=400)
            await qamera.batch([q.VideoRequest("img_r", ref="sku-refused")])
            done = [q.VideoRequest(f"img_{n}", ref=f"sku-{n}", suggestion=SUGGESTION) for n in range(6)]
            await qamera.batch([*done, q.ReelRequest(["a"] * 10, ref=LONG)], download_to=clips)
            for number, name in enumerate(ODD):
                one = q.VideoRequest("img_odd", ref=f"odd-{number} {name}")
                (outcome,) = (await qamera.batch([one], download_to=clips / name)).outcomes
                thumbnail = thumbnail_path(outcome.path)
                thumbnail.parent.mkdir()
                await qamera.download_thumbnail(outcome.record, thumbnail)
    return await write_report(folder / "jobs.db", folder / "the report #1.html", title="Spring")


class Seen:
    """A page, and what it did that it shouldn't have."""

    def __init__(self, page):
        self.page = page
        self.troubles = []
        self.asked = []
        page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda request: self.troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("dialog", self._dialog)

    async def _dialog(self, dialog):
        self.troubles.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


@pytest_asyncio.fixture(loop_scope="module")
async def look(browser):
    """Give a function that opens a report."""
    opened = []

    async def look(file, fragment="", **options):
        context = await browser.new_context(**options)
        context.set_default_timeout(5000)
        opened.append(context)
        seen = Seen(await context.new_page())
        await seen.page.goto(file.as_uri() + fragment)
        return seen

    yield look
    for context in opened:
        await context.close()


async def all_in_view(page):
    """Scroll through, so that all that waits to be seen is there."""
    await page.evaluate(
        """async () => {
            for (let y = 0; y < document.body.scrollHeight; y += 400) {
                scrollTo(0, y);
                await new Promise(requestAnimationFrame);
            }
        }"""
    )
    await page.wait_for_load_state("networkidle")


async def names(page):
    """Give the names of the cards that can be seen."""
    return await page.locator(".card:visible h3").all_text_contents()


@SIZES
async def test_it_shows_all_without_any_trouble(look, report, width):
    """From a file, with no network: no error, no failed request, and nothing from anywhere but the folder."""
    seen = await look(report, viewport={"width": width, "height": 900})
    await all_in_view(seen.page)
    loaded = await seen.page.evaluate("[...document.images].map((i) => i.complete && i.naturalWidth > 0)")

    assert seen.troubles == []
    assert loaded == [True] * len(ODD)
    assert await seen.page.locator(".card").count() == 14
    assert all(url.startswith(report.parent.as_uri()) for url in seen.asked)


async def play(page, name):
    """Click a card's clip; give the video once it plays."""
    card = page.locator(".card").filter(has=page.get_by_text(name, exact=True))
    await card.locator("a.media").click()
    video = card.locator("video")
    await page.wait_for_function(
        "(v) => v.currentTime > 0 && v.videoWidth > 0", arg=await video.element_handle()
    )
    return video


async def test_a_click_plays_the_clip_in_its_place(look, report):
    """It's the file beside the report, and it goes on; the thumbnail has made room."""
    seen = await look(report)
    before = seen.page.url
    video = await play(seen.page, "sku-2")

    assert await video.evaluate("(v) => v.currentSrc") == (report.parent / "clips" / "sku-2.mp4").as_uri()
    assert await video.evaluate("(v) => v.controls && v.readyState >= 2 && !v.error")
    assert await seen.page.locator("a.media").count() == 10
    assert seen.page.url == before
    assert seen.troubles == []


async def test_the_keyboard_is_enough(look, report):
    """From the search on, the next stop is a clip, and Enter plays it."""
    seen = await look(report, "#done")
    await seen.page.get_by_role("searchbox").fill("sku-3")
    await seen.page.keyboard.press("Tab")
    await seen.page.keyboard.press("Enter")
    video = seen.page.locator("video")
    await video.wait_for()

    assert await video.evaluate("(v) => v.src.endsWith('sku-3.mp4') && v === document.activeElement")


@pytest.mark.parametrize(("number", "name"), [*enumerate(ODD)])
async def test_clips_with_odd_names_play(look, report, number, name):
    """Blanks, #, ?, %, other scripts and markup in a name lead to the file, as does its thumbnail."""
    seen = await look(report)
    video = await play(seen.page, f"odd-{number} {name}")
    (clip,) = (report.parent / "clips" / name).glob("*.mp4")

    assert await video.evaluate("(v) => decodeURIComponent(v.currentSrc)") == f"file://{clip}"
    assert seen.troubles == []


async def test_a_clip_that_is_gone_says_so(look, report, tmp_path):
    """Where a clip was moved since, a click tells instead of showing nothing."""
    alone = tmp_path / "report.html"
    shutil.copy(report, alone)
    seen = await look(alone)
    await seen.page.locator("a.media").first.click()
    await seen.page.get_by_text("This clip can't be played").wait_for()

    assert await seen.page.locator("video").count() == 0


@pytest.mark.parametrize(
    ("group", "shown"),
    [
        ("failed", ["sku-failed"]),
        ("ambiguous", [ATTACK]),
        ("rest", ["sku-refused"]),
        ("done", [*(f"sku-{n}" for n in range(6)), LONG, *(f"odd-{n} {name}" for n, name in enumerate(ODD))]),
    ],
)
async def test_a_filter_shows_just_what_it_says(look, report, group, shown):
    """The button is pressed, its number is that of the cards, and the address keeps it."""
    seen = await look(report)
    button = seen.page.locator(f"[data-show={group}]").and_(seen.page.locator("button"))
    await button.click()
    await seen.page.locator(f".sheet[data-show={group}]").wait_for()
    again = await look(report, f"#{group}")

    assert await names(seen.page) == await names(again.page) == shown
    assert await seen.page.locator("output").inner_text() == f"{len(shown)} shown"
    assert await button.locator("span").inner_text() == str(len(shown))
    assert await seen.page.locator("[aria-pressed=true]").get_attribute("data-show") == group


async def test_a_search_finds_refs_and_ids(look, report):
    """Letter case aside, all words; within the filter; what matches nothing says so."""
    seen = await look(report)
    search = seen.page.get_by_role("searchbox")
    found = []
    for words in ("SKU-4", "img_odd odd-2", "img_f", "vid_ img_1", "onerror", "nowhere"):
        await search.fill(words)
        found.append([name.split(" ")[0] for name in await names(seen.page)])
    empty = await seen.page.locator(".nothing").is_visible()
    await search.fill("sku-")
    await seen.page.locator("button[data-show=failed]").click()
    await seen.page.locator(".sheet[data-show=failed]").wait_for()

    assert found == [["sku-4"], ["odd-2"], ["sku-failed"], ["sku-1"], ["<img"], []]
    assert empty
    assert await names(seen.page) == ["sku-failed"]


async def test_a_ref_that_is_markup_stays_text(look, report):
    """It is read, searched and shown, and never runs: no dialog, no request."""
    seen = await look(report, "#ambiguous")
    await seen.page.locator("summary").click()
    await seen.page.locator(".card.ambiguous .says").click()
    await seen.page.wait_for_timeout(100)

    assert await names(seen.page) == [ATTACK]
    assert await seen.page.locator("img[src=x]").count() == 0
    assert seen.troubles == []


async def test_the_policy_stops_what_the_template_would_let_through(look, report, tmp_path):
    """A second wall: markup put into the page by force runs nothing and asks nobody."""
    asked = []

    async def heard(_, writer):
        asked.append(1)
        writer.close()

    forced = tmp_path / "forced.html"
    async with await asyncio.start_server(heard, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        evil = (
            f"<script>alert(1)</script><img src=x onerror=alert(2)><img src='{url}'>"
            f"<script src='{url}'></script><b style='color:red'></b>"
        )
        forced.write_text(report.read_text("utf-8").replace("<header>", f"<header>{evil}", 1), "utf-8")
        seen = await look(forced)
        await seen.page.wait_for_timeout(100)

    assert asked == []
    assert not [trouble for trouble in seen.troubles if trouble.startswith("dialog")]
    assert len([trouble for trouble in seen.troubles if "Content Security Policy" in trouble]) >= 5


OVERLAPS = """() => {
    const box = (e) => e.getBoundingClientRect();
    const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
    const groups = [[...document.querySelectorAll("header, section")],
        [...document.querySelectorAll(".card")],
        [...document.querySelectorAll(".tools > *")], [...document.querySelectorAll(".totals > div")],
        ...[...document.querySelectorAll(".card .text")].map((e) => [...e.children]),
        ...[...document.querySelectorAll(".card dl div")].map((e) => [...e.children])];
    const found = [];
    for (const group of groups) for (const [place, one] of group.entries())
        for (const other of group.slice(place + 1))
            if (over(box(one), box(other))) found.push(`${one.outerHTML} / ${other.outerHTML}`.slice(0, 300));
    for (const card of document.querySelectorAll(".card")) for (const one of card.querySelectorAll("*")) {
        const wide = one.clientWidth > 0 && getComputedStyle(one).display !== "inline";
        if (box(one).right > box(card).right + 1 || wide && one.scrollWidth > one.clientWidth + 1)
            found.push(`out: ${one.outerHTML}`.slice(0, 300));
    }
    return found;
}"""


@SIZES
async def test_nothing_overlaps_or_sticks_out(look, report, width):
    """Long names and suggestions wrap or are cut, at a desk and on a phone; no sideways scrolling."""
    seen = await look(report, viewport={"width": width, "height": 900})
    await seen.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    await all_in_view(seen.page)

    assert await seen.page.evaluate(OVERLAPS) == []
    assert await seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("seconds", [0.25, 0.8, 15.5, 55, 590, 7200, 100_000, 86_400 * 9])
async def test_the_labels_of_the_axis_keep_apart(look, tmp_path, seconds):
    """However long a batch took, its times and dates can be read on a phone."""
    at = datetime(2026, 11, 24, 9, 0, 1, tzinfo=UTC)
    jobs = [
        LedgerEntry(
            f"{part}",
            "https://app.qamera.ai",
            q.VideoRequest("i", ref=f"a-name-that-takes-its-room-{part}"),
            LedgerState.DONE,
            claimed_at=at + timedelta(seconds=seconds * part / 40),
            sent_at=at + timedelta(seconds=seconds * (part + 1) / 40),
        )
        for part in range(40)
    ]
    file = write_page(jobs, ledger=tmp_path / "l.db", to=tmp_path / "report.html", title="", made=at)
    seen = await look(file, viewport={"width": 390, "height": 900})
    gaps = {}
    for kind in ("tick", "date"):
        edges = await seen.page.evaluate(
            "(kind) => [...document.querySelectorAll(`.axis .${kind}`)]"
            ".map((e) => e.getBoundingClientRect()).map((box) => [box.left, box.right])",
            kind,
        )
        gaps[kind] = [after[0] - before[1] for before, after in itertools.pairwise(edges)]

    assert len(gaps["tick"]) >= 2
    assert min([*gaps["tick"], *gaps["date"]]) >= 5


CONTRASTS = """() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const colour = rgb(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    const found = {};
    for (const e of document.querySelectorAll("body *")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !e.checkVisibility() || e.closest("script, title")) continue;
        const style = getComputedStyle(e);
        const colour = rgb(e.closest("svg") ? style.fill : style.color);
        const pair = [light(colour), light(ground(e))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        const name = `${e.tagName} ${e.className.baseVal ?? e.className}`;
        found[name] = Math.min(found[name] ?? 99, ratio);
    }
    return found;
}"""


async def test_dark_is_dark_and_both_can_be_read(look, report):
    """Each text has the contrast that WCAG's level AA asks for, and the two schemes are two."""
    grounds = []
    for scheme in ("light", "dark"):
        seen = await look(report, color_scheme=scheme)
        await all_in_view(seen.page)
        contrasts = await seen.page.evaluate(CONTRASTS)
        grounds.append(await seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))

        assert len(contrasts) > 15
        assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
    assert [sum(map(int, ground[4:-1].split(", "))) > 384 for ground in grounds] == [True, False]


async def test_bars_are_drawn_in_order_and_in_view(look, report):
    """Each part of a bar is where the page says, below the one before, and its colour can be told."""
    seen = await look(report)
    tops = await seen.page.evaluate(
        "[...document.querySelectorAll('.bar')].map((b) => b.querySelector('rect').getBoundingClientRect().y)"
    )
    fills = await seen.page.evaluate(
        "[...document.querySelectorAll('.legend rect')].map((rect) => getComputedStyle(rect).fill)"
    )

    assert len(tops) == 14
    assert all(lower > upper for upper, lower in itertools.pairwise(tops))
    assert len(set(fills)) == len(fills) == 7


async def test_without_script_the_clips_are_links(look, report):
    """Who switches scripts off has all cards, and a clip opens by itself."""
    seen = await look(report, java_script_enabled=False)

    assert len(await names(seen.page)) == 14
    assert not await seen.page.locator(".tools").is_visible()
    assert await seen.page.locator("a.media").first.get_attribute("href") == "clips/sku-0.mp4"
