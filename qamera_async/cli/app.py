"""The commands and their options. What they do is imported when one is run, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter, validators

from .._version import __version__
from .codes import Code
from .options import Api, Delivery, Flag, KnownLedger, Manners, Quota, limits_of

_TRY = Group("To try it", sort_key=1)
_SINGLE = Group("A few", sort_key=2)
_MANY = Group("A catalogue", sort_key=3)
_API, _DELIVERY, _MANNERS = Api(), Delivery(), Manners()
_Some = Annotated[str, Parameter(required=True)]
_ENVIRONMENT = (
    "The key comes from QAMERA_API_KEY, the address of the API from QAMERA_BASE_URL.\n\n"
    "Exit codes: 0 all done, 1 some failed (in a batch, also rows that the API refused), 2 usage, "
    "3 refused by the API, 4 ambiguous submissions to look at, 130 interrupted or declined, "
    "141 nobody reads the output."
)

_CATALOGUE = (
    "The file is CSV with a header, or one JSON object a line. Its columns are image_id, generated_image_id, "
    "image_ids (a reel's, with blanks between them), suggestion, provider and ref. The ref is the row's own "
    "name and what makes it once-only; a row without one is called after its image. All rows are checked "
    "before the first is ordered.\n\n"
    "Example: qamera batch catalogue.csv --to clips --ledger jobs.db --max-credits 500"
)

app = App(
    name="qamera",
    help="Product images to videos, with the Qamera AI API.",
    help_epilogue=_ENVIRONMENT,
    version=__version__,
    help_format="plaintext",
)
app.register_install_completion_command(  # pyright: ignore[reportUnknownMemberType]
    help="Let your shell complete commands and options."
)


# --- to try it ----------------------------------------------------------------------------------


@app.command(group=_TRY, help_epilogue="Example: qamera demo")
def demo(*, to: Path | None = None, manners: Manners = _MANNERS) -> Code:
    """Make 12 videos and 2 reels on a sandbox in this process: no key, no network, no credits.

    Args:
        to: Where the clips and the report go; qamera-demo unless you say otherwise.
    """
    from .demo import demo as body
    from .running import run

    return run(manners, lambda running: body(running, to or Path("qamera-demo")))


@app.command(group=_TRY, help_epilogue="Example: qamera sandbox --port 8700 --job-seconds 5")
def sandbox(
    *,
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 0,
    job_seconds: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 5.0,
    credits: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 1000,  # noqa: A002 - the API's word
    quota: Quota = "60/60",
    no_quota: Flag = False,
    records: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    manners: Manners = _MANNERS,
) -> Code:
    """Serve the API on this machine, to try your own code on; it says its address and its key.

    Args:
        port: Where to listen; 0 is any free one.
        job_seconds: How long a job takes, in seconds.
        credits: What the account has to spend.
        quota: REQUESTS/SECONDS that the key may use.
        no_quota: Count no requests.
        records: How many old records the list has.
    """
    from .running import run
    from .serving import serve

    limits = None if no_quota else limits_of(quota)
    return run(manners, lambda running: serve(running, port, job_seconds, credits, limits, records))


# --- a few --------------------------------------------------------------------------------------


@app.command(
    group=_SINGLE, help_epilogue='Example: qamera video img_abc123 --suggestion "Slow zoom in" --out clip.mp4'
)
def video(
    image_id: str,
    /,
    *,
    suggestion: str | None = None,
    provider: str | None = None,
    generated: Flag = False,
    delivery: Delivery = _DELIVERY,
    api: Api = _API,
    manners: Manners = _MANNERS,
) -> Code:
    """Order one video from one image, and wait for it; this spends credits.

    Args:
        image_id: The source image.
        suggestion: Creative direction, motion.
        provider: The generation provider.
        generated: The image is a generated one.

    """
    from .. import VideoRequest
    from .single import order

    source = (None, image_id) if generated else (image_id, None)
    return order(lambda: VideoRequest(source[0], source[1], suggestion, provider), delivery, api, manners)


@app.command(group=_SINGLE, help_epilogue="Example: qamera reel img_001 img_002 img_003 --out reel.mp4")
def reel(
    *image_ids: str,
    delivery: Delivery = _DELIVERY,
    api: Api = _API,
    manners: Manners = _MANNERS,
) -> Code:
    """Order one reel from 1 to 10 images, and wait for it; this spends credits.

    Args:
        image_ids: The images, in the order of the reel.

    """
    from .. import ReelRequest
    from .single import order

    return order(lambda: ReelRequest(image_ids), delivery, api, manners)


@app.command(group=_SINGLE, help_epilogue="Example: qamera wait vid_001 vid_002")
def wait(*record_ids: _Some, api: Api = _API, manners: Manners = _MANNERS) -> Code:
    """Wait for jobs that were registered earlier, and tell of each as it ends.

    Args:
        record_ids: What their registration gave.

    """
    from .running import run
    from .single import wait as body

    return run(manners, lambda running: body(running, record_ids, api))


@app.command(group=_SINGLE, help_epilogue="Example: qamera videos --status DONE --json")
def videos(
    *,
    status: Annotated[list[str] | None, Parameter(negative=())] = None,
    api: Api = _API,
    manners: Manners = _MANNERS,
) -> Code:
    """Show all videos and reels of the account.

    Args:
        status: Only those with this status; it may be given several times.

    """
    from .running import run
    from .single import videos as body

    return run(manners, lambda running: body(running, status or (), api))


@app.command(group=_SINGLE, help_epilogue="Example: qamera download vid_001 vid_002 --to clips")
def download(
    *record_ids: _Some, to: Path, overwrite: Flag = False, api: Api = _API, manners: Manners = _MANNERS
) -> Code:
    """Fetch clips into a folder, each named after its record; jobs under way are waited for.

    Args:
        record_ids: The records.
        to: The folder; it is made where there is none.
        overwrite: Replace files that are there.

    """
    from .running import run
    from .single import download as body

    return run(manners, lambda running: body(running, record_ids, to, api, overwrite=overwrite))


# --- a catalogue --------------------------------------------------------------------------------


@app.command(group=_MANY, help_epilogue=_CATALOGUE)
def batch(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    to: Path,
    ledger: str,
    max_in_flight: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 300,
    max_credits: Annotated[int | None, Parameter(validator=validators.Number(gte=0))] = None,
    retry_failed: Flag = False,
    dry_run: Flag = False,
    yes: Flag = False,
    api: Api = _API,
    manners: Manners = _MANNERS,
) -> Code:
    """Order a whole catalogue, fetch its clips, and write a report; run again, it goes on.

    Args:
        file: The catalogue; - is the standard input.
        to: The folder for clips, thumbnails and report.html; it is made where there is none.
        ledger: What keeps what is paid for: a file, which is made where there is none, or postgresql://...
        max_in_flight: How many may be under way at a time.
        max_credits: Stop before more are spent than that.
        retry_failed: Order again what the ledger says has failed.
        dry_run: Say what it would order and how long the quota makes it take; order nothing.
        yes: Don't ask.

    """
    from .batch import Asked
    from .batch import batch as body
    from .many import Bounds

    bounds = Bounds(max_in_flight=max_in_flight, max_credits=max_credits, retry_failed=retry_failed)
    asked = Asked(file=file, folder=to, ledger=ledger, bounds=bounds, dry_run=dry_run, yes=yes)
    return body(asked, api, manners)


@app.command(
    group=_MANY,
    help_epilogue=(
        "What is pruned is forgotten: a ref that was done or failed is ordered, and paid for, when it is "
        "asked for again. What is under way, unfinished or ambiguous stays, however old. A ledger that is "
        "copied is to be used by nobody meanwhile, and can't be opened afterwards, so that nobody orders "
        "with both.\n\n"
        "Examples:\n\nqamera ledger jobs.db\n\nqamera ledger jobs.db adopt INTENT vid_001\n\n"
        "qamera ledger jobs.db abandon INTENT\n\nqamera ledger jobs.db prune --older-than 90d --dry-run\n\n"
        "qamera ledger jobs.db copy postgresql://shop@db.example/shop"
    ),
)
def ledger(
    file: KnownLedger,
    action: Literal["adopt", "abandon", "prune", "copy"] | None = None,
    what: str | None = None,
    /,
    *record_ids: str,
    older_than: str | None = None,
    dry_run: Flag = False,
    keep: Flag = False,
    yes: Flag = False,
    manners: Manners = _MANNERS,
) -> Code:
    """Show what a ledger has, settle what is ambiguous, remove what is old, or copy it. No key is needed.

    Args:
        file: The ledger: a file, or postgresql://...
        action: adopt: these records were made of it; abandon: nothing was, so it may be ordered again; prune:
            remove what is settled and old; copy: copy all of it into another ledger.
        what: The one to settle, as the ledger shows it; or the ledger to copy to.
        record_ids: What was made of it.
        older_than: With prune: what was last touched so long ago; 90d, 8w or 12h.
        dry_run: With prune: say what it would remove; remove nothing.
        keep: With copy: leave the ledger usable. Use only one of both from then on.
        yes: With prune: don't ask.

    """
    from .looking import settle, show
    from .running import run

    given = {"--older-than": older_than, "--dry-run": dry_run, "--keep": keep, "--yes": yes}
    fitting = {"prune": ("--older-than", "--dry-run", "--yes"), "copy": ("--keep",)}.get(action or "", ())
    for option in [option for option, value in given.items() if value and option not in fitting]:
        raise ValueError(f"{option} belongs to {'copy' if option == '--keep' else 'prune'}.")
    if action is None:
        return run(manners, lambda running: show(running, file))
    if action == "prune":
        from .ledger_upkeep import Pruning, prune

        if what is not None or older_than is None:
            raise ValueError("give prune --older-than AGE, as in 90d.")
        return prune(Pruning(ledger=file, older_than=older_than, dry_run=dry_run, yes=yes), manners)
    if action == "copy":
        from .ledger_upkeep import copy

        if what is None or record_ids:
            raise ValueError("give copy TO, another ledger.")
        to = what
        return run(manners, lambda running: copy(running, file, to, keep=keep))
    if what is None or (action == "adopt") is not bool(record_ids):
        raise ValueError("give adopt INTENT RECORD_ID..., or abandon INTENT.")
    intent = what
    return run(manners, lambda running: settle(running, file, action, intent, record_ids))


@app.command(group=_MANY, help_epilogue="Example: qamera report jobs.db --to clips/report.html")
def report(ledger: KnownLedger, /, *, to: Path, manners: Manners = _MANNERS) -> Code:
    """Write a page of what a ledger has: clips, a timeline, and totals. No key is needed.

    Args:
        ledger: The ledger: a file, or postgresql://...
        to: The page's file; one that is there is replaced. It works offline, beside its clips.

    """
    from .looking import report as body
    from .paths import check_file
    from .running import run

    check_file("--to", to, replace=True)

    return run(manners, lambda running: body(running, ledger, to))
