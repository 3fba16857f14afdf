import threading

from modelmount.registry.recent import Recent


def test_what_was_used_least_recently_is_forgotten_first() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert recent.setdefault("a", lambda: 9) == 1
    assert recent.setdefault("d", lambda: 4) == 4
    assert [recent.get(key) for key in "acd"] == [1, None, 4]


def test_one_caller_makes_an_entry_for_all() -> None:
    recent: Recent[str, object] = Recent(10)
    made: list[object] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        made.append(recent.setdefault("a", object))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, made))) == 1
