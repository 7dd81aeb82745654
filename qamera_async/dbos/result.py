"""What became of one request of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import attrs


class Said(TypedDict, total=False):
    """What a step or a workflow says, as DBOS keeps it: short texts, no handle and no secret."""

    record_ids: list[str]
    video_url: str | None
    path: str | None
    kind: str
    error: str


@attrs.frozen
class PipelineResult:
    """What became of one request of a pipeline.

    Args:
        ref: The request's ``ref``.
        record_ids: The records that were made of it; empty where none is known.
        video_url: Where the server has the video; None where there is none.
        path: The file of the clip; None where there is none.
        kind: The name of the error's class, such as ``JobFailedError``; None where all went well.
        error: What went wrong and what to do, in words; None where all went well.

    """

    ref: str
    record_ids: tuple[str, ...] = ()
    video_url: str | None = None
    path: Path | None = None
    kind: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether all went well."""
        return self.kind is None

    @classmethod
    def of(cls, ref: str, said: Said) -> PipelineResult:
        """Give the result that a workflow has said."""
        path = said.get("path")
        return cls(
            ref,
            tuple(said.get("record_ids", ())),
            said.get("video_url"),
            None if path is None else Path(path),
            said.get("kind"),
            said.get("error"),
        )
