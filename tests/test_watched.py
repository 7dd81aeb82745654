"""The records that are waited for: those with an id, in the order in which they came."""

import random

from qamera_async._polling.records import Record
from qamera_async._polling.watched import Watched


def test_records_of_one_id_come_and_go():
    """Several jobs may wait for one record: none is left out, and the last to leave is known as such."""
    chance = random.Random(7)  # noqa: S311 - the same each time
    watched, model, most = Watched(), [], 0
    for _ in range(500):
        record = chance.choice(model) if model and chance.random() < 0.5 else None
        if record is None:
            record = Record(chance.choice("ab"), None, None)
            assert record not in watched
            watched.add(record)
            model.append(record)
        else:
            model.remove(record)
            assert watched.discard(record) is all(other.record_id != record.record_id for other in model)
            assert watched.discard(record) is False
        most = max(most, len(model))

        for name in "ab":
            assert list(watched.of(name)) == [other for other in model if other.record_id == name]
        assert {*watched} == {*model}
        assert watched.ids == {other.record_id for other in model}
        assert len(watched) == len(watched.ids)
    assert most >= 6
