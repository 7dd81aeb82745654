"""How far a batch has come at one moment, as frozen values."""

from __future__ import annotations

import enum

import attrs


class JobKind(enum.Enum):
    """Why a job is worth seeing."""

    DOWNLOADING = "downloading"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    RUNNING = "running"


@attrs.frozen
class JobLine:
    """A job worth seeing.

    Args:
        kind: Why it is.
        name: The caller's name for it, or its record id: data, which may hold anything.
        what: What it makes: ``video``, ``reel of 4``; empty where that isn't known.
        status: The server's word for its state, or a word for what went wrong: data as well.
        age: Seconds since it was submitted, began to be downloaded, or went wrong.
        done: How many bytes of it were downloaded; None where it isn't being downloaded.
        size: How many bytes it has; None where nobody knows.

    """

    kind: JobKind
    name: str
    what: str
    status: str
    age: float
    done: int | None = None
    size: int | None = None


@attrs.frozen
class Wait:
    """What everything waits for just now.

    Args:
        reason: In a few words.
        seconds: For how long, as far as is known.
        trouble: Whether it is one; the quota is none.

    """

    reason: str
    seconds: float
    trouble: bool


@attrs.frozen
class Snapshot:
    """How far it has come.

    Args:
        total: How many outcomes there will be; None where nobody knows.
        done: How many outcomes went well.
        failed: How many didn't.
        ambiguous: How many may or may not have been paid for.
        submitted: How many requests were accepted since the start.
        in_flight: How many jobs the server is at work on.
        reserved: The credits reserved since the start.
        refunded: The credits of it that came back, with jobs that failed.
        used: How many requests of the quota are used up.
        limit: How many it allows.
        cooldown: For how many seconds it holds all requests after a 429; 0 where it doesn't.
        wait: What everything waits for just now; None: nothing.
        elapsed: Seconds since the start.
        remaining: Seconds until all is done; None while nobody can know.
        jobs: The few jobs most worth seeing.

    """

    total: int | None
    done: int
    failed: int
    ambiguous: int
    submitted: int
    in_flight: int
    reserved: int
    refunded: int
    used: int
    limit: int
    cooldown: float
    wait: Wait | None
    elapsed: float
    remaining: float | None
    jobs: tuple[JobLine, ...]

    @property
    def settled(self) -> int:
        """How many outcomes there are."""
        return self.done + self.failed + self.ambiguous
