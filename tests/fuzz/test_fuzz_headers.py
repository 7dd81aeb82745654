"""Any value of a header is read as what it means, or as None."""

import math
from datetime import UTC, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import header_values, headers

from qamera_async._protocol import Response, retry_after

FUZZ = settings.get_profile("values")


@FUZZ
@given(headers)
@example({"retry-after": "\u0663"})
@example({"date": "Wed, 1 Jan 0001 00:00:00 +0100"})
@example({"date": "Fri, 31 Dec 9999 23:59:59 -0100"})
@example({"date": "Wed, 1 Jan 2026 00:00:00 +99999"})
@example({"date": "Wed, 99999999999999999999 Jan 2026 00:00:00 GMT"})
@example({"x-correlation-id": "\udcff\ud800", "date": "\udcff"})
def test_any_headers_give_valid_values_or_none(sent):
    """P7: the date is aware and in UTC, the correlation id short ASCII, Retry-After at most an hour."""
    response = Response(200, sent, b"")

    assert response.date is None or response.date.utcoffset() == timedelta(0)
    name = response.correlation_id
    assert name is None or (0 < len(name) <= 200 and name.isascii())
    seconds = retry_after(sent)
    assert seconds is None or (0 <= seconds <= 3600 and math.isfinite(seconds))
    assert seconds is None or sent["retry-after"].strip().isascii()


@FUZZ
@given(st.datetimes(), st.integers(-23, 23))
def test_valid_date_is_read_in_any_time_zone(moment, hours):
    """The date is None only if UTC has no such year."""
    moment = moment.replace(microsecond=0)
    written = moment.strftime("%a, %d %b ") + f"{moment.year:04d}" + moment.strftime(" %H:%M:%S ")

    read = Response(200, {"date": f"{written}{hours:+03d}00"}, b"").date

    try:
        meant = moment.replace(tzinfo=UTC) - timedelta(hours=hours)
    except OverflowError:
        meant = None
    # By the rules of mail, a year of two digits is in the last century.
    assert read == meant or moment.year < 1000


@FUZZ
@given(st.decimals(0, 10**9, places=3))
def test_valid_retry_after_is_read_up_to_an_hour(seconds):
    assert retry_after({"retry-after": f" {seconds:f} "}) == min(float(seconds), 3600.0)


@FUZZ
@given(header_values, st.text(max_size=40))
@example("", "Bearer mk_live_a.bcdefgh")
@example("a" * 186, "")
def test_correlation_id_that_echoes_the_key_is_without_it(before, after):
    """P6: the key is redacted before the id is cut."""
    response = Response(
        200,
        {"x-correlation-id": f"{before} mk_live_a.bcdefgh{after}"},
        b"",
        lambda t: t.replace("bcdefgh", "***"),
    )

    assert "bcd" not in (response.correlation_id or "")
