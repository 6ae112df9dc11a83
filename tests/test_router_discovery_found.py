"""Sources together: one pod for one address, names that are unique, and who leaves when."""

from __future__ import annotations

from router.config.fleet import StaticPod
from router.discovery.found import FoundPod, Gone, Joins, Leaves, Roster, Stands, Step, difference


def found(uid: str, name: str = "a", port: int = 1, ready: bool = True, leaving: bool = False) -> FoundPod:
    return FoundPod(uid, StaticPod(name=name, address=f"http://10.0.0.1:{port}"), ready, leaving)


def told(steps: list[Step]) -> list[str]:
    """The steps in short."""
    short = []
    for step in steps:
        if isinstance(step, Joins):
            short.append(f"+{step.found.pod.name}")
        elif isinstance(step, Leaves):
            short.append(f"-{step.name}")
        else:
            short.append(f"{step.name}:{'ready' if step.ready else 'not'}{':leaving' if step.leaving else ''}")
    return short


def test_comes_stands_and_goes() -> None:
    """A pod joins once, tells how it stands when that changes, and leaves."""
    roster = Roster()
    assert told(roster.apply("k", [found("1", ready=False)])) == ["+a"]
    assert roster.apply("k", [found("1", ready=False)]) == []
    assert roster.apply("k", [found("1")]) == [Stands("a", True, False)]
    assert roster.apply("k", [found("1", leaving=True)]) == [Stands("a", True, True)]
    assert told(roster.apply("k", [Gone("1"), Gone("1"), Gone("unheard")])) == ["-a"]
    assert roster.counts() == {}


def test_two_sources_one_pod() -> None:
    """The first one leads; when it lets go, the other one does."""
    roster = Roster()
    assert told(roster.apply("static", [found("a")])) == ["+a"]
    assert roster.apply("k", [found("u", "other", leaving=True)]) == []
    assert roster.counts() == {"static": 1, "k": 1}
    assert told(roster.apply("static", [Gone("a")])) == ["a:ready:leaving"]
    assert told(roster.apply("k", [Gone("u")])) == ["-a"]
    assert told(roster.apply("k", [found("u", "other")])) == ["+other"]


def test_a_name_or_an_address_that_is_used_again_is_another_pod() -> None:
    """Another uid at one address, also without word that the first is gone: out with the one, in with the other."""
    roster = Roster()
    roster.apply("k", [found("1")])
    assert told(roster.apply("k", [found("2")])) == ["-a", "+a"]
    assert roster.apply("k", [Gone("1")]) == []
    assert told(roster.apply("k", [found("2", port=2)])) == ["-a", "+a"]
    assert told(roster.apply("k", [found("3", port=3)])) == ["+a-10.0.0.1:3"], "a name that is taken"
    assert told(roster.apply("k", [Gone("2"), found("4", port=4)])) == ["-a", "+a"]


def test_difference() -> None:
    """Who is gone comes first; what is as it was is no change."""
    one, two, three = found("1"), found("2", "b", 2), found("3", "c", 3)
    assert difference({"1": one, "2": two}, {"2": two, "3": three}) == [Gone("1"), three]
    assert difference({"1": one}, {"1": one._replace(ready=False)}) == [one._replace(ready=False)]
