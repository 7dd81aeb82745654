"""The soak in a small form, and that each of its checks can fail."""

import argparse
import copy
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from canary import FORMS, KEY, SECRET, Search

import qamera_async as q
from qamera_async._submission import submit

SWEEPS = Path(__file__).parent.parent / "sweeps"
sys.path.insert(0, str(SWEEPS))
import soak  # noqa: E402 - scripts are no package
from _soak_account import Told, faults  # noqa: E402 - the same

START = 1000


@pytest.mark.slow
def test_a_small_soak_adds_up():
    """Each of 200 jobs is accounted for, and a row of lost answers and the restart were met on the way."""
    command = [sys.executable, str(SWEEPS / "soak.py"), "--jobs", "200"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, **pipes) as without,
        subprocess.Popen([*command, "--ledger"], **pipes) as with_ledger,
    ):
        done = [(process, *process.communicate(timeout=120)) for process in (without, with_ledger)]

    for process, said, complaints in done:
        assert (process.returncode, complaints) == (0, ""), said
        assert "all adds up" in said
        assert int(re.search(r"(\d+) ambiguous", said)[1]) >= 12
        assert int(re.search(r"batches +(\d+)", said)[1]) > 1


@pytest.mark.slow
async def test_a_soak_that_writes_the_key_is_found(tmp_path, monkeypatch):
    """It is searched for in the log, the errors, the events, the notes and the ledger; each is told."""
    parse_receipt = submit.parse_receipt

    def leaking(answer):
        soak.logging.getLogger("leak").debug("sent with %s", KEY)
        return attrs.evolve(parse_receipt(answer), order_id=KEY)

    monkeypatch.setattr(submit, "parse_receipt", leaking)
    monkeypatch.setattr(q.QameraError, "__str__", lambda error: KEY)
    monkeypatch.setattr(soak, "DOWN", 0.0)
    monkeypatch.setattr(
        soak, "QUICK", soak.QUICK | {"timeouts": attrs.evolve(soak.QUICK["timeouts"], reconcile=0.0)}
    )
    options = argparse.Namespace(jobs=60, seed=1, ledger=True)
    wrong = await soak.soak(options, tmp_path)

    found = [one.removeprefix("the key: it is in the ") for one in wrong if one.startswith("the key: ")]
    assert found == ["error", "event", "ledger", "log", "note", "output"]


def test_the_search_sees_each_form_of_the_key_and_what_is_known_to_be_there():
    """As it is, quoted, and escaped as in JSON; in bytes, texts and errors; and says where it saw nothing."""
    for form in FORMS:
        for thing in (b"\xff" + form.encode() + b"\0", f"<{form}>", f"<{form.upper()}>"):
            search = Search({"here": "known"})
            search.look("here", thing)
            assert (search.found, search.blind) == ({"here"}, {"here"})
    assert len({*FORMS}) == 5

    search = Search({"here": "Known", "there": "known"})
    search.look("here", b"\0KNOWN\0")
    search.look("there", SECRET[:-1])
    assert (search.found, search.blind) == (set(), {"there"})

    for hidden in (ValueError(KEY), q.BadRequestError("no", status=400, correlation_id=KEY)):
        search, error = Search({"here": "none"}), RuntimeError("shown")
        error.__context__ = hidden
        search.look_at("here", error)
        assert search.found == {"here"}


def order(number, *, failed=False):
    return {
        "id": f"order_{number}",
        "image": f"img_{number}",
        "key": f"key_{number}",
        "records": [f"vid_{number}"],
        "credits": 10,
        "failed": failed,
    }


def run_of_five():
    """One of each end; of two ambiguous ones the second was not taken."""
    told = [
        Told(0, "done", order="order_0", records=("vid_0",), reserved=10),
        Told(1, "failed", order="order_1", records=("vid_1",), reserved=10),
        Told(2, "refused"),
        Told(3, "ambiguous", intent="key_3"),
        Told(4, "ambiguous", intent="key_4"),
    ]
    orders = [order(0), order(1, failed=True), order(3)]
    saw = {"orders": orders, "sent": {f"img_{number}": 1 for number in range(5)}, "credits": START - 20}
    return told, saw


def test_a_sound_run_has_no_faults():
    """What adds up is not complained of."""
    told, saw = run_of_five()

    assert faults(5, told, saw, START) == []


def lost(told, saw):
    del told[2]


def told_twice(told, saw):
    told.append(told[2])


def another_end(told, saw):
    told[2] = attrs.evolve(told[2], end="JobLostError")


def ordered_twice(told, saw):
    saw["orders"].append(copy.deepcopy(saw["orders"][0]) | {"id": "order_5"})
    saw["credits"] -= 10


def sent_twice(told, saw):
    saw["sent"]["img_4"] = 2


def of_nobody(told, saw):
    saw["orders"].append(order(7, failed=True))


def refused_and_ordered(told, saw):
    saw["orders"].append(order(2, failed=True))


def never_ordered(told, saw):
    del saw["orders"][0]
    saw["credits"] += 10


def another_receipt(told, saw):
    told[0] = attrs.evolve(told[0], records=("vid_1",))


def another_intent(told, saw):
    told[3] = attrs.evolve(told[3], intent="key_9")


def another_outcome(told, saw):
    told[1] = attrs.evolve(told[1], end="done", reserved=10)


def credits_lost(told, saw):
    saw["credits"] -= 1


def another_price(told, saw):
    told[0] = attrs.evolve(told[0], reserved=11)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lost, "outcomes: 1 requests without"),
        (told_twice, "1 with several"),
        (another_end, "ended as JobLostError"),
        (ordered_twice, "img_0: ordered 2 times"),
        (sent_twice, "img_4: sent 2 times"),
        (of_nobody, "img_7: an order of nobody"),
        (refused_and_ordered, "img_2: refused, and ordered"),
        (never_ordered, "img_0: done, and never ordered"),
        (another_receipt, "img_0: the receipt of order_0"),
        (another_intent, "img_3: order order_3 went out as key_3, told as key_9"),
        (another_outcome, "img_1: done, and the server has failed=True"),
        (credits_lost, "credits: the server has 979 of 1000"),
        (another_price, "credits: 11 by receipts"),
    ],
)
def test_what_does_not_add_up_is_said(wrong, words):
    """Each check fails where its cause is broken."""
    told, saw = run_of_five()
    wrong(told, saw)

    assert any(words in fault for fault in faults(5, told, saw, START))
