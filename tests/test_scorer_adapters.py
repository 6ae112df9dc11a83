"""Adapters of pods: who has one loaded is preferred, and nobody is sent where there is no slot."""

from __future__ import annotations

from router.core.decision import Core
from router.discovery.vllm_metrics import read_metrics
from scorer.adapters import Adapters
from tests.fakes.cores import MODEL, NOBODY, SERVED, asked, core_of, route

NAMES = ("a", "b", "c")


def test_what_was_used_last_is_loaded() -> None:
    """As many as there are slots for, and whatever is in use."""
    adapters = Adapters()
    adapters.told((), 2)
    for name in NAMES:
        adapters.begin(name)
        adapters.end(name)
    assert [adapters.has(name) for name in NAMES] == [False, True, True]
    adapters.begin("b")
    adapters.begin("a")
    assert adapters.has("a") and adapters.has("b") and not adapters.has("c")
    assert not adapters.takes("c") and adapters.takes("a")
    adapters.end("a")
    adapters.end("nobody")
    assert adapters.takes("c")


def test_what_has_to_go_is_loaded_once_more() -> None:
    """A free slot costs one load, a used one two, and what is loaded none."""
    adapters = Adapters()
    assert adapters.loads("a") == 1
    adapters.told(("a",), 2)
    assert (adapters.loads("a"), adapters.loads("b")) == (0, 1)
    adapters.begin("b")
    assert (adapters.loads("a"), adapters.loads("b"), adapters.loads("c")) == (0, 0, 2)
    adapters.end("b")
    assert adapters.loads("c") == 2, "it stays loaded"


def test_what_others_run_takes_slots_too() -> None:
    """By the pod's own account."""
    adapters = Adapters()
    assert adapters.takes("a"), "it has not told"
    adapters.told(("x", "y"), 2)
    assert adapters.has("x") and not adapters.takes("a")
    adapters.forget()
    assert not adapters.has("x") and adapters.takes("a")


def with_adapters(pods: int, slots: int) -> Core:
    """Pods that serve a model and its adapters."""
    core = core_of(pods)
    for pod in core.fleet.pods.values():
        core.fleet.learned_models(pod, [{"id": MODEL}, *({"id": name, "parent": MODEL} for name in NAMES)])
        core.fleet.measured(pod, {"lora_max": float(slots)})
    return core


def ask(core: Core, adapter: str, seed: int, now: float, ends: bool = True) -> str:
    """Which pod a prompt of its own goes to."""
    demand = asked(core, seed)
    object.__setattr__(demand, "model", adapter)
    placement = route(core, demand, NOBODY, now)
    if ends:
        core.finish(placement, SERVED, now + 0.01)
    return placement.pod.name


def test_who_has_it_loaded_is_preferred() -> None:
    """Prompts that have nothing in common go where their adapter is, each to another pod; one of the base model
    anywhere."""
    core = with_adapters(3, slots=1)
    homes = {name: ask(core, name, number, float(number)) for number, name in enumerate(NAMES)}
    assert len(set(homes.values())) == 3
    for turn in range(12):
        name = NAMES[turn * 7 % 3]
        assert ask(core, name, 10 + turn, 10.0 + turn) == homes[name]
    assert len({ask(core, MODEL, 100 + turn, 100.0 + turn) for turn in range(6)}) == 3


def test_nobody_waits_for_a_slot() -> None:
    """While one pod's only slot is in use, another adapter goes to the other one, whatever is held; where there is none
    left, somewhere all the same."""
    core = with_adapters(2, slots=1)
    first = ask(core, "a", 1, 0.0, ends=False)
    second = ask(core, "b", 1, 0.1, ends=False)
    assert {first, second} == {"pod-0", "pod-1"}
    assert ask(core, "a", 2, 0.2) == first and ask(core, "b", 2, 0.3) == second
    assert ask(core, "c", 3, 0.4) in {first, second}


def test_a_busy_pod_is_left_for_one_that_has_to_load() -> None:
    """Loading is a matter of time, too."""
    core = with_adapters(2, slots=2)
    home = ask(core, "a", 1, 0.0)
    for number in range(20):
        ask(core, "a", 50 + number, 1.0, ends=False)
    loads = {rank.id.pod: rank.load.requests for rank in core.fleet.ranks}
    assert min(loads.values()) > 0 and loads[home] >= 10


def test_a_pod_tells_its_adapters() -> None:
    """By name, the newest series; of several engines' the same."""
    text = """
vllm:lora_requests_info{max_lora="2",running_lora_adapters="old",waiting_lora_adapters=""} 1.0
vllm:lora_requests_info{max_lora="2",running_lora_adapters="a, b",waiting_lora_adapters="c"} 2.0
"""
    figures, names = read_metrics(text)
    assert figures["lora_max"] == 2.0 and names["adapters"] == "a, b"
    core = with_adapters(1, slots=1)
    pod = core.fleet.pods["pod-0"]
    pod.engine_names = names
    core.fleet.measured(pod, figures)
    assert pod.ranks[0].adapters.has("b") and not pod.ranks[0].adapters.takes("c")
    core.fleet.restarted(pod)
    assert not pod.ranks[0].adapters.has("b")
