"""Durable pipelines on DBOS: work that survives the loss of a process or a machine.

DBOS keeps how far each piece of work has come, and runs a step again where nobody knows whether it ran. The
ledger is what makes an order of such a step once-only. Needs the extra ``dbos``.
"""

from importlib.util import find_spec

if find_spec("dbos") is None:
    raise ImportError("qamera_async.dbos takes DBOS: pip install 'qamera-async[dbos]'")

from .pipeline import Pipeline
from .result import PipelineResult

__all__ = ["Pipeline", "PipelineResult"]
