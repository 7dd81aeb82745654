"""How much is tried: the same few hundred examples each time, or as many new ones as one asks for.

``QAMERA_FUZZ=20 pytest -m slow tests/fuzz`` tries twenty times as many, and others in each run.
"""

import os

from hypothesis import HealthCheck, Phase, settings

_TIMES = int(os.environ.get("QAMERA_FUZZ", "0"))


def _register(name, examples):
    settings.register_profile(
        name,
        # Where nobody asked for more, a failure is the change's and not the day's.
        derandomize=not _TIMES,
        database=None,
        max_examples=examples * max(_TIMES, 1),
        stateful_step_count=40,
        deadline=None,
        # To explain a failure it would watch each line of every run.
        phases=[phase for phase in Phase if phase is not Phase.explain],
        suppress_health_check=list(HealthCheck),  # the machine may be slow, and bodies long
    )


# Only known by their names here: the other folders' tests keep what they have.
_register("values", 100)
_register("limiter", 150)
_register("poller", 300)
_register("files", 40)
_register("sockets", 25)
