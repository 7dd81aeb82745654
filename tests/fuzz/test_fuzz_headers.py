"""Whatever stands in a header, it is read as what it is or as nothing."""

import math
from datetime import UTC, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import header_values, headers

from qamera_async import _protocol as protocol
from qamera_async._protocol import Answer

FUZZ = settings.get_profile("values")


@FUZZ
@given(headers)
@example({"retry-after": "\u0663"})
@example({"date": "Wed, 1 Jan 0001 00:00:00 +0100"})
@example({"date": "Fri, 31 Dec 9999 23:59:59 -0100"})
@example({"date": "Wed, 1 Jan 2026 00:00:00 +99999"})
@example({"date": "Wed, 99999999999999999999 Jan 2026 00:00:00 GMT"})
@example({"x-correlation-id": "\udcff\ud800", "date": "\udcff"})
def test_any_headers_give_a_moment_a_name_and_a_wait_or_none(sent):
    """P7: an aware UTC datetime, a short text that is printable anywhere, seconds within an hour."""
    answer = Answer(200, sent, b"")

    assert answer.date is None or answer.date.utcoffset() == timedelta(0)
    name = answer.correlation_id
    assert name is None or (0 < len(name) <= 200 and name.isascii())
    seconds = protocol.retry_after(sent)
    assert seconds is None or (0 <= seconds <= 3600 and math.isfinite(seconds))
    assert seconds is None or sent["retry-after"].strip().isascii()


@FUZZ
@given(st.datetimes(), st.integers(-23, 23))
def test_a_good_date_is_the_moment_that_was_meant(moment, hours):
    """In whatever zone it is written; only where UTC has no such year it is none."""
    moment = moment.replace(microsecond=0)
    written = moment.strftime("%a, %d %b ") + f"{moment.year:04d}" + moment.strftime(" %H:%M:%S ")

    read = Answer(200, {"date": f"{written}{hours:+03d}00"}, b"").date

    try:
        meant = moment.replace(tzinfo=UTC) - timedelta(hours=hours)
    except OverflowError:
        meant = None
    # A year of less than three digits is one of the century past, by the rules of mail.
    assert read == meant or moment.year < 1000


@FUZZ
@given(st.decimals(0, 10**9, places=3))
def test_a_good_wait_is_the_seconds_that_were_meant(seconds):
    """An hour at most."""
    assert protocol.retry_after({"retry-after": f" {seconds:f} "}) == min(float(seconds), 3600.0)


@FUZZ
@given(header_values, st.text(max_size=40))
@example("", "Bearer mk_live_a.bcdefgh")
@example("a" * 186, "")
def test_no_key_is_left_in_a_name_that_echoes_it(before, after):
    """P6: what the server echoes is concealed before it is cut."""
    answer = Answer(
        200,
        {"x-correlation-id": f"{before} mk_live_a.bcdefgh{after}"},
        b"",
        lambda t: t.replace("bcdefgh", "***"),
    )

    assert "bcd" not in (answer.correlation_id or "")
