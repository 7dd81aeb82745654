"""One poll for all who wait with one ledger and one key: who polls, who waits for what, and what was seen.

Only what somebody else waits for is kept of a list, not the list.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs

from .intents import Tables, pieces

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Mapping

    from .worker import Worker

_C = TypeVar("_C", bound=Tables)  # what an operation works with
_PIECE = 400  # rows in one statement
_GONE = (
    "DELETE FROM waiting WHERE account = ? AND poller = ? AND record_id IN "
    "(SELECT column1 FROM (VALUES {marks}) AS rows)"
)
_COME = (
    "INSERT INTO waiting (account, poller, owner, record_id) "
    "SELECT ?, ?, CAST(? AS BIGINT), column1 FROM (VALUES {marks}) AS rows WHERE true "
    "ON CONFLICT (account, record_id, poller) DO NOTHING"
)


@attrs.frozen
class Look:
    """What the board says.

    Args:
        number: How many polls have ended.
        ours: Whether this poller made the last of them.
        sent: How many seconds ago that was sent.
        ended: How many seconds ago it ended.
        complete: Whether its list was.
        trouble: Why it brought nothing; empty where it did.
        items: What of its list is waited for here: each record as it stands there, None where it doesn't.
        waits: How many records the board says this poller waits for.
        turn: Whether it is this poller's turn now.
        others: What others wait for, where it is.
    """

    number: int
    ours: bool
    sent: float
    ended: float
    complete: bool
    trouble: str
    items: Mapping[str, str | None]
    waits: int = 0
    turn: bool = False
    others: frozenset[str] = frozenset()


class Board(ABC, Generic[_C]):
    """The board of an account, for one poller.

    Args:
        worker: runs what is asked of the database.
        account: whose list it is.
        owner: gives who this process is.
    """

    tells: ClassVar[bool]
    """Whether it tells of news; else one has to look."""

    def __init__(self, worker: Worker[_C], account: str, owner: Callable[[], int]) -> None:
        self._worker = worker
        self._account = account
        self._owner = owner
        self._name = secrets.token_hex(12)

    # --- what differs ---------------------------------------------------------------------------

    @abstractmethod
    def _operation(self, operation: Callable[[_C], Any]) -> Callable[[_C], Any]:
        """Give an operation as it is queued."""

    @abstractmethod
    def _now(self) -> str:
        """Give the present moment, in SQL."""

    @abstractmethod
    def _alone(self, connection: _C) -> None:
        """Keep others from the board until the transaction's end."""

    @abstractmethod
    def _forget_dead(self, connection: _C) -> None:
        """Take the turn from an owner who is dead, and forget what such owners waited for."""

    @abstractmethod
    def _tell(self, connection: _C) -> None:
        """Tell the others that there is something to look at."""

    def may_have_news(self) -> bool:
        """Tell, without asking the database, whether there may be something new since the last call."""
        return True

    def listen(self, tell: Callable[[], None]) -> None:
        """From now on tell, from another thread, when there may be news; where one is told of them."""

    def stop_listening(self) -> None:
        """Tell no more."""

    # --- what a poller asks for -----------------------------------------------------------------

    def look(self, known: int, come: Collection[str], gone: Collection[str]) -> asyncio.Future[Look]:
        """Say what is waited for and what no more, and look what polls have brought since ``known``."""

        def operation(connection: _C) -> Look:
            self._sync(connection, come, gone)
            return self._look(connection, known)

        return self._worker.run("look at the polls", self._operation(operation))

    def begin(
        self,
        known: int,
        come: Collection[str],
        gone: Collection[str],
        *,
        fresh: float,
        lease: float,
    ) -> asyncio.Future[Look]:
        """Do as ``look`` does, and take the turn where nobody has it.

        Args:
            known: the last poll that is known here.
            come: what is waited for since the last call.
            gone: what is waited for no more since then.
            fresh: where a poll that isn't known ended so many seconds ago at most, there is no turn.
            lease: who has had the turn, and has said nothing for so many seconds, loses it.
        """

        def operation(connection: _C) -> Look:
            run, now = connection.execute, self._now()
            self._alone(connection)
            self._sync(connection, come, gone)
            run(
                "INSERT INTO polls VALUES (?, 0, 0, '', 0, '', 0, 0, ?, '') ON CONFLICT (account) DO NOTHING",
                (self._account, True),
            )
            self._forget_dead(connection)
            # A moment that is still to come is of another boot, or of before a clock was set back.
            run(
                f"UPDATE polls SET owner = ?, poller = ?, begun = {now} WHERE account = ? "  # noqa: S608
                f"AND (owner = 0 OR poller = ? OR begun < {now} - ? OR begun > {now}) "
                f"AND (number = ? OR ended < {now} - ? OR ended > {now})",
                (self._owner(), self._name, self._account, self._name, lease, known, fresh),
            )
            others = run(
                "SELECT DISTINCT record_id FROM waiting WHERE account = ? AND poller <> ?",
                (self._account, self._name),
            )
            found = self._look(connection, known)
            if not found.turn:
                return found
            return attrs.evolve(found, others=frozenset(name for (name,) in others.fetchall()))

        return self._worker.run("take its turn to poll", self._operation(operation))

    def publish(
        self, sent: float, items: Mapping[str, str | None], *, complete: bool, trouble: str = ""
    ) -> asyncio.Future[int | None]:
        """Say what a poll brought, and give up the turn; gives its number, None where the turn was lost.

        Args:
            sent: how many seconds ago it was sent.
            items: what of it others wait for.
            complete: whether the list was.
            trouble: why it brought nothing; empty where it did.
        """

        def operation(connection: _C) -> int | None:
            run, now = connection.execute, self._now()
            mine = (self._account, self._name)
            self._alone(connection)
            for piece in pieces(list(items.items()), _PIECE):
                # Where the turn was lost, somebody else has the newer list by now.
                run(
                    "INSERT INTO shown (account, record_id, item) "  # noqa: S608 - marks
                    f"SELECT ?, column1, column2 FROM (VALUES {', '.join(['(?, ?)'] * len(piece))}) AS rows "
                    "WHERE EXISTS (SELECT 1 FROM polls WHERE account = ? AND poller = ?) "
                    "ON CONFLICT (account, record_id) DO UPDATE SET item = excluded.item "
                    "WHERE shown.item <> excluded.item OR (shown.item IS NULL) <> (excluded.item IS NULL)",
                    (self._account, *[value for row in piece for value in row], *mine),
                )
            run(
                "DELETE FROM shown WHERE account = ? AND record_id NOT IN "
                "(SELECT record_id FROM waiting WHERE account = ? AND poller <> ?)",
                (self._account, *mine),
            )
            run(
                f"UPDATE polls SET number = number + 1, owner = 0, poller = '', last = ?, "  # noqa: S608
                f"sent = {now} - ?, ended = {now}, complete = ?, trouble = ? "
                "WHERE account = ? AND poller = ?",
                (self._name, sent, complete, trouble, *mine),
            )
            self._tell(connection)
            kept = run(
                "SELECT number FROM polls WHERE account = ? AND last = ?", (self._account, self._name)
            ).fetchone()
            return None if kept is None else int(kept[0])

        return self._worker.run("keep what a poll brought", self._operation(operation))

    def give_up(self) -> None:
        """Give up the turn, where it is this poller's, without a poll."""
        self._worker.post("give up its turn to poll", self._operation(self._give_up))

    def leave(self) -> None:
        """Wait for nothing more."""
        self.stop_listening()

        def operation(connection: _C) -> None:
            self._give_up(connection)
            connection.execute(
                "DELETE FROM waiting WHERE account = ? AND poller = ?", (self._account, self._name)
            )

        self._worker.post("wait for nothing more", self._operation(operation))

    # --- in the thread --------------------------------------------------------------------------

    def _give_up(self, connection: _C) -> None:
        connection.execute(
            "UPDATE polls SET owner = 0, poller = '' WHERE account = ? AND poller = ?",
            (self._account, self._name),
        )

    def _sync(self, connection: _C, come: Collection[str], gone: Collection[str]) -> None:
        mine = (self._account, self._name)
        for statement, names, fixed in ((_GONE, gone, mine), (_COME, come, (*mine, self._owner()))):
            for piece in pieces(list(names), _PIECE):
                connection.execute(statement.format(marks=", ".join(["(?)"] * len(piece))), (*fixed, *piece))

    def _look(self, connection: _C, known: int) -> Look:
        now = self._now()
        polls = connection.execute(
            f"SELECT number, last = ?, {now} - sent, {now} - ended, complete, trouble, poller = ? "  # noqa: S608
            "FROM polls WHERE account = ?",
            (self._name, self._name, self._account),
        )
        items = connection.execute(
            "SELECT w.record_id, s.item FROM waiting w "
            "JOIN shown s ON s.account = w.account AND s.record_id = w.record_id "
            "WHERE w.account = ? AND w.poller = ? AND EXISTS "
            "(SELECT 1 FROM polls p WHERE p.account = w.account AND p.number <> ? AND p.last <> ?)",
            (self._account, self._name, known, self._name),
        )
        waiting = connection.execute(
            "SELECT count(*) FROM waiting WHERE account = ? AND poller = ?", (self._account, self._name)
        )
        found = polls.fetchone() or (0, False, 0.0, 0.0, True, "", False)
        number, ours, sent, ended, complete, trouble, turn = found
        (waits,) = waiting.fetchone() or (0,)
        return Look(
            number,
            bool(ours),
            sent,
            ended,
            bool(complete),
            trouble,
            dict(items.fetchall()),
            waits=waits,
            turn=bool(turn),
        )
