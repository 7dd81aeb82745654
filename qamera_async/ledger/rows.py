"""What the ledger keeps of one paid request: a row, its states, and its form as JSON."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import attrs
import msgspec

from .._models import Intent, JobState, Receipt, ReelRequest, Request, Video, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Collection

    from cattrs import Converter


class LedgerState(enum.Enum):
    """How far a request has come.

    CLAIMED: its owner lives, nothing is sent. SENDING: a byte may have left. REFUSED: the server said no.
    SUBMITTED: there is a receipt. AMBIGUOUS: nobody knows. ADOPTED: somebody named its records.
    ABANDONED: somebody said that there are none. DONE, FAILED: what was seen in the end.
    """

    CLAIMED = "claimed"
    SENDING = "sending"
    REFUSED = "refused"
    SUBMITTED = "submitted"
    AMBIGUOUS = "ambiguous"
    ADOPTED = "adopted"
    ABANDONED = "abandoned"
    DONE = "done"
    FAILED = "failed"


UNDER_WAY = frozenset({LedgerState.CLAIMED, LedgerState.SENDING})
UNFINISHED = frozenset({LedgerState.SUBMITTED, LedgerState.ADOPTED})
OPEN_TO_ANEW = frozenset({LedgerState.REFUSED, LedgerState.ABANDONED})
"""The states after which the same ref may be ordered anew, whatever the request."""


OPEN_TO_ADOPTION = frozenset({LedgerState.AMBIGUOUS, LedgerState.ADOPTED})
"""The states in which a person may say what became of it, or take back what was said."""


@attrs.frozen
class Row:
    """One paid request and what became of it.

    Its moments are for people who look: the clock may have been set between them, and nothing is decided by
    them but which candidates an ambiguous request has.

    Args:
        id: The intent's id.
        origin: The API's origin that it was meant for.
        request: What was meant.
        state: How far it has come.
        owner: Who works on it, while it is under way.
        claimed_at: When it was claimed; None where an earlier version claimed it.
        sent_at: When sending began; None before.
        submitted_at: When the receipt was there; None before.
        settled_at: When it was seen done or failed; None before.
        downloaded_at: When its result was downloaded last; None before.
        record_ids: The records that were made of it.
        receipt: The server's answer; None before, and where somebody adopted records.
        videos: The final state of its records, in their order.
        candidates: What may have come of it, where that isn't known; None: nobody has looked.
        reason: Why it was refused or is ambiguous, in words.
        files: What was downloaded of it: the sizes in bytes by path.

    """

    id: str
    origin: str
    request: Request
    state: LedgerState = LedgerState.CLAIMED
    owner: int = 0
    claimed_at: datetime | None = None
    sent_at: datetime | None = None
    submitted_at: datetime | None = None
    settled_at: datetime | None = None
    downloaded_at: datetime | None = None
    record_ids: tuple[str, ...] = ()
    receipt: Receipt | None = None
    videos: tuple[Video, ...] = ()
    candidates: tuple[Video, ...] | None = None
    reason: str = ""
    files: dict[str, int] = attrs.field(factory=dict[str, int])

    @property
    def intent(self) -> Intent:
        """The same for a caller."""
        return Intent(self.id, self.request, self.sent_at or datetime.now(UTC), self.candidates or ())

    def with_those(self, left: Collection[str]) -> Row:
        """Give it with those of its candidates that are left."""
        if self.candidates is None:
            return self
        return attrs.evolve(self, candidates=tuple([video for video in self.candidates if video.id in left]))

    def encoded(self) -> bytes:
        """Give all of it as JSON."""
        return msgspec.json.encode(_converter().unstructure(self))


def decoded(body: bytes) -> Row:
    """Give the row of a JSON body.

    Raises:
        ValueError: It is none.

    """
    try:
        return _converter().structure(msgspec.json.decode(body), Row)
    except Exception as error:
        # cattrs raises groups of whatever its hooks and the values' own checks raise.
        raise ValueError(f"no row ({type(error).__name__})") from None


def request_text(request: Request) -> str:
    """Give all of a request as JSON."""
    return msgspec.json.encode(_converter().unstructure(request, VideoRequest | ReelRequest)).decode()


def request_of(text: str) -> Request:
    """Give the request of a JSON text that ``request_text`` gave."""
    return _converter().structure(msgspec.json.decode(text), VideoRequest | ReelRequest)  # type: ignore[arg-type]


def same_request(one: Request, other: Request) -> bool:
    """Tell whether two requests ask for the same, whatever they are called."""
    return attrs.evolve(one, ref=None) == attrs.evolve(other, ref=None)


@cache
def _converter() -> Converter:
    # Imported with the first row: cattrs takes a while, and many sessions have no ledger.
    from cattrs import Converter  # noqa: PLC0415
    from cattrs.strategies import configure_tagged_union  # noqa: PLC0415

    converter = Converter()
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text))
    converter.register_structure_hook(JobState, lambda text, _: JobState(text))
    configure_tagged_union(VideoRequest | ReelRequest, converter, tag_name="kind")
    return converter
