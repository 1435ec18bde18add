"""Whose turn it is, by a clock of the test's own."""

import pytest

from streamkd.serve.tenants.turns import Turns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(turns: Turns, worker: str) -> str:
    """A turn that is begun and has loaded; whose."""
    found = turns.begin(worker)
    assert found is not None
    turns.ready(worker)
    return found[0]


def test_who_has_waited_longest_is_next(clock: Clock) -> None:
    """Turns are given in the order of asking; asking again changes nothing; how long was waited is said."""
    turns = Turns(5.0, clock)
    turns.ask("a")
    clock.now = 2.0
    turns.ask("b")
    turns.ask("a")
    clock.now = 3.0
    assert [turns.begin("one"), turns.begin("two"), turns.begin("three")] == [("a", 3.0), ("b", 1.0), None]


def test_nobody_leaves_while_nobody_waits(clock: Clock) -> None:
    """A lone tenant keeps its worker however long it learns."""
    turns = Turns(5.0, clock)
    turns.ask("a")
    begun(turns, "one")
    clock.now = 1_000.0
    assert turns.over(idle=()) == []
    turns.ask("b")
    assert turns.over(idle=()) == ["one"]
    assert turns.over(idle=()) == []  # it is leaving already


def test_a_flood_holds_its_worker_for_one_slice(clock: Clock) -> None:
    """With two tenants that always have records and one worker, each waits for the slice of the other, no longer."""
    turns, waits = Turns(5.0, clock), {"flood": [0.0], "quiet": [0.0]}
    turns.ask("flood")
    turns.ask("quiet")
    for _ in range(400):
        if not turns.under_way:
            name, waited = turns.begin("one") or ("", 0.0)
            waits[name].append(waited)
            turns.ready("one")
        clock.now += 0.1
        if turns.over(idle=()):
            turn = turns.end("one")
            assert turn is not None
            turns.ask(turn.tenant)
    assert len(waits["flood"]) == len(waits["quiet"])
    assert max(waits["quiet"] + waits["flood"]) == pytest.approx(5.0, abs=0.3)


def test_the_time_of_a_turn_counts_from_when_it_has_loaded(clock: Clock) -> None:
    """However slow the loading, each turn learns for its slice; a tenant that needs longer has that."""
    turns = Turns(5.0, clock)
    turns.ask("a")
    turns.begin("one")
    turns.ask("b")
    clock.now = 60.0
    assert turns.over(idle=()) == []
    turns.ready("one")
    clock.now = 64.9
    assert turns.over(idle=()) == []
    clock.now = 66.0
    assert turns.over(idle=(), least_seconds=lambda tenant: 30.0) == []
    assert turns.over(idle=()) == ["one"]


def test_who_has_nothing_to_learn_leaves_first(clock: Clock) -> None:
    """Of two turns the idle one ends at once, and the other stays, as one place is enough for one that waits."""
    turns = Turns(5.0, clock)
    for tenant, worker in (("busy", "one"), ("idle", "two")):
        turns.ask(tenant)
        begun(turns, worker)
    turns.ask("new")
    clock.now = 10.0
    assert turns.over(idle={"idle"}) == ["two"]


def test_a_worker_that_died_is_free(clock: Clock) -> None:
    """Its turn is over, whoever had it may ask again, and who has withdrawn is not given one."""
    turns = Turns(5.0, clock)
    turns.ask("a")
    begun(turns, "one")
    turn = turns.end("one")
    assert turn is not None
    assert turn.tenant == "a"
    turns.ask("b")
    turns.ask("a")
    turns.withdraw("b")
    assert begun(turns, "one") == "a"
