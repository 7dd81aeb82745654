"""The files of a batch: target names, downloads, and targets that are refused before a submission."""

import asyncio
import tempfile
import threading
from pathlib import Path

import pytest
from batch_helpers import Counted, consume, until, videos
from fake_registrar import Answer, FakeJob, FakeRegistrar, ambiguous, make_batch, refused, script

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


def targets(outcomes):
    return [outcome.path and outcome.path.name for outcome in outcomes]


async def test_results_are_downloaded_into_a_new_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    result = await make_batch(FakeRegistrar(), [*videos(2), q.VideoRequest("i")], download_to=str(folder))

    assert targets(result.outcomes) == ["sku-0.mp4", "sku-1.mp4", f"{result.outcomes[2].record.id}.mp4"]
    assert {path.name for path in folder.iterdir()} == set(targets(result.outcomes))


async def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    result = await make_batch(FakeRegistrar(), videos(1), download_to="~/clips")

    assert result.outcomes[0].path == tmp_path / "home" / "clips" / "sku-0.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("value", [True, False])
async def test_overwrite_and_allow_private_are_passed_to_the_download(tmp_path, value):
    registrar = FakeRegistrar()
    await make_batch(registrar, videos(1), download_to=tmp_path, overwrite=value, allow_private=value)
    ((_, record, path, *flags),) = registrar.downloads

    assert (record.id, path, flags) == ("vid_001", tmp_path / "sku-0.mp4", [value, value])


async def test_download_does_not_wait_for_other_jobs(tmp_path):
    registrar = FakeRegistrar(job_seconds=None)
    outcomes = aiter(make_batch(registrar, videos(2), download_to=tmp_path))
    asking = asyncio.ensure_future(anext(outcomes))
    await until(lambda: len(registrar.jobs) == 2)
    registrar.jobs[1].finish()

    assert (await asking).path.read_text() == "vid_002"
    await outcomes.aclose()


async def test_runs_no_more_than_max_downloads_at_once(tmp_path):
    running, peaks = 0, []

    class SpecialRegistrar(FakeRegistrar):
        async def download(self, *arguments, **options):
            nonlocal running
            running += 1
            peaks.append(running)
            await asyncio.sleep(0.002)
            running -= 1
            return await super().download(*arguments, **options)

    result = await make_batch(SpecialRegistrar(), videos(12), download_to=tmp_path, max_downloads=3)

    assert max(peaks) == 3
    assert result.failures == ()


async def test_failed_download_is_an_outcome_with_the_record(tmp_path):
    class SpecialRegistrar(FakeRegistrar):
        async def download(self, job, record, path, **options):
            if path.name == "sku-1.mp4":
                raise q.DownloadError("no", record_id=record.id, path=str(path))
            return await super().download(job, record, path, **options)

    registrar = SpecialRegistrar()
    result = await make_batch(registrar, videos(3), download_to=tmp_path)
    (failure,) = result.failures

    assert isinstance(failure.error, q.DownloadError)
    assert (failure.index, failure.path, failure.record.id) == (1, None, failure.job.record_ids[0])
    assert len(registrar.posts) == 3
    assert result.credits_refunded == 0


async def test_error_of_a_download_does_not_stop_the_batch(tmp_path):
    class SpecialRegistrar(FakeRegistrar):
        async def download(self, job, record, path, **options):
            raise q.NotFoundError("no such record", status=404)

    result = await make_batch(SpecialRegistrar(), videos(10), download_to=tmp_path)

    assert result.stopped is None
    assert [type(outcome.error) for outcome in result.outcomes] == [q.NotFoundError] * 10


# --- targets that are refused before the submission -----------------------------------------------


async def test_existing_target_is_refused_before_the_submission(tmp_path):
    for number in (0, 1):
        (tmp_path / f"sku-{number}.mp4").write_text("mine")
    known = {"sku-1": FakeJob("vid_old")}
    known["sku-1"].finish()
    registrar = FakeRegistrar(known=known)
    result = await make_batch(registrar, videos(3), download_to=tmp_path)
    (failure,) = result.failures

    assert isinstance(failure.error, q.TargetExistsError)
    assert (failure.index, failure.job, failure.error.record_id) == (0, None, None)
    assert failure.error.path == str(tmp_path / "sku-0.mp4")
    assert [request.ref for request in registrar.posts] == ["sku-2"]
    assert all(claim.released for claim in registrar.claims if claim.request.ref == "sku-0")
    assert (tmp_path / "sku-0.mp4").read_text() == "mine"


async def test_dangling_link_counts_as_an_existing_file(tmp_path):
    (tmp_path / "sku-0.mp4").symlink_to(tmp_path / "nowhere")
    result = await make_batch(FakeRegistrar(), videos(1), download_to=tmp_path)

    assert isinstance(result.failures[0].error, q.TargetExistsError)


async def test_overwrite_accepts_an_existing_file(tmp_path):
    (tmp_path / "sku-0.mp4").write_text("old")
    result = await make_batch(FakeRegistrar(), videos(1), download_to=tmp_path, overwrite=True)

    assert result.failures == ()
    assert (tmp_path / "sku-0.mp4").read_text() == "vid_001"


@pytest.mark.case(99)
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    "refs", [("a", "a"), ("Straße", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("É", "e\u0301")]
)
async def test_second_request_with_the_same_target_is_refused_before_the_submission(
    tmp_path, refs, overwrite
):
    registrar = FakeRegistrar()
    requests = [q.VideoRequest("i", ref=refs[0]), *videos(3), q.VideoRequest("j", ref=refs[1])]
    result = await make_batch(registrar, requests, download_to=tmp_path, overwrite=overwrite)

    assert [type(outcome.error) for outcome in result.failures] == [q.InvalidRequestError]
    assert len(registrar.posts) == len(list(tmp_path.iterdir())) == 4
    assert [outcome.index for outcome in result.failures] == [4]


async def test_names_that_are_equal_on_some_file_systems_are_one_target(tmp_path):
    class SpecialRegistrar(FakeRegistrar):
        def target(self, request, job, folder):
            return folder / request.image_id

    registrar = SpecialRegistrar()
    requests = [q.VideoRequest(name) for name in ("Caf\u00c9.mp4", "cafe\u0301.mp4")]
    result = await make_batch(registrar, requests, download_to=tmp_path)

    assert [type(outcome.error) for outcome in result.failures] == [q.InvalidRequestError]
    assert len(registrar.posts) == 1


async def test_new_request_with_the_target_of_an_earlier_job_is_refused(tmp_path):
    known = {"sku-0": FakeJob("vid_old")}
    registrar = FakeRegistrar(known=known)
    requests = [*videos(1), *[q.VideoRequest("i", ref="SKU-0")] * 2]
    running = asyncio.ensure_future(
        consume(make_batch(registrar, requests, download_to=tmp_path, overwrite=True))
    )
    await asyncio.sleep(0.02)
    known["sku-0"].finish()
    outcomes, _ = await running

    assert [type(outcome.error) for outcome in outcomes[:2]] == [q.InvalidRequestError] * 2
    assert registrar.posts == []


async def test_without_a_folder_refs_may_repeat():
    registrar = FakeRegistrar()
    result = await make_batch(registrar, [*videos(1), *videos(1)])

    assert result.failures == ()
    assert len(registrar.posts) == 2


async def test_two_requests_without_a_ref_have_two_files(tmp_path):
    result = await make_batch(FakeRegistrar(), [q.VideoRequest("i")] * 2, download_to=tmp_path)

    assert targets(result.outcomes) == ["vid_001.mp4", "vid_002.mp4"]


async def test_target_of_a_refused_request_can_be_used_again(tmp_path):
    registrar = FakeRegistrar(script(refused(), Answer()))
    result = await make_batch(registrar, [*videos(1), *videos(1)], download_to=tmp_path, max_in_flight=1)

    assert [outcome.ok for outcome in result.outcomes] == [False, True]


async def test_ambiguous_request_keeps_its_target(tmp_path):
    registrar = FakeRegistrar(script(ambiguous(), Answer()))
    result = await make_batch(registrar, [*videos(1), *videos(1)], download_to=tmp_path, max_in_flight=1)

    assert isinstance(result.outcomes[1].error, q.InvalidRequestError)
    assert len(registrar.posts) == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
async def test_folder_that_is_a_file_is_refused_before_any_request_is_read(tmp_path, place):
    (tmp_path / "file").touch()
    source = Counted(videos(2))
    with pytest.raises(q.ConfigurationError, match="download_to"):
        await make_batch(FakeRegistrar(), source, download_to=tmp_path / place)
    with pytest.raises(q.ConfigurationError, match="download_to"):
        await anext(aiter(make_batch(FakeRegistrar(), source, download_to=tmp_path / place)))

    assert source.read == 0


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root can't write")
async def test_folder_that_is_not_writable_is_refused_before_any_request_is_read():
    source = Counted(videos(2))
    with pytest.raises(q.ConfigurationError, match=r"download_to: .*write"):
        await make_batch(FakeRegistrar(), source, download_to="/proc/self")

    assert source.read == 0


async def test_probe_file_in_the_folder_is_removed(tmp_path, monkeypatch):
    touched, real = [], tempfile.NamedTemporaryFile

    def create(**options):
        touched.append((options["dir"], threading.current_thread() is threading.main_thread()))
        return real(**options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", create)
    await make_batch(FakeRegistrar(), [], download_to=tmp_path / "clips")

    assert touched == [(tmp_path / "clips", False)]
    assert list((tmp_path / "clips").iterdir()) == []
