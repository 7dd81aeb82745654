"""The page of the web app in a real browser: it shows what happens as it happens, and asks what to do."""

import asyncio

import pytest
import pytest_asyncio
from browser import chromium
from test_report_browser import CONTRASTS, Seen
from test_web_app import running

from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

APP = "web_app.py"
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>"
LIVE = "#connection[data-state=live]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox():
    async with Sandbox(job_seconds=0.4, quota=None, credits=10**6) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(loop_scope="module")
async def app(sandbox, tmp_path):
    async with running(APP, tmp_path, sandbox) as app:
        yield app


@pytest_asyncio.fixture(loop_scope="module")
async def look(browser):
    """Give a function that opens the page of an app."""
    opened = []

    async def look(app, **options):
        context = await browser.new_context(**options)
        context.set_default_timeout(15_000)
        opened.append(context)
        seen = Seen(await context.new_page())
        await seen.page.goto(app.url)
        await seen.page.wait_for_selector(LIVE)
        return seen

    yield look
    for context in opened:
        await context.close()


def card(page, title):
    return page.locator(".card").filter(has=page.get_by_role("heading", name=title, exact=True))


async def order(page, image, suggestion=""):
    """Fill in the form and send it, with the keyboard alone."""
    await page.get_by_label("Image id").fill(image)
    await page.keyboard.press("Tab")
    await page.keyboard.type(suggestion)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")


async def plays(page, title):
    """Wait until the clip of a card plays."""
    video = card(page, title).locator("video")
    await page.wait_for_function(
        "(v) => v.currentTime > 0 && v.videoWidth > 0 && !v.paused", arg=await video.element_handle()
    )


async def all_kinds(app, sandbox):
    """Order a job of each kind: done, failed, in doubt, refused, and one that stays in the making."""
    await app.order("form-done-1", "img_done", suggestion=ATTACK)
    sandbox.trouble("fail_job")
    await app.order("form-failed", "img_failed", suggestion="A slow pan from the collar down to the hem")
    sandbox.trouble("reset_after")
    await app.order("form-doubt-1", "img_doubt")
    sandbox.trouble("error", status=402)
    await app.order("form-refused", "img_refused")
    await app.post("/jobs", {"id": "form-reel-1", "kind": "reel", "images": [f"img_{n}" for n in range(10)]})
    for form, state in (("form-done-1", "done"), ("form-failed", "failed"), ("form-reel-1", "done")):
        await app.until(form, state)
    sandbox._world._job_seconds = 600.0
    await app.order("form-pending", "img_pending")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_it_can_be_read_everywhere(look, app, sandbox, width, scheme):
    """Wide and narrow, light and dark: nothing overflows, each text has contrast, and no error is logged."""
    await all_kinds(app, sandbox)
    seen = await look(app, viewport={"width": width, "height": 900}, color_scheme=scheme)
    await seen.page.wait_for_selector("#jobs .card >> nth=5")
    contrasts = await seen.page.evaluate(CONTRASTS)
    ground = await seen.page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert await seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(contrasts) > 15
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
    assert (sum(map(int, ground[4:-1].split(", "))) > 384) == (scheme == "light")
    assert seen.troubles == []
    assert all(url.startswith(app.url) for url in seen.asked)


async def test_an_order_is_followed_without_a_reload(look, app):
    """From the form to the clip that plays, by the keyboard; what was typed is never markup."""
    seen = await look(app)
    page = seen.page
    await page.evaluate("window.sameDocument = true")
    await page.evaluate(
        """() => {
            window.states = [];
            const look = () => window.states.push(document.querySelector(".card .state")?.textContent);
            const all = { subtree: true, childList: true, characterData: true };
            new MutationObserver(look).observe(document.querySelector("#jobs"), all);
        }"""
    )
    await order(page, "img_1", ATTACK)
    await plays(page, "img_1")
    states = await page.evaluate("states")

    assert {"In the making: processing", "Done"} <= {*states}
    assert await page.evaluate("window.sameDocument")
    assert await card(page, "img_1").locator(".suggestion").text_content() == ATTACK
    assert await page.locator("#jobs script, #jobs img").count() == 0
    assert await page.locator("#news").text_content() == "img_1: Done. "
    assert await page.locator("#images").input_value() == ""
    assert await page.evaluate("document.activeElement.id") == "images"
    assert seen.troubles == []


async def test_a_reel_has_several_images_and_no_suggestion(look, app, sandbox):
    """Each image on a line of its own, in that order."""
    page = (await look(app)).page
    await page.get_by_label("Reel", exact=True).check()
    suggestion = await page.locator("#suggestion").is_visible()
    await page.get_by_label("Image ids").fill("img_b\nimg_a\n img_c, img_d")
    await page.get_by_role("button", name="Order the clip").click()
    await card(page, "Reel of img_b, img_a, img_c, img_d").locator("video").wait_for()

    assert not suggestion
    assert sandbox.orders[0].body == {"imagesIds": ["img_b", "img_a", "img_c", "img_d"]}


async def test_a_reload_and_a_restart_keep_it(look, sandbox, tmp_path):
    """The page comes back by itself when the server does, and its clip plays as before."""
    async with running(APP, tmp_path, sandbox) as app:
        page = (await look(app)).page
        await order(page, "img_1")
        await plays(page, "img_1")
        await page.reload()
        await card(page, "img_1").locator("video").wait_for()
        await page.evaluate("window.sameDocument = true")
        await app.stop()
        await page.wait_for_selector("#connection[data-state=lost]")
    port = int(app.url.rpartition(":")[2])
    async with running(APP, tmp_path, sandbox, port) as app:
        await page.wait_for_selector(LIVE)
        await order(page, "img_2")
        await plays(page, "img_2")
        await card(page, "img_1").locator("video").evaluate("(v) => { v.muted = true; return v.play(); }")
        await plays(page, "img_1")

        assert await page.evaluate("window.sameDocument")
        assert len(sandbox.orders) == 2


async def test_a_failed_job_says_why_and_can_be_filled_in_again(look, app, sandbox):
    """In the server's word; the form then has what was asked for, and is an order of its own."""
    sandbox.trouble("fail_job", status="EXPIRED")
    seen = await look(app)
    await order(seen.page, "img_1", "Too fast")
    failed = card(seen.page, "img_1").and_(seen.page.locator(".failed"))
    await failed.wait_for()
    why = await failed.locator(".why").text_content()
    await failed.get_by_role("button", name="Fill in again").click()
    filled = await seen.page.locator("#images").input_value()
    suggestion = await seen.page.locator("#suggestion").input_value()
    await seen.page.keyboard.press("Enter")
    await plays(seen.page, "img_1")

    assert "EXPIRED" in why
    assert (filled, suggestion) == ("img_1", "Too fast")
    assert len(sandbox.orders) == 2
    assert seen.troubles == []


async def in_doubt(look, app, sandbox):
    sandbox.trouble("reset_after")
    seen = await look(app)
    await order(seen.page, "img_lost")
    doubt = card(seen.page, "img_lost")
    await doubt.get_by_role("button", name="This is it").wait_for()
    return seen.page, doubt


async def test_a_doubt_can_be_adopted(look, app, sandbox):
    """The page asks, and the record that is chosen is followed to its clip; the focus stays with the card."""
    page, doubt = await in_doubt(look, app, sandbox)
    asked = await doubt.locator(".ask").text_content()
    await doubt.get_by_role("button", name="This is it").focus()
    await page.keyboard.press("Enter")
    await plays(page, "img_lost")

    assert "Did one of these come of it?" in asked
    assert not await doubt.locator(".doubt").is_visible()
    assert await page.evaluate("document.activeElement.textContent") == "img_lost"
    assert len(sandbox.orders) == 1


async def test_a_doubt_can_be_abandoned(look, app, sandbox):
    """Nothing came of it, so that it can be ordered again."""
    page, doubt = await in_doubt(look, app, sandbox)
    await doubt.get_by_role("button", name="Nothing came of it").click()
    await doubt.get_by_role("button", name="Fill in again").click()
    state = await doubt.locator(".state").text_content()
    await page.get_by_role("button", name="Order the clip").click()
    await page.locator(".card video").wait_for()

    assert state == "Nothing came of it"
    assert len(sandbox.orders) == 2


async def test_a_double_click_orders_once(look, app, sandbox):
    """Neither two clicks nor two Enters make two of it; the same filled in anew is a second order."""
    page = (await look(app)).page
    sandbox.trouble("slow", seconds=0.2)
    await page.get_by_label("Image id").fill("img_1")
    await page.evaluate(
        """() => {
            const form = document.querySelector("form");
            form.requestSubmit();
            form.requestSubmit();
            form.querySelector("button.main").click();
        }"""
    )
    await plays(page, "img_1")
    once = len(sandbox.orders)
    await order(page, "img_1")
    await page.locator(".card.done >> nth=1").wait_for()

    assert once == 1
    assert len(sandbox.orders) == 2


async def test_a_second_try_after_a_lost_answer_is_the_same_order(look, app, sandbox):
    """The page says that it is safe to try again, and it is."""
    page = (await look(app)).page

    async def lost(route):
        await route.fetch()
        await route.abort()

    await page.route("**/jobs", lost, times=1)
    await order(page, "img_1")
    await page.get_by_text("it will not be ordered twice").wait_for()
    kept = await page.locator("#images").input_value()
    await page.get_by_role("button", name="Order the clip").click()
    await plays(page, "img_1")
    await page.wait_for_function("() => document.querySelector('#images').value === ''")

    assert kept == "img_1"
    assert len(sandbox.orders) == 1
    assert await page.locator(".card").count() == 1


async def test_what_is_refused_is_said_at_the_form(look, app, sandbox):
    """In words, with what was typed still there; a fault of the form itself isn't even sent."""
    page = (await look(app)).page
    await page.get_by_role("button", name="Order the clip").click()
    first = await page.locator("#error").text_content()
    invalid = await page.locator("#images").get_attribute("aria-invalid")
    await page.get_by_label("Image id").fill("a b")
    await page.keyboard.press("Enter")
    second = await page.locator("#error").text_content()
    sent = len(sandbox.requests)
    sandbox.trouble("error", status=402)
    await order(page, "img_1")
    await page.wait_for_function("() => document.querySelector('#error').textContent.includes('credits')")

    assert (first, invalid) == ("An image id is needed.", "true")
    assert "choose Reel" in second
    assert sent == 0
    assert await page.locator("#images").input_value() == "img_1"
    assert "credits" in await card(page, "img_1").locator(".why").text_content()


async def test_a_page_that_nobody_sees_holds_no_connection(look, app):
    """It closes its stream, and gets what it has missed when it is looked at again, not all."""
    seen = await look(app)
    page = seen.page
    await app.order("form-before", "img_before")
    await card(page, "img_before").locator("video").wait_for()
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    await page.evaluate(hide, True)
    await app.order("form-missed", "img_missed")
    await app.until("form-missed", "done")
    missed = await card(page, "img_missed").count()
    await page.evaluate(hide, False)
    await card(page, "img_missed").locator("video").wait_for()

    assert missed == 0
    assert [url.partition("?since=")[2] != "" for url in seen.asked if "/events" in url] == [False, True]
    assert seen.troubles == [f"failed: {app.url}/events"]  # the one that it gave up


async def test_many_cards_stay_in_their_order(look, app):
    """What asks for a decision is first, then the newest, wherever a change comes from."""
    for number in range(5):
        await app.order(f"form-{number:05}", f"img_{number}")
    page = (await look(app)).page
    await page.wait_for_selector("#jobs .card >> nth=4")
    async with asyncio.timeout(20):
        while await page.locator(".card.done").count() < 5:
            await asyncio.sleep(0.02)

    assert await page.locator(".card h3").all_text_contents() == [f"img_{n}" for n in (4, 3, 2, 1, 0)]
