"""A worker of examples/durable_pipeline.py; with --without-ledger its session has no ledger.

DBOS still saves the steps. What it submits twice after a kill shows what the ledger prevents.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import durable_pipeline

from qamera_async import QameraSession


def session_without_ledger(ledger, **settings):
    return QameraSession(**settings)


if __name__ == "__main__":
    if "--without-ledger" in sys.argv:
        sys.argv.remove("--without-ledger")
        durable_pipeline.QameraSession = session_without_ledger
    sys.exit(durable_pipeline.main())
