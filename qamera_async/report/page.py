"""The page itself: the template filled in, and written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..cli.settling import whole_name
from .cards import card
from .timeline import PHASES, timeline
from .totals import totals
from .wording import duration, plural, visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ..ledger import LedgerEntry

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    entries: Sequence[LedgerEntry], *, ledger: str | os.PathLike[str], to: Path, title: str, made: datetime
) -> Path:
    """Write the page of a ledger's entries; blocks meanwhile.

    Args:
        entries: All of them, the oldest first.
        ledger: The ledger's path or address, for the commands that settle what is ambiguous.
        to: The file to write.
        title: What stands at the top.
        made: When it is made, an aware datetime; its offset is that of all times on the page.

    Returns:
        The file.

    Raises:
        OSError: It can't be written.

    """
    folder = Path(os.path.abspath(to)).parent  # noqa: PTH100 - its links stay as they are named
    place = whole_name(ledger)
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _own("report.css"), _own("report.js")
    page = environment.get_template("report.html.jinja").generate(
        title=visible(title),
        made=made,
        policy=_policy(style, script),
        style=style,
        script=script,
        totals=totals(entries),
        timeline=timeline(entries, made.tzinfo),
        phases=PHASES,
        duration=duration,
        plural=plural,
        cards=(card(entry, place, folder) for entry in entries if entry.current),
    )
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        with part.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(page)
        part.replace(to)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return to


def _own(name: str) -> Markup:
    # The package's own text, with nothing of anybody else's in it.
    return Markup((_TEMPLATES / name).read_text("utf-8"))  # noqa: S704


def _policy(style: str, script: str) -> str:
    local = "'self' file:"
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            f"img-src {local}",
            f"media-src {local}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
