"""The names of processes that share work: who goes under one, and is alive, keeps what it has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .intents import Tables


def holder_of(connection: Tables, name: str) -> int | None:
    """Give the owner who has a name; None: nobody has it."""
    found = connection.execute("SELECT owner FROM executors WHERE name = ?", (name,)).fetchone()
    return None if found is None else int(found[0])


def holders(connection: Tables) -> dict[str, int]:
    """Give the owners of all names."""
    return dict(connection.execute("SELECT name, owner FROM executors").fetchall())


def give(connection: Tables, name: str, owner: int) -> None:
    """Let an owner have a name, whoever has had it."""
    connection.execute(
        "INSERT INTO executors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner",
        (name, owner),
    )


def take(connection: Tables, name: str, owner: int) -> None:
    """Take a name from its owner; from nobody else."""
    connection.execute("DELETE FROM executors WHERE name = ? AND owner = ?", (name, owner))
