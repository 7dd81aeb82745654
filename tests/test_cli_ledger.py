"""``qamera ledger``: pruning and copying, as one types it."""

import asyncio
import os
import pty
import sqlite3
from datetime import UTC, datetime

import postgres
import pytest
from command import SCRIPT, environment, qamera
from test_ledger_prune import filled, left, row

from qamera_async.cli.ledger_upkeep import seconds_of
from qamera_async.ledger import LedgerState
from qamera_async.sandbox import Sandbox

WORD = "sw0rdf1sh"
PRUNE = ("prune", "--older-than", "90d")


@pytest.fixture(params=["sqlite", "postgres"])
async def ledger(request, tmp_path):
    """One with three rows that are old, and one that isn't; in a database its address has a password."""
    place = tmp_path / "jobs.db" if request.param == "sqlite" else postgres.server().database()
    old = [row("a"), row("b", LedgerState.FAILED), row("c", LedgerState.REFUSED)]
    await filled(place, *old, row("new", moment=datetime.now(UTC)))
    return place if request.param == "sqlite" else place.replace("postgres@", f"postgres:{WORD}@")


async def answered(answer, *arguments):
    """Run the command at a terminal of its own, and answer it; give its exit code and what was shown."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        SCRIPT,
        *map(str, arguments),
        env=environment(),
        start_new_session=True,
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.write(ours, answer)
    code = await process.wait()
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    return code, shown


async def test_a_dry_run_says_what_would_go(ledger):
    """With the refs that would be paid for again; nothing goes."""
    ran = await qamera("ledger", ledger, *PRUNE, "--dry-run")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Would remove 3 requests of before ")
    assert "1 finished, 1 failed, 1 refused" in ran.out
    assert "2 refs of these: if asked for again, each is ordered and paid for again." in ran.out
    assert await left(ledger) == ["a", "b", "c", "new"]


async def test_what_is_agreed_to_goes(ledger):
    """What it was is said before and after."""
    ran = await qamera("ledger", ledger, *PRUNE, "--yes")
    again = await qamera("ledger", ledger, *PRUNE, "--yes")

    assert (ran.code, again.code) == (0, 0)
    assert ran.err.startswith("To remove 3 requests")
    assert ran.out.startswith("Removed 3 requests")
    assert again.out.startswith("Removed 0 requests")
    assert await left(ledger) == ["new"]


async def test_as_json_it_is_an_object(ledger):
    """The counts by state, and the moment."""
    ran = await qamera("ledger", ledger, *PRUNE, "--yes", "--json")
    (found,) = ran.objects

    assert datetime.fromisoformat(found.pop("before")) < datetime.now(UTC)
    assert found == {
        "type": "pruned",
        "removed": True,
        "requests": 3,
        "counts": {"done": 1, "failed": 1, "refused": 1},
        "refs": 2,
    }


async def test_what_a_doubt_keeps_is_said(ledger):
    """Who expected more to go learns what to settle."""
    without = await qamera("ledger", ledger, *PRUNE, "--dry-run")
    await filled(ledger, row("doubt", LedgerState.AMBIGUOUS))
    ran = await qamera("ledger", ledger, *PRUNE, "--dry-run")

    assert without.err == ""
    assert ran.out.startswith("Would remove 0 requests")
    assert "stays until that is settled: qamera ledger " in ran.err
    assert WORD not in ran.err


async def test_a_doubt_of_an_unknown_moment_keeps_all(ledger):
    """The moment that is named then is before all others."""
    await filled(ledger, row("doubt", LedgerState.AMBIGUOUS, moment=None))
    ran = await qamera("ledger", ledger, *PRUNE, "--dry-run")

    assert ran.out == "Would remove 0 requests of before 0001-01-01 00:00 UTC.\n"


@pytest.mark.parametrize(("answer", "code", "there"), [(b"y\n", 0, 1), (b"n\n", 130, 4), (b"\n", 130, 4)])
async def test_it_asks_first(ledger, answer, code, there):
    """Only a yes is one."""
    ended, shown = await answered(answer, "ledger", ledger, *PRUNE)

    assert ended == code
    assert "Remove 3 requests, of which 2 would be paid for again? [y/N]" in shown
    assert ("Nothing was removed." in shown) is (code == 130)
    assert len(await left(ledger)) == there


async def test_without_a_terminal_it_has_to_be_told(ledger):
    """What can't be asked is not taken for agreed, as a payment may hang on it."""
    ran = await qamera("ledger", ledger, *PRUNE)

    assert ran.code == 2
    assert "--yes" in ran.err
    assert len(await left(ledger)) == 4


@pytest.mark.parametrize("age", ["90", "d", "0d", "-1d", "1.5d", "90days", "9999999d", ""])
def test_what_is_no_age_is_refused(age):
    """Nobody guesses what a number without a unit means."""
    with pytest.raises(ValueError, match="older-than"):
        seconds_of(age)


async def test_an_age_before_all_dates_is_refused(ledger):
    """As any other that can't be meant."""
    ran = await qamera("ledger", ledger, "prune", "--older-than", "999999w", "--dry-run")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: older_than ")


def test_an_age_has_a_unit():
    """Hours, days or weeks."""
    assert [seconds_of(age) for age in ("12h", "90d", "8w")] == [43_200, 7_776_000, 4_838_400]


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune",),
        ("prune", "int_a", "--older-than", "90d"),
        ("prune", "--older-than", "90d", "--keep"),
        ("copy",),
        ("copy", "a.db", "b.db"),
        ("copy", "a.db", "--yes"),
        ("adopt", "int_a", "vid_a", "--dry-run"),
        ("--older-than", "90d"),
    ],
)
async def test_what_does_not_fit_together_is_refused(tmp_path, arguments):
    """Before anything is opened."""
    path = tmp_path / "jobs.db"
    await filled(path, row("a"))
    ran = await qamera("ledger", path, *arguments, cwd=tmp_path)

    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert sorted(file.name for file in tmp_path.glob("*.db")) == ["jobs.db"]


# --- a copy -------------------------------------------------------------------------------------


async def test_a_copy_is_said_and_what_was_left_is_refused(ledger, tmp_path):
    """Which one to use from now on; the password is in none of it."""
    target = tmp_path / "copy.db"
    ran = await qamera("ledger", ledger, "copy", target)
    shown = await qamera("ledger", ledger)
    there = await qamera("ledger", target)

    assert (ran.code, shown.code, there.code) == (0, 1, 0)
    assert ran.out.startswith(f"Copied 4 requests to {target}. ")
    assert f"give {target} as the ledger from now on." in ran.out
    assert f"was moved to {target}" in shown.err
    assert await left(target) == ["a", "b", "c", "new"]
    assert WORD not in ran.out + ran.err + shown.out + shown.err


@pytest.mark.slow
async def test_a_copy_to_a_database_shows_no_password(tmp_path):
    """Neither what it says nor what is written down in the file that was left."""
    path, address = (
        tmp_path / "jobs.db",
        postgres.server().database().replace("postgres@", f"postgres:{WORD}@"),
    )
    await filled(path, row("a"))
    ran = await qamera("ledger", path, "copy", address, "--json")
    shown = await qamera("ledger", path)

    assert ran.objects == [
        {
            "type": "copied",
            "requests": 1,
            "from": str(path),
            "to": address.replace(f":{WORD}", ""),
            "kept": False,
        }
    ]
    assert "was moved to postgresql://127.0.0.1" in shown.err
    assert WORD not in ran.out + ran.err + shown.err
    assert WORD.encode() not in path.read_bytes()


async def test_one_that_is_kept_can_be_used(ledger, tmp_path):
    """And the danger of using both is said."""
    ran = await qamera("ledger", ledger, "copy", tmp_path / "copy.db", "--keep")

    assert ran.code == 0
    assert "use only one of both" in ran.out
    assert len(await left(ledger)) == 4


# --- what is no ledger to work with -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda address: address.replace("postgresql", "mysql"), 2, "allowed is the path of a file"),
        (lambda address: address.rsplit("/", 1)[0] + "/nowhere", 1, "nowhere"),
        (lambda address: address.replace("postgres:", "nobody:"), 1, "nobody"),
    ],
)
async def test_a_bad_address_is_told_in_a_line(change, code, text):
    """By each action; what to do is about a database, and the password is not in it."""
    address = change(postgres.server().database().replace("postgres@", f"postgres:{WORD}@"))
    for arguments in ((), (*PRUNE, "--dry-run"), ("copy", "copy.db")):
        ran = await qamera("ledger", address, *arguments)

        assert ran.code == code
        assert text in ran.err
        assert len(ran.err.splitlines()) == 1
        assert code == 2 or "See that the database runs and that its address is right" in ran.err
        assert WORD not in ran.out + ran.err


@pytest.mark.slow
async def test_a_role_without_rights_is_told_the_statement_by_the_command(tmp_path):
    """A batch says what has to be run, and orders nothing."""
    address = postgres.server().database()
    postgres.execute(address, "DROP ROLE IF EXISTS poor", "CREATE ROLE poor LOGIN")
    (tmp_path / "c.csv").write_text("image_id\nimg_1\n")
    poor = address.replace("postgres@", "poor@")
    async with Sandbox(quota=None) as sandbox:
        ran = await qamera(
            "batch",
            tmp_path / "c.csv",
            "--to",
            tmp_path / "clips",
            "--ledger",
            poor,
            "--yes",
            sandbox=sandbox,
        )

    assert ran.code == 1
    assert "Have its owner run: CREATE SCHEMA qamera AUTHORIZATION poor;" in ran.err
    assert "Have that done, then try again." in ran.err
    assert sandbox.orders == []


async def test_a_newer_ledger_is_refused_by_the_command(ledger):
    """It says to update, and leaves it as it is."""
    if isinstance(ledger, str):
        postgres.execute(ledger, "UPDATE qamera.meta SET value = 99 WHERE name = 'version'")
    else:
        with sqlite3.connect(ledger) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    for arguments in ((), (*PRUNE, "--yes"), ("copy", "copy.db")):
        ran = await qamera("ledger", ledger, *arguments)

        assert ran.code == 1
        assert "version 99" in ran.err
        assert "Update this package" in ran.err
