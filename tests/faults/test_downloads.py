"""Failing downloads: a file at its final name is complete, whatever a CDN, a disk or a task does."""

import asyncio
import errno

import pytest
from place import CLIP, SIZE, halved

from qamera_async import DownloadError
from qamera_async.events import Retrying

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


# --- the CDN and the target ---------------------------------------------------------------------


@pytest.mark.case(69)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["target", "part"])
async def test_symlink_at_the_target_or_the_partial_file_is_refused(place, where, overwrite):
    """The file that the symlink points to is unchanged."""
    linked = place.target.with_name("linked")
    linked.write_bytes(b"mine")
    getattr(place, where).symlink_to(linked)
    with pytest.raises(DownloadError):
        await place.fetch(overwrite=overwrite)

    assert linked.read_bytes() == b"mine"
    assert getattr(place, where).is_symlink()
    assert place.asked() == []


@pytest.mark.case(70)
async def test_body_without_length_is_complete_if_its_mp4_boxes_are(place):
    """A truncated body is resumed, and the response to that request states the total size."""
    place.sandbox.cdn_trouble("no_length")
    await place.fetch()
    assert place.asked() == [(None, 200)]
    assert place.is_whole()

    place.sandbox.cdn_trouble("no_length")
    place.sandbox.cdn_trouble("cut", after=3_000_000)
    await place.fetch(overwrite=True)

    assert place.asked()[-1] == ("bytes=3000000-", 206)
    assert place.is_whole()


@pytest.mark.case(70)
async def test_truncated_body_without_length_is_an_error_if_it_cannot_be_resumed(place):
    """No file is left in the folder."""
    for name in ("no_length", "no_etag"):
        place.sandbox.cdn_trouble(name, times=9)
    place.sandbox.cdn_trouble("cut", times=9, after=200_000)
    with pytest.raises(DownloadError, match="prove"):
        await place.fetch()

    assert place.names() == []


@pytest.mark.case(71)
async def test_truncated_download_is_resumed(place):
    """The same call continues from the last byte received, and emits a Retrying event."""
    place.sandbox.cdn_trouble("cut", after=3_000_000)
    await place.fetch()

    (first, again) = place.asked()
    assert first == (None, 200)
    assert again[1] == 206
    assert 0 < int(again[0].removeprefix("bytes=").rstrip("-")) <= 3_000_000
    assert [e.attempt for e in place.events if isinstance(e, Retrying)] == [1]
    assert place.is_whole()


@pytest.mark.parametrize(
    ("trouble", "details"),
    [
        pytest.param("other_etag", {}, marks=pytest.mark.case(72)),
        pytest.param("wrong_range", {"shift": 1}, marks=pytest.mark.case(72)),
        pytest.param("wrong_range", {"shift": -1}, marks=pytest.mark.case(72)),
        pytest.param("wrong_range", {"shift": 0, "total": SIZE + 1}, marks=pytest.mark.case(72)),
        pytest.param("ignore_range", {}, marks=pytest.mark.case(74)),
    ],
)
async def test_response_that_does_not_continue_the_partial_file_restarts_the_download(
    place, trouble, details
):
    """The response has another ETag, the whole body, a wrong start or a wrong total size."""
    await halved(place)
    place.sandbox.cdn_trouble(trouble, **details)
    await place.fetch()

    assert place.is_whole()
    assert place.asked()[1][0] is not None
    assert place.asked()[-1][1] == 200
    assert len(place.asked()) <= 3


@pytest.mark.case(72)
async def test_206_with_another_etag_restarts_the_download(place):
    """A server that ignores If-Range must not mix two files."""
    await halved(place)
    place.sandbox.cdn_trouble("other_etag")
    place.sandbox.cdn_trouble("wrong_range", shift=0)
    await place.fetch()

    assert [status for _, status in place.asked()] == [200, 206, 200]
    assert place.is_whole()


@pytest.mark.case(73)
@pytest.mark.parametrize("trouble", ["no_etag", "weak_etag"])
async def test_download_without_a_strong_etag_is_not_resumed(place, trouble):
    """The next attempt downloads the file from its beginning."""
    place.sandbox.cdn_trouble("cut", after=3_000_000)
    place.sandbox.cdn_trouble(trouble)
    await place.fetch()

    assert place.asked() == [(None, 200), (None, 200)]
    assert place.is_whole()


@pytest.mark.case(75)
async def test_expired_url_is_replaced_from_the_list(place):
    """The partial file is resumed with the new URL."""
    await halved(place)
    place.sandbox.cdn_trouble("expired")
    await place.fetch()

    assert [status for _, status in place.asked()][-2:] == [403, 206]
    assert place.is_whole()


@pytest.mark.case(75)
async def test_expired_url_is_replaced_only_once(place):
    """A second refusal is raised with its status."""
    place.sandbox.cdn_trouble("expired", times=2)
    with pytest.raises(DownloadError, match="anew") as caught:
        await place.fetch()

    assert caught.value.status == 403
    assert len(place.asked()) == 2


@pytest.mark.case(76)
@pytest.mark.parametrize(
    "kind",
    ["text/html", "application/json; charset=utf-8", "application/problem+json", "text/plain", "video/mp4"],
)
async def test_error_page_is_not_saved_as_a_video(place, kind):
    """The content type or the first bytes identify the page. An existing partial file is kept."""
    await halved(place)
    kept = place.part.read_bytes()
    place.sandbox.cdn_trouble("html", content_type=kind)
    with pytest.raises(DownloadError, match="page"):
        await place.fetch()
    assert place.part.read_bytes() == kept

    await place.fetch()

    assert place.asked()[-1][1] == 206
    assert place.is_whole()


@pytest.mark.case(78)
async def test_second_download_to_the_same_target_is_refused(place):
    """The first download completes the file."""
    results = await asyncio.gather(place.fetch(), place.fetch(), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == [
        "DownloadError",
        type(place.target).__name__,
    ]
    assert place.asked() == [(None, 200)]
    assert place.is_whole()


# --- the disk -----------------------------------------------------------------------------------


@pytest.mark.case(77)
@pytest.mark.parametrize("call", ["write", "sync", "close"])
async def test_full_disk_leaves_no_file_at_the_final_name(faults, place, tmp_path, call):
    """A write, a sync or the close reports the full disk. A retry succeeds after space is freed."""
    folder = tmp_path / "clips"
    folder.mkdir()
    ran = await faults.run(
        "download",
        place.sandbox,
        target=folder / "clip.mp4",
        file="/clip.mp4.part",
        call=call,
        error=errno.ENOSPC,
    )

    assert ran.told["error"]["type"] == "DownloadError"
    assert "No space left" in ran.told["error"]["text"]
    assert ran.told["failed"] > 0
    assert "clip.mp4" not in ran.told["left"]
    assert ran.told["again"] == {"type": None}
    assert [path.name for path in folder.iterdir()] == ["clip.mp4"]
    assert (folder / "clip.mp4").read_bytes() == CLIP
