"""Which records earlier lists have shown."""

from qamera_async._polling.records import ListHistory


def ids(*names):
    return dict.fromkeys(names).keys()


def test_record_is_new_until_a_list_has_shown_it():
    history = ListHistory()
    history.add(ids("a"), now=0.0)
    history.add(ids("a", "b"), now=1.0)

    assert history.new_since(["a", "b", "c"], 1) == {"b", "c"}
    assert history.new_since(["a", "b", "c"], 2) == {"c"}


def test_record_is_forgotten_long_after_it_disappeared():
    history = ListHistory()
    for number in range(100):
        history.add(ids(f"v{number}", "always"), now=number * 100.0)

    assert "always" in history
    assert "v0" not in history
    assert history.new_since(["always", "v99", "other"], 50) == {"v99", "other"}


def test_server_that_forgets_finished_records_costs_no_more_memory_than_a_list():
    history = ListHistory()
    names = [f"vid_{number}" for number in range(5_000)]
    for name in names:
        history.add(ids(name), now=0.0)

    assert sum(name in history for name in names) <= 1_001
    assert history.new_since(["vid_4990"], 4_999) == set()


def test_whole_list_may_disappear_once_and_come_back():
    history = ListHistory()
    old = ids(*[f"old_{number}" for number in range(3_000)])
    history.add(old, now=0.0)
    history.add(ids(), now=1.0)
    history.add(old, now=2.0)

    assert history.new_since(old, history.lists - 1) == set()


def test_absences_of_a_record_do_not_add_up():
    """An unchanged list counts as a list that has the record."""
    history, both = ListHistory(), ids("away", "always")
    history.add(both, now=0.0)
    history.add(ids("always"), now=1.0)
    history.add(both, now=2.0, unchanged=True)
    history.add(both, now=3.0, unchanged=True)
    assert history.lists == 4

    history.add(ids("always"), now=2_000.0)
    assert "away" in history
