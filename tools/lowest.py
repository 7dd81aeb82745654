"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

python tools/lowest.py > lowest.txt && pip install -e '.[test]' -c lowest.txt

They are those of the package itself and of its extras ``cli``, ``dbos`` and ``postgres``; the tools of the
tests are as new as they come.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("cli", "dbos", "postgres")
BOUND = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def constraints() -> list[str]:
    """Give one for each dependency.

    Raises:
        ValueError: A dependency has no lower bound.

    """
    found: list[str] = []
    extras = [dependency for extra in EXTRAS for dependency in PROJECT["optional-dependencies"][extra]]
    for dependency in [*PROJECT["dependencies"], *extras]:
        if dependency.startswith(f"{PROJECT['name']}["):
            continue  # what one extra takes of another
        match = BOUND.match(dependency)
        if match is None:
            raise ValueError(f"{dependency!r} has no lower bound")
        # What comes with an extra of it, as psycopg[binary] does, it pins itself.
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    print("\n".join(constraints()))
