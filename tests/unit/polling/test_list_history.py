"""ListHistory: the records that earlier lists have shown."""

from qamera_async._polling.poller import ListHistory


def ids(*names):
    return dict.fromkeys(names)


def test_record_is_new_until_a_list_has_shown_it():
    history = ListHistory()
    history.add(ids("a"))
    history.add(ids("a", "b"))

    assert history.new_since(["a", "b", "c"], 1) == {"b", "c"}
    assert history.new_since(["a", "b", "c"], 2) == {"c"}


def test_oldest_missing_records_are_forgotten_first():
    history = ListHistory()
    for number in range(1_100):
        history.add(ids(f"v{number}", "always"))

    assert history.new_since(["always", "v0", "v200", "v1099", "other"], 1_050) == {"v0", "v1099", "other"}


def test_memory_is_bounded_if_the_server_drops_finished_records():
    history = ListHistory()
    names = [f"vid_{number}" for number in range(5_000)]
    for name in names:
        history.add(ids(name))

    assert len(history.new_since(names, 5_000)) >= 3_999
    assert history.new_since(["vid_4990"], 4_999) == set()


def test_records_are_not_new_after_one_empty_list():
    history = ListHistory()
    old = ids(*[f"old_{number}" for number in range(3_000)])
    history.add(old)
    history.add(ids())
    history.add(old)

    assert history.new_since(old, history.lists - 1) == set()
