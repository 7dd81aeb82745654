"""The report of a ledger: what is on the page, and that nothing said by others becomes part of it."""

import base64
import hashlib
import itertools
import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qamera_async as q
from qamera_async.ledger import LedgerEntry, LedgerFile, LedgerState
from qamera_async.report import page, thumbnail_path, write_report
from qamera_async.report.axis import Axis
from qamera_async.report.clips import link
from qamera_async.report.timeline import MOST_BARS, timeline
from qamera_async.report.wording import duration, plural, visible
from qamera_async.sandbox import Sandbox

VOID = {"meta", "img", "input", "br", "link"}
NINE = datetime(2026, 11, 24, 9, tzinfo=UTC)
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
State = LedgerState


# --- looking at a page --------------------------------------------------------------------------


@attrs.define
class Element:
    """An element of a page, with the texts and elements in it."""

    tag: str
    attributes: dict
    inside: list = attrs.Factory(list)

    @property
    def elements(self):
        return [one for one in self.inside if isinstance(one, Element)]

    @property
    def text(self):
        return "".join(one if isinstance(one, str) else one.text for one in self.inside)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def all(self, tag=None, css=None):
        for one in self.elements:
            if tag in {None, one.tag} and (css is None or css in one.classes):
                yield one
            yield from one.all(tag, css)

    def one(self, tag=None, css=None):
        (found,) = self.all(tag, css)
        return found

    def shape(self):
        """Give what is markup of it: names and attributes' names, no text."""
        return self.tag, sorted(self.attributes), [one.shape() for one in self.elements]


class Parser(HTMLParser):
    """Builds the elements of a page, and insists that each is closed."""

    def __init__(self):
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attributes):
        one = Element(tag, dict(attributes))
        self.open[-1].inside.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].inside.append(Element(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def parsed(file):
    parser = Parser()
    parser.feed(file.read_text("utf-8"))
    parser.close()
    (whole,) = parser.open
    return whole


def cards(whole):
    """Give the cards by their names."""
    return {card.one("h3").text: card for card in whole.all("article")}


def facts(card):
    return {line.one("dt").text: line.one("dd").text for line in card.one("dl").elements}


def numbers(whole):
    """Give the numbers at the top by their names."""
    lines = [line for block in whole.all("dl", "totals") for line in block.elements]
    return {line.one("dt").text: [dd.text for dd in line.all("dd")] for line in lines}


def bars(whole):
    return list(whole.all("g", "bar"))


def parts(bar):
    """Give the phases of a bar with where they begin and how wide they are."""
    rects = [rect for rect in bar.all("rect") if "mark" not in rect.classes]
    return [(r.classes[0], percent(r.attributes["x"]), percent(r.attributes["width"])) for r in rects]


def percent(text):
    assert text.endswith("%")
    return float(text[:-1])


# --- making one ---------------------------------------------------------------------------------


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, credits=10**6) as sandbox:
        yield sandbox


@pytest.fixture
def made(tmp_path):
    """Give a function that makes a report of what it is given, and reads it."""
    return lambda entries: report_of(entries, tmp_path)


def report_of(entries, folder):
    to = folder / "report.html"
    return parsed(page.write_page(entries, ledger=folder / "jobs.db", to=to, title="Spring", made=NINE))


def requests(number, **fields):
    return [q.VideoRequest(f"img_{n}", ref=f"sku-{n}", **fields) for n in range(number)]


def entry(number=0, state=State.DONE, **fields):
    """Give an entry that was done within a minute, beginning at 9 and a second more for each number."""
    at = NINE + timedelta(seconds=number)
    record = f"vid_{number}"
    usual = {
        "record_ids": (record,),
        "receipt": q.Receipt((record,), credits_reserved=10),
        "claimed_at": at,
        "sent_at": at + timedelta(seconds=10),
        "submitted_at": at + timedelta(seconds=12),
        "settled_at": at + timedelta(seconds=52),
        "downloaded_at": at + timedelta(seconds=60),
    }
    request = fields.pop("request", None) or q.VideoRequest(f"img_{number}", ref=f"sku-{number}")
    return LedgerEntry(f"intent-{number}", "https://app.qamera.ai", request, state, **usual | fields)


def moments(*seconds):
    """Give the five moments of an entry, in seconds after 9; None: unknown."""
    names = ("claimed_at", "sent_at", "submitted_at", "settled_at", "downloaded_at")
    given = [None if second is None else NINE + timedelta(seconds=second) for second in seconds]
    return dict(zip(names, given, strict=True))


# --- from real batches --------------------------------------------------------------------------


async def test_a_batch_is_told_in_numbers_cards_and_bars(session, sandbox, tmp_path):
    """Each request has its card with its clip, what went wrong says why, and the credits add up."""
    sandbox.trouble("fail_job", status="EXPIRED")
    async with session() as qamera:
        await qamera.batch(requests(1), download_to=tmp_path / "clips")
        sandbox.trouble("reset_after")
        await qamera.batch([q.VideoRequest(generated_image_id="gen_x", ref="lost")])
        await qamera.batch(
            [
                *requests(4, suggestion="Slow zoom", provider="pollo")[1:],
                q.ReelRequest(["a", "b"], ref="reel"),
            ],
            download_to=tmp_path / "clips",
        )
    written = await write_report(tmp_path / "jobs.db", tmp_path / "report.html", title="Spring")
    whole = parsed(written)
    sheet = cards(whole)

    assert whole.one("head").one("title").text == whole.one("h1").text == "Spring"
    assert numbers(whole)["done"] == ["4"]
    assert numbers(whole)["failed"] == numbers(whole)["ambiguous"] == ["1"]
    assert numbers(whole)["credits spent"] == ["45", "55 reserved, 10 refunded"]
    assert list(sheet) == ["sku-0", "lost", "sku-1", "sku-2", "sku-3", "reel"]
    assert [len(parts(bar)) for bar in bars(whole)] == [3, 1, 4, 4, 4, 4]
    assert facts(sheet["sku-1"]) | {"Took": "any", "Record": "any"} == {
        "Image": "img_1",
        "Provider": "pollo",
        "Record": "any",
        "Credits": "10",
        "Took": "any",
    }
    assert sheet["sku-1"].one("p", "says").text == "Slow zoom"
    assert facts(sheet["sku-1"])["Record"] in sandbox.records
    assert facts(sheet["reel"])["Images"] == "a, b"
    assert facts(sheet["lost"])["Generated"] == "gen_x"
    assert facts(sheet["sku-0"])["Credits"] == "10, refunded"
    assert sheet["sku-0"].one("p", "why").text == "vid_001: EXPIRED"
    assert "lost" in sheet["lost"].one("p", "why").text
    for name in ("sku-1", "sku-2", "sku-3", "reel"):
        clip = tmp_path / unquote(sheet[name].one("a", "media").attributes["href"])
        assert clip == tmp_path / "clips" / f"{name}.mp4"
        assert clip.is_file()


async def test_the_commands_settle_what_is_ambiguous(sandbox, quick, tmp_path):
    """They are what a shell takes apart into the ledger, the intent and a candidate, each whole."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    async with sandbox.session(**quick, ledger=folder / "my jobs.db") as qamera:
        sandbox.trouble("reset_after")
        await qamera.batch(requests(1))
    written = await write_report(folder / "my jobs.db", folder / "report.html")
    texts = [code.text for code in cards(parsed(written))["sku-0"].all("code")]
    adopt, abandon = map(shlex.split, texts)
    async with LedgerFile(adopt[2]) as ledger:
        await ledger.adopt(*adopt[4:])
    again = parsed(await write_report(folder / "my jobs.db", folder / "report.html"))

    assert adopt[:4] == ["qamera", "ledger", str(folder / "my jobs.db"), "adopt"]
    assert adopt[5:] == list(sandbox.records)
    assert abandon == [*adopt[:3], "abandon", adopt[4]]
    assert cards(again)["sku-0"].one("p", "state").text == "under way"
    assert list(again.all("code")) == []


async def test_what_was_ordered_anew_counts_only_in_the_credits(session, sandbox, tmp_path):
    """Of a ref that failed and was ordered again, the sheet shows the second, the credits have both."""
    sandbox.trouble("fail_job")
    async with session() as qamera:
        await qamera.batch(requests(1))
        await qamera.batch(requests(1), retry_failed=True)
    whole = parsed(await write_report(tmp_path / "jobs.db", tmp_path / "report.html"))

    assert [card.classes for card in whole.all("article")] == [["card", "done"]]
    assert numbers(whole)["credits spent"] == ["10", "20 reserved, 10 refunded"]
    assert numbers(whole)["failed"] == ["0"]
    assert numbers(whole)["ordered anew"][0] == "1"
    assert len(bars(whole)) == 2


async def test_an_empty_ledger_has_a_report(session, tmp_path):
    """Nothing was ordered yet: no timeline, no card, and no number but noughts."""
    async with session() as qamera:
        await qamera.unfinished()
    whole = parsed(await write_report(tmp_path / "jobs.db", tmp_path / "report.html"))

    assert whole.one("h1").text == "Report of jobs.db"
    assert bars(whole) == list(whole.all("article")) == []
    assert numbers(whole)["done"] == ["0"]


# --- where it is written ------------------------------------------------------------------------


async def test_without_a_ledger_nothing_is_written(tmp_path):
    """A name that was mistyped is an error of the ledger."""
    with pytest.raises(q.LedgerError):
        await write_report(tmp_path / "none.db", tmp_path / "report.html")

    assert list(tmp_path.iterdir()) == []


def test_a_report_is_replaced_whole_or_not_at_all(made, tmp_path, monkeypatch):
    """What breaks in the middle leaves the earlier report, and nothing beside it."""
    made([entry()])
    before = (tmp_path / "report.html").read_bytes()
    real = page.card

    def breaks(one, *rest):
        if one.id == "intent-500":
            raise OSError("no space left")
        return real(one, *rest)

    monkeypatch.setattr(page, "card", breaks)
    with pytest.raises(OSError, match="no space left"):
        made([entry(number) for number in range(600)])

    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("place", ["missing/report.html", "folder", "."])
def test_a_target_that_cannot_be_written_is_an_os_error(tmp_path, place, monkeypatch):
    """A folder that isn't there, or a folder in its place; nothing is left beside it."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"No such file|directory|busy"):
        page.write_page([entry()], ledger=Path("jobs.db"), to=Path(place), title="", made=NINE)

    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


async def test_the_loop_is_free_meanwhile(session, tmp_path, monkeypatch):
    """Files are looked for, and the page is written, in another thread."""
    threads = []
    real = page.card
    monkeypatch.setattr(page, "card", lambda *a: (threads.append(threading.current_thread()), real(*a))[1])
    async with session() as qamera:
        await qamera.batch(requests(1))
    await write_report(tmp_path / "jobs.db", tmp_path / "report.html")

    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_without_jinja2_it_says_what_to_install(tmp_path, monkeypatch):
    """The extra isn't installed: a clear error, before the ledger is looked at."""
    monkeypatch.delitem(sys.modules, "qamera_async.report.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(q.ConfigurationError, match=r"pip install 'qamera-async\[cli\]'"):
        await write_report(tmp_path / "none.db", tmp_path / "report.html")


def test_the_package_can_be_imported_without_jinja2():
    """The command asks it where thumbnails belong, and starts without any template."""
    code = "import sys; sys.modules['jinja2'] = None; from qamera_async.report import thumbnail_path"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stderr == ""


# --- clips and thumbnails -----------------------------------------------------------------------


def test_the_first_clip_that_is_there_is_shown_with_its_thumbnail(made, tmp_path):
    """One that was deleted is passed over; without a thumbnail there is a placeholder to click."""
    clips = [tmp_path / "clips" / f"{name}.mp4" for name in ("gone", "here", "bare")]
    thumbnail_path(clips[1]).parent.mkdir(parents=True)
    for path in (*clips[1:], thumbnail_path(clips[1])):
        path.write_bytes(b"clip")
    sheet = cards(made([entry(0, files=dict.fromkeys(clips[:2], 4)), entry(1, files={clips[2]: 4})]))
    media = [sheet[f"sku-{number}"].one("a", "media") for number in (0, 1)]

    assert [one.attributes["href"] for one in media] == ["clips/here.mp4", "clips/bare.mp4"]
    assert media[0].one("img").attributes["src"] == "clips/thumbnails/here.jpg"
    assert media[0].one("img").attributes["alt"] == "Thumbnail of sku-0"
    assert list(media[1].all("img")) == []
    assert media[1].one("span", "play")


@pytest.mark.parametrize(
    ("path", "folder", "url"),
    [
        ("/data/clips/a b#1?.mp4", "/data", "clips/a%20b%231%3F.mp4"),
        ("/data/100%/ü.mp4", "/data", "100%25/%C3%BC.mp4"),
        ("/data/a:b.mp4", "/data", "a%3Ab.mp4"),
        ("/else/where/x.mp4", "/data/reports/today", "../../../else/where/x.mp4"),
        ("/data/<b>&\"'.mp4", "/data", "%3Cb%3E%26%22%27.mp4"),
        (os.fsdecode(b"/data/\xff.mp4"), "/data", "%FF.mp4"),
    ],
)
def test_a_link_is_relative_and_encoded(path, folder, url):
    """It leads from the report's folder to the clip, whatever is in the names."""
    assert link(Path(path), Path(folder)) == url


def test_a_folder_by_another_name_has_its_clips_beside_it(tmp_path):
    """The ledger knows clips by their real place, and the report may be written through a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "real")

    assert link(tmp_path / "real" / "x.mp4", tmp_path / "named") == "x.mp4"


def test_a_clip_on_another_drive_has_its_whole_address(monkeypatch):
    """There is no way from one drive to another that is relative."""

    def no_way(*_):
        raise ValueError("path is on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", no_way)

    assert link(Path("/else/a b.mp4"), Path("/data")) == "file:///else/a%20b.mp4"


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("https://cdn.qamera.ai/x.mp4?a=1&b=2", True),
        ("http://localhost/x.mp4", True),
        ("javascript:alert(1)", False),
        (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("javascript://host/%0aalert(1)", False),
        ("https:alert(1)", False),
        ("https://[", False),
        ("data:text/html,<script>alert(1)</script>", False),
        ("file:///etc/passwd", False),
        (None, False),
    ],
)
def test_only_addresses_of_the_web_are_linked(made, url, linked):
    """A done job whose clip isn't here leads to the server's, and never to a script."""
    video = q.Video("vid_0", "DONE", q.JobState.DONE, video_url=url)
    links = list(cards(made([entry(videos=(video,))]))["sku-0"].all("a"))

    assert [one.attributes["href"] for one in links] == [url] * linked
    assert all(one.attributes["rel"] == "noopener noreferrer" for one in links)


# --- safety -------------------------------------------------------------------------------------

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>",
    "</style></script></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}<!--",
    "&lt;b&gt;\x00\u202e",
)


def told_by_others(text):
    """Give entries whose every text is this one."""
    videos = (q.Video(text, text, q.JobState.FAILED, text, text, text, text),)
    receipt = q.Receipt((text,), text, text, text, 10, text)
    video = q.VideoRequest(text, suggestion=text, provider=text, ref=text)
    reel = q.ReelRequest([text, text], ref=text)
    generated = q.VideoRequest(generated_image_id=text)
    return [
        LedgerEntry(
            text,
            text,
            request,
            state,
            record_ids=(text,),
            receipt=receipt,
            videos=videos,
            candidates=videos,
            reason=text,
            **moments(0, 1, 2, 3, 4),
        )
        for request in (video, reel, generated)
        for state in (State.DONE, State.FAILED, State.AMBIGUOUS, State.REFUSED)
    ]


texts = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&\"'/=-!`{}%"), min_size=1, max_size=100
).filter(lambda text: any(c.isprintable() and not c.isspace() for c in text) and not text.startswith("-"))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_no_text_becomes_markup(text, tmp_path_factory):
    """Whatever a server or a table says, the page has the elements that it has with a plain word."""
    folder = tmp_path_factory.getbasetemp()
    plain = report_of(told_by_others("word"), folder)
    hostile = report_of(told_by_others(text), folder)

    assert hostile.shape() == plain.shape()


def test_texts_are_shown_as_they_are(made):
    """Markup in a ref is a ref that looks like markup."""
    sheet = cards(made([entry(request=q.VideoRequest(HOSTILE[0], ref=HOSTILE[1], suggestion=HOSTILE[2]))]))

    assert list(sheet) == [HOSTILE[1]]
    assert facts(sheet[HOSTILE[1]])["Image"] == HOSTILE[0]
    assert sheet[HOSTILE[1]].one("p", "says").text == HOSTILE[2]


def test_what_is_invisible_is_shown(made):
    """Characters that hide, or turn what follows around, are spelled out; texts of others are isolated."""
    kept = "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680 a\u00a0b"
    request = q.VideoRequest("i", ref="a", suggestion="gpj.\u202eexe\x1b[2J\nnext")
    says = cards(made([entry(request=request)]))["a"].one("p", "says").text
    whole = made([entry()])

    assert says == "gpj.\\u202eexe\\x1b[2J ↵ next"
    assert visible(kept) == kept
    assert [one.tag for one in whole.one("h3").elements] == ["bdi"]
    assert all(dd.one("bdi") for line in whole.one("article").all("dl") for dd in line.all("dd"))


def test_an_id_that_looks_like_an_option_is_no_command(made):
    """A server can't smuggle an option into what somebody pastes into a shell."""
    videos = (q.Video("--all", "DONE", q.JobState.DONE), q.Video("$(reboot)", "DONE", q.JobState.DONE))
    commands = [code.text for code in made([entry(state=State.AMBIGUOUS, candidates=videos)]).all("code")]

    assert [shlex.split(command)[3:] for command in commands] == [
        ["adopt", "intent-0", "$(reboot)"],
        ["abandon", "intent-0"],
    ]


def test_the_policy_allows_only_what_is_the_reports_own(made):
    """Style and script by their hashes, images and clips from here, and nothing that would need more."""
    whole = made([*told_by_others("word"), entry()])
    policy = next(m for m in whole.all("meta") if m.attributes.get("http-equiv")).attributes["content"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    for tag in ("style", "script"):
        digest = hashlib.sha256(whole.one(tag).text.encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == rules["media-src"] == "'self' file:"
    assert [n for one in whole.all() for n in one.attributes if n == "style" or n.startswith("on")] == []
    assert whole.one("html").attributes["lang"] == "en"


def test_long_texts_are_cut_and_say_so(made):
    """A page stays a page where somebody wrote a novel."""
    card = next(iter(cards(made([entry(request=q.VideoRequest("i", suggestion="x" * 10_000))])).values()))

    assert card.one("p", "says").text == "x" * 2000 + "… (8,000 more characters)"


def test_many_ids_are_cut_and_say_so(made):
    """An order that made a hundred records shows the first fifty."""
    ids = tuple(f"vid_{number}" for number in range(100))
    shown = facts(made([entry(record_ids=ids)]).one("article"))["Records"]

    assert shown == ", ".join([*ids[:50], "and 50 more"])


# --- numbers ------------------------------------------------------------------------------------


def test_durations_are_those_from_receipt_to_end(made):
    """The median and the longest; those of a clock that was set back don't count."""
    entries = [entry(n, **moments(0, 0, 0, end, end)) for n, end in enumerate((10, 20, 300))]
    entries.append(entry(3, **moments(0, 0, 50, 0, 0)))
    whole = made(entries)

    assert numbers(whole)["from receipt to end"] == ["20 s", "median; the longest 5 min 00 s"]
    assert numbers(whole)["wall time"][0] == "5 min 00 s"
    assert "Took" not in facts(cards(whole)["sku-3"])


def test_states_are_counted_and_filtered(made):
    """Each state is in the numbers, and behind one of the filters."""
    entries = [entry(number, state) for number, state in enumerate(State)]
    entries += [entry(20, State.CLAIMED, busy=True), entry(21, receipt=q.Receipt(("vid_21",)))]
    whole = made(entries)
    filters = {b.attributes["data-show"]: b.one("span").text for b in whole.all("button")}

    assert {name: values[0] for name, values in numbers(whole).items() if len(values) == 1} == {
        "done": "2",
        "failed": "1",
        "ambiguous": "1",
        "under way": "4",
        "never sent": "1",
        "refused": "1",
        "abandoned": "1",
    }
    assert filters == {"all": "11", "done": "2", "failed": "1", "ambiguous": "1", "rest": "7"}
    assert "1 receipt without a price" in numbers(whole)["credits spent"][1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.00 s"),
        (0.994, "0.99 s"),
        (0.996, "1.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7500, "2 h 05 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_are_worded_for_people(seconds, words):
    """Two figures are enough, and no unit overflows."""
    assert duration(seconds) == words


def test_one_is_one_and_more_are_more():
    """Nouns go with their numbers."""
    assert [plural(1, "job"), plural(2000, "job"), plural(0, "entry", "entries")] == [
        "1 job",
        "2,000 jobs",
        "0 entries",
    ]


# --- the timeline -------------------------------------------------------------------------------


def test_a_bar_shows_what_its_job_waited_for(made):
    """Each phase is as wide as it was long, one after the other."""
    (bar,) = bars(made([entry(**moments(0, 20, 25, 75, 100))]))

    assert parts(bar) == [
        ("waiting", 0, 20),
        ("submitting", 20, 5),
        ("processing", 25, 50),
        ("downloading", 75, 25),
    ]
    assert bar.one("title").text == (
        "sku-0: done; 20 s waiting for the quota; 5.0 s being submitted; 50 s processing; 25 s downloading"
    )


def test_a_bar_ends_with_what_went_wrong(made):
    """Failed, ambiguous, or not over: a mark stands at the end; done needs none."""
    states = (State.DONE, State.FAILED, State.AMBIGUOUS, State.SUBMITTED)
    whole = made([entry(number, state) for number, state in enumerate(states)])
    marks = [[m.classes[1] for m in bar.all("rect", "mark")] for bar in bars(whole)]

    assert marks == [[], ["failed"], ["ambiguous"], ["rest"]]


def test_bars_are_in_the_order_of_submission(made):
    """Not in that of the ledger; what has no receipt stands where it was sent."""
    entries = [
        entry(0, **moments(0, 30, 31, 40, 41)),
        entry(1, **moments(0, 10, 11, 90, 91)),
        entry(2, State.AMBIGUOUS, **moments(0, 20, None, None, None)),
        entry(3, State.CLAIMED, **moments(5, None, None, None, None)),
        entry(4, State.CLAIMED, **moments(None, None, None, None, None)),
    ]
    whole = made(entries)

    assert [bar.one("title").text.split(":")[0] for bar in bars(whole)] == [
        "sku-3",
        "sku-1",
        "sku-2",
        "sku-0",
    ]
    assert "Of 1 request the ledger has no moments." in [note.text for note in whole.all("p", "note")]


def test_days_between_runs_do_not_squash_the_rest(made):
    """The axis is cut there, visibly, so that the bars of both runs can be read."""
    day = 86_400
    runs = [
        entry(0, **moments(0, 1, 2, 100, 101)),
        entry(1, **moments(day, day + 1, day + 2, day + 90, None)),
    ]
    whole = made(runs)
    (pause,) = whole.all("g", "pause")
    first, second = ((p[0][1], p[-1][1] + p[-1][2]) for p in map(parts, bars(whole)))
    band = percent(pause.one("rect").attributes["x"])

    assert pause.one("title").text == "A pause of 23 h 58 min is cut out here"
    assert first[1] - first[0] > 40
    assert second[1] - second[0] > 40
    assert first[1] <= band < second[0]
    assert numbers(whole)["wall time"] == ["1 d 0 h", "3 min 11 s without 1 long pause"]


def test_a_job_that_goes_on_over_night_crosses_the_cut(made):
    """The night in which no program ran is cut out, though a job was under way."""
    night = 40_000
    whole = made([entry(0, **moments(0, 1, 2, night, night + 9)), entry(1, **moments(0, 1, 2, 60, 61))])
    long, short = (parts(bar)[2] for bar in bars(whole))

    assert len(list(whole.all("g", "pause"))) == 1
    assert long[2] > short[2] > 50


def test_a_long_job_is_no_pause(made):
    """What takes its time is shown in full."""
    whole = made([entry(0, **moments(0, 1, 2, 1500, 1501)), entry(1, **moments(3, 4, 5, 1502, 1503))])

    assert list(whole.all("g", "pause")) == []


def test_a_short_pause_stays_where_the_rest_is_long(made):
    """A minute without a job in half an hour is nothing to cut out."""
    entries = [entry(0, **moments(0, 1, 2, 900, 901)), entry(1, **moments(960, 961, 962, 1800, 1801))]

    assert list(made(entries).all("g", "pause")) == []


def test_many_runs_leave_room_for_their_bars():
    """The cuts of a year of daily runs don't use up the axis."""
    jobs = [[day * 86_400.0, day * 86_400.0 + 600] for day in range(365)]
    axis = Axis(jobs)

    assert 0 < len(axis.pauses) <= 24
    assert sum(pause.width for pause in axis.pauses) < 30
    assert axis.at(jobs[-1][-1]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("length", "labels"),
    [
        (0.05, ["09:00:00.00", "09:00:00.01", "09:00:00.02", "09:00:00.03", "09:00:00.04", "09:00:00.05"]),
        (60, ["09:00:00", "09:00:10", "09:00:20", "09:00:30", "09:00:40", "09:00:50", "09:01:00"]),
        (3600, ["09:00", "09:10", "09:20", "09:30", "09:40", "09:50", "10:00"]),
        (86_400 * 4, ["12:00", "00:00", "12:00", "00:00", "12:00", "00:00", "12:00", "00:00"]),
    ],
)
def test_ticks_are_round_times(length, labels):
    """A step that people count in, few enough to be read."""
    start = NINE.timestamp()
    steps = [start + length * part / 200 for part in range(201)]
    ticks = Axis([steps]).ticks(UTC)

    assert [tick.time for tick in ticks] == labels
    assert all(later.x - tick.x >= 10 for tick, later in itertools.pairwise(ticks))
    assert ticks[0].date == "24 Nov"


def test_more_jobs_than_can_be_shown_are_named():
    """The first thousand are shown; which ones are not is said, and the wall time is that of all."""
    shown = timeline([entry(number) for number in range(MOST_BARS + 2)], UTC)

    assert len(shown.bars) == MOST_BARS
    assert shown.left_out == (
        "The first 1,000 by submission are shown; 2 later ones (sku-1000 to sku-1001) are not."
    )
    assert shown.took == MOST_BARS + 61


@pytest.mark.parametrize(("number", "named", "highest"), [(1, True, 30), (14, True, 400), (300, False, 800)])
def test_rows_fit_their_number(number, named, highest):
    """A few have their names beside them; many are thin, so that their shape can be seen."""
    shown = timeline([entry(one) for one in range(number)], UTC)

    assert shown.named is named
    assert shown.row * number <= highest
    assert 0 < shown.thick <= shown.row


somewhen = (
    st.none()
    | st.datetimes(timezones=st.just(UTC))
    | st.integers(0, 7200).map(lambda seconds: NINE + timedelta(seconds=seconds))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[somewhen] * 5), max_size=12), st.integers(-12, 14))
@example([(FIRST, None, None, None, LAST)], -12)
@example([(FIRST, None, None, None, None), (LAST, None, None, None, FIRST)], 14)
def test_no_bar_has_a_negative_width(times, hours):
    """Whatever moments are missing, or in whatever order: each part is on the page, after the one before."""
    entries = []
    for number, (claimed, sent, submitted, settled, downloaded) in enumerate(times):
        when = {"claimed_at": claimed, "sent_at": sent, "submitted_at": submitted}
        entries.append(entry(number, **when, settled_at=settled, downloaded_at=downloaded))
    shown = timeline(entries, timezone(timedelta(hours=hours)))

    assert len(shown.bars) == sum(any(moments) for moments in times)
    for bar in shown.bars:
        place = 0.0
        for part in bar.parts:
            assert part.width >= 0
            assert part.x >= place - 0.01
            place = part.x + part.width
        assert place <= bar.end + 0.01
        assert bar.end <= 100.001
    assert all(0 <= tick.x <= 100.001 for tick in shown.ticks)
    assert all(later.x - tick.x >= 10 for tick, later in itertools.pairwise(shown.ticks))
    assert all(pause.seconds > 0 and pause.width > 0 for pause in shown.pauses)


@pytest.mark.slow
def test_ten_thousand_entries_are_a_matter_of_seconds(made, tmp_path):
    """The page of a big catalogue has all its cards, and stays a file that a browser opens."""
    whole = made([entry(number, request=requests(1)[0]) for number in range(10_000)])

    assert sum(1 for _ in whole.all("article")) == 10_000
    assert (tmp_path / "report.html").stat().st_size < 10_000_000


def test_reports_can_be_made_side_by_side(tmp_path, monkeypatch):
    """Two at once to one file: each is written, and one of them is there in the end, whole."""
    real, together = page.card, threading.Barrier(2, timeout=10)
    monkeypatch.setattr(page, "card", lambda *a: (together.wait(), real(*a))[1])
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda number: report_of([entry(number)], tmp_path), (0, 1)))

    assert len(both) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert len(cards(parsed(tmp_path / "report.html"))) == 1
