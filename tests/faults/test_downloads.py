"""Downloads in trouble: whatever a CDN, a disk or another task does, a file at its final name is whole."""

import asyncio
import errno

import pytest
from os_faults import Faults
from place import CLIP, SIZE, halved, opened

from qamera_async import DownloadError
from qamera_async.events import Retrying

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def place(tmp_path, quick):
    async with opened(tmp_path, quick) as place:
        yield place


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


# --- what a CDN does, and what is in the way ----------------------------------------------------


@pytest.mark.case(69)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["target", "part"])
async def test_a_symlink_is_refused(place, where, overwrite):
    """Where the target or the .part would be; what it leads to is untouched."""
    precious = place.target.with_name("precious")
    precious.write_bytes(b"mine")
    getattr(place, where).symlink_to(precious)
    with pytest.raises(DownloadError):
        await place.fetch(overwrite=overwrite)

    assert precious.read_bytes() == b"mine"
    assert getattr(place, where).is_symlink()
    assert place.asked() == []


@pytest.mark.case(70)
async def test_a_body_without_length_is_whole_if_it_proves_it(place):
    """An MP4 whose boxes fill it is one; a cut one is resumed: the server then says how much there is."""
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
async def test_a_cut_body_without_length_is_never_taken_for_whole(place):
    """Where it can't be resumed it ends in an error, and no file is there."""
    for name in ("no_length", "no_etag"):
        place.sandbox.cdn_trouble(name, times=9)
    place.sandbox.cdn_trouble("cut", times=9, after=200_000)
    with pytest.raises(DownloadError, match="prove"):
        await place.fetch()

    assert place.names() == []


@pytest.mark.case(71)
async def test_a_cut_is_resumed(place):
    """In the same call, from where it was cut, and both events say so."""
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
async def test_what_doesnt_fit_starts_anew(place, trouble, details):
    """Another ETag, all of it instead of a part, a wrong start or total."""
    await halved(place)
    place.sandbox.cdn_trouble(trouble, **details)
    await place.fetch()

    assert place.is_whole()
    assert place.asked()[1][0] is not None
    assert place.asked()[-1][1] == 200
    assert len(place.asked()) <= 3


@pytest.mark.case(72)
async def test_a_206_with_another_etag_starts_anew(place):
    """A server that overlooks If-Range can't mix two files."""
    await halved(place)
    place.sandbox.cdn_trouble("other_etag")
    place.sandbox.cdn_trouble("wrong_range", shift=0)
    await place.fetch()

    assert [status for _, status in place.asked()] == [200, 206, 200]
    assert place.is_whole()


@pytest.mark.case(73)
@pytest.mark.parametrize("trouble", ["no_etag", "weak_etag"])
async def test_without_a_strong_etag_nothing_is_appended(place, trouble):
    """The next attempt starts anew."""
    place.sandbox.cdn_trouble("cut", after=3_000_000)
    place.sandbox.cdn_trouble(trouble)
    await place.fetch()

    assert place.asked() == [(None, 200), (None, 200)]
    assert place.is_whole()


@pytest.mark.case(75)
async def test_an_expired_url_is_looked_up_anew(place):
    """Once, also in the middle of a download."""
    await halved(place)
    place.sandbox.cdn_trouble("expired")
    await place.fetch()

    assert [status for _, status in place.asked()][-2:] == [403, 206]
    assert place.is_whole()


@pytest.mark.case(75)
async def test_it_is_looked_up_once(place):
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
async def test_a_page_is_no_video(place, kind):
    """By its content type, or where that lies by its first bytes; an earlier .part is kept."""
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
async def test_two_tasks_one_target_one_writer(place):
    """The other one is told at once; the file is whole."""
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
async def test_a_full_disk_leaves_no_file(faults, place, tmp_path, call):
    """Whether it is told at a write, a sync or at the close; with room again it is fetched after all."""
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
