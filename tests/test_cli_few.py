"""``qamera video``, ``reel``, ``wait``, ``videos`` and ``download``, as a shell runs them."""

import asyncio

import pytest
from command import QUICK, SCRIPT, environment, qamera

from qamera_async.sandbox import Sandbox


@pytest.fixture
async def sandbox():
    """A sandbox without a quota, whose jobs are quick."""
    async with Sandbox(0.05, quota=None) as started:
        yield started


async def test_a_video_is_ordered_once_and_waited_for(sandbox):
    """Its id, status and clip are the result; what it costs was said before."""
    ended = await qamera(
        "video", "img_1", "--suggestion", "Slow zoom", "--provider", "pollo", *QUICK, sandbox=sandbox
    )

    [order] = sandbox.orders
    [record_id] = sandbox.records
    assert ended.code == 0
    assert order.body == {"imageId": "img_1", "suggestion": "Slow zoom", "provider": "pollo"}
    assert ended.out.split()[:2] == [record_id, "DONE"]
    assert ended.out.split()[2].startswith(sandbox.cdn_url)
    assert "1 video, about 10 credits" in ended.err


async def test_a_generated_image_is_sent_as_one(sandbox):
    """``--generated`` says which of the two ids it is."""
    ended = await qamera("video", "img_1", "--generated", "--no-wait", *QUICK, sandbox=sandbox)

    assert ended.code == 0
    assert [order.body for order in sandbox.orders] == [{"generatedImageId": "img_1"}]


async def test_no_wait_says_the_record_and_looks_no_further(sandbox):
    """Only the id is on stdout, for a script to keep, and nobody polls."""
    ended = await qamera("reel", "img_1", "img_2", "--no-wait", *QUICK, sandbox=sandbox)

    assert (ended.code, ended.out.split()) == (0, list(sandbox.records))
    assert sandbox.orders[0].body == {"imagesIds": ["img_1", "img_2"]}
    assert [request.method for request in sandbox.requests] == ["POST"]


async def test_out_fetches_the_clip(sandbox, tmp_path):
    """The file is there, whole, and its name is the result."""
    clip = tmp_path / "clip.mp4"
    ended = await qamera("reel", "img_1", "--out", clip, *QUICK, sandbox=sandbox)

    assert (ended.code, ended.out.strip()) == (0, str(clip))
    assert clip.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "arguments",
    [
        ("video", "img_1", "--no-wait", "--out", "clip.mp4"),
        ("video", ""),
        ("video",),
        ("video", "img_1", "--quota", "60"),
        ("video", "img_1", "--timeout", "0"),
        ("reel",),
        ("reel", *(f"img_{number}" for number in range(11))),
        ("wait",),
        ("download", "vid_1"),
        ("videos", "--colour"),
        ("nothing",),
    ],
)
async def test_what_can_not_be_meant_is_refused_before_any_request(sandbox, arguments):
    """Exit code 2, a reason, no traceback, nothing sent."""
    ended = await qamera(*arguments, sandbox=sandbox)

    assert ended.code == 2
    assert ended.err.strip()
    assert "Traceback" not in ended.err
    assert sandbox.requests == []


async def test_a_failed_job_is_one_line_and_exit_code_1(sandbox):
    """It says that it failed, without a traceback."""
    sandbox.trouble("fail_job")
    ended = await qamera("video", "img_1", "--quiet", *QUICK, sandbox=sandbox)

    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
    assert "FAILED" in ended.err


@pytest.mark.parametrize(("status", "code"), [(401, 3), (402, 3), (403, 3), (400, 3), (500, 4), (503, 4)])
async def test_a_refusal_and_a_doubt_have_exit_codes_of_their_own(sandbox, status, code):
    """3 where the API said no; 4 where nobody knows, and then it was sent once."""
    sandbox.trouble("error", status=status)
    ended = await qamera("video", "img_1", "--no-wait", "--timeout", "0.2", *QUICK, sandbox=sandbox)

    posts = [request for request in sandbox.requests if request.method == "POST"]
    assert (ended.code, len(posts)) == (code, 1)
    assert "Traceback" not in ended.err


async def test_without_a_key_nothing_is_tried():
    """It says where the key comes from, exit code 2."""
    ended = await qamera("video", "img_1", QAMERA_BASE_URL="http://127.0.0.1:9")

    assert ended.code == 2
    assert "QAMERA_API_KEY" in ended.err


async def test_wait_tells_of_each_and_fails_with_one(sandbox):
    """Those that are done are told, the one that isn't is an error line, exit code 1."""
    sandbox.trouble("fail_job")
    first = await qamera("video", "img_1", "--no-wait", *QUICK, sandbox=sandbox)
    second = await qamera("video", "img_2", "--no-wait", *QUICK, sandbox=sandbox)
    ended = await qamera("wait", first.out.strip(), second.out.strip(), *QUICK, sandbox=sandbox)

    assert ended.code == 1
    assert ended.out.split()[:2] == [second.out.strip(), "DONE"]
    assert first.out.strip() in ended.err


async def test_waiting_has_a_limit(sandbox):
    """``--timeout`` ends the wait with exit code 1; the job lives on."""
    sandbox.trouble("late", seconds=1000)
    order = await qamera("video", "img_1", "--no-wait", *QUICK, sandbox=sandbox)
    ended = await qamera("wait", order.out.strip(), "--timeout", "0.2", *QUICK, sandbox=sandbox)

    assert ended.code == 1
    assert order.out.strip() in ended.err


async def test_an_id_that_is_in_no_list_is_told(sandbox):
    """A mistyped one is waited for, since a server may list late; but not in silence."""
    ended = await qamera("wait", "vid_mistyped", "--timeout", "0.3", *QUICK, sandbox=sandbox)

    assert ended.code == 1
    assert "not in the list, so far or for good: vid_mistyped" in ended.err.splitlines()


async def test_videos_are_rows_and_can_be_filtered(sandbox):
    """One line each where nobody looks at a terminal; letter case of the status doesn't matter."""
    sandbox.add_records(3)
    sandbox.add_records(2, "FAILED")
    everything = await qamera("videos", *QUICK, sandbox=sandbox)
    failed = await qamera("videos", "--status", "failed", "--status", "odd", *QUICK, sandbox=sandbox)

    assert [line.split("\t")[0] for line in everything.out.splitlines()] == ["id", *sandbox.records]
    assert [line.split("\t")[1] for line in failed.out.splitlines()] == ["status", "FAILED", "FAILED"]


async def test_videos_as_json_are_an_object_a_line(sandbox):
    """Each with all that is known of it."""
    sandbox.add_records(2)
    ended = await qamera("videos", "--json", *QUICK, sandbox=sandbox)

    assert [video["id"] for video in ended.objects] == list(sandbox.records)
    assert {"type", "status", "state", "video_url", "thumbnail", "created_at"} <= ended.objects[0].keys()


async def test_a_reader_that_leaves_is_no_error(sandbox):
    """``| head -1`` ends it without a word, however much was to come."""
    sandbox.add_records(20_000)
    process = await asyncio.create_subprocess_shell(
        f"'{SCRIPT}' videos --json --quota 1000/1 | head -1",
        env=environment(sandbox),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert len(out.splitlines()) == 1
    assert err == b""


async def test_download_names_files_after_their_records(sandbox, tmp_path):
    """Whatever the ids are, the files are in the folder; their names are the result."""
    sandbox.add_records(2)
    ids = list(sandbox.records)
    ended = await qamera("download", *ids, "--to", tmp_path / "clips", *QUICK, sandbox=sandbox)

    assert ended.code == 0
    assert sorted(ended.out.split()) == sorted(str(tmp_path / "clips" / f"{i}.mp4") for i in ids)
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {f"{i}.mp4" for i in ids}


async def test_download_replaces_only_when_told(sandbox, tmp_path):
    """A file that is there stays as it is, and that is said; with ``--overwrite`` it is replaced."""
    sandbox.add_records(1)
    [record_id] = sandbox.records
    (tmp_path / f"{record_id}.mp4").write_text("mine")
    kept = await qamera("download", record_id, "--to", tmp_path, *QUICK, sandbox=sandbox)
    mine = (tmp_path / f"{record_id}.mp4").read_bytes()
    replaced = await qamera("download", record_id, "--to", tmp_path, "--overwrite", *QUICK, sandbox=sandbox)

    assert (kept.code, mine) == (0, b"mine")
    assert "--overwrite" in kept.err
    assert replaced.code == 0
    assert (tmp_path / f"{record_id}.mp4").read_bytes() != mine


async def test_an_error_as_json_has_its_evidence(sandbox):
    """There are only objects on stdout, the readable line is on stderr."""
    sandbox.trouble("error", status=402)
    ended = await qamera("video", "img_1", "--json", *QUICK, sandbox=sandbox)

    [error] = ended.objects
    assert (error["type"], error["error"], error["status"]) == ("error", "InsufficientCreditsError", 402)
    assert "credits" in ended.err


async def test_debug_adds_the_traceback_and_never_the_key(sandbox):
    """It is wherever a server may have echoed it, and masked there."""
    canary = "mk_live_canary.never-to-be-shown"
    sandbox.trouble("error", status=400, body='{"error": "bad key ' + canary + '"}')
    ended = await qamera("video", "img_1", "--debug", *QUICK, sandbox=sandbox, QAMERA_API_KEY=canary)
    plain = await qamera("video", "img_1", *QUICK, sandbox=sandbox, QAMERA_API_KEY=canary)

    assert ended.code == plain.code == 3
    assert "Traceback" in ended.err
    assert "Traceback" not in plain.err
    assert canary not in ended.err + ended.out + plain.err + plain.out


@pytest.mark.parametrize("name", ["there.mp4", "nowhere/clip.mp4", "."])
async def test_a_clip_that_can_not_be_written_is_not_paid_for(sandbox, tmp_path, name):
    """It is said before anything is sent; ``--overwrite`` allows what is there to be replaced."""
    (tmp_path / "there.mp4").write_text("mine")
    ended = await qamera("video", "img_1", "--out", name, *QUICK, sandbox=sandbox, cwd=tmp_path)
    before = len(sandbox.orders)
    replaced = await qamera(
        "video", "img_1", "--out", "there.mp4", "--overwrite", *QUICK, sandbox=sandbox, cwd=tmp_path
    )

    assert (ended.code, before) == (2, 0)
    assert ended.err.startswith("error: --out: ")
    assert replaced.code == 0


async def test_the_same_record_twice_is_one(sandbox, tmp_path):
    """Neither fetched nor waited for twice."""
    sandbox.add_records(1)
    [record_id] = sandbox.records
    fetched = await qamera("download", record_id, record_id, "--to", tmp_path, *QUICK, sandbox=sandbox)
    waited = await qamera("wait", record_id, record_id, *QUICK, sandbox=sandbox)

    assert (fetched.code, len(fetched.out.splitlines())) == (0, 1)
    assert (waited.code, len(waited.out.splitlines())) == (0, 1)


@pytest.mark.parametrize(
    ("trouble", "arguments"),
    [
        (("fail_job", {}), ()),
        (("error", {"status": 500}), ("--timeout", "0.2")),
        (("late", {"seconds": 1000}), ("--timeout", "0.2")),
        (("no_url", {"seconds": 1000}), ("--timeout", "0.2", "--out", "clip.mp4")),
    ],
)
async def test_an_error_speaks_of_the_shell(sandbox, tmp_path, trouble, arguments):
    """What to do is said in words of the command line, never in Python's."""
    sandbox.trouble(trouble[0], **trouble[1])
    ended = await qamera("video", "img_1", *arguments, *QUICK, sandbox=sandbox, cwd=tmp_path)

    assert ended.code in {1, 4}
    assert [word for word in ("session.", "await", "overwrite=", "adopt(", "job(") if word in ended.err] == []


async def test_a_usage_error_is_a_line_and_an_object(sandbox):
    """Also where the command line itself can't be read."""
    ended = await qamera("video", "--json", sandbox=sandbox)
    plain = await qamera("video", sandbox=sandbox)

    [error] = ended.objects
    assert (ended.code, plain.code) == (2, 2)
    assert (error["type"], error["error"]) == ("error", "UsageError")
    assert len(plain.err.splitlines()) == 1
    assert plain.out == ""


async def test_output_that_can_not_be_written_is_no_traceback(sandbox):
    """A full disk, and a reader that has gone, for help as well as for results."""
    codes = {}
    for name, text in {
        "full": "--help > /dev/full",
        "gone": "--help | true; exit ${PIPESTATUS[0]}",
        "closed": "videos --quota 1000/1 >&-",
        "no input": "video img_1 --no-wait --quota 1000/1 <&-",
    }.items():
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"'{SCRIPT}' {text}"),
            env=environment(sandbox),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        _, err = await process.communicate()
        codes[name] = process.returncode
        assert b"Traceback" not in err, name

    assert codes == {"full": 1, "gone": codes["gone"], "closed": 0, "no input": 0}
    assert codes["gone"] in {0, 141}  # whoever was quicker
    assert len(sandbox.orders) == 1
