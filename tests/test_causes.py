"""Each cause of a miss, injected on simulated pods: it is named, and on clean traffic none is named wrongly."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods

TIMES = 13
WORDS = Path(__file__).read_text("utf-8").split()
KEPT = {"decisions": {"kept": 2000, "errors_kept": 50}}
SMALL = ("--num-blocks", "640", "--lora", "red", "--lora", "blue", "--dev-mode")


@dataclass
class Asking:
    """A client whose requests are found again in /decisions, by their ids."""

    served: GatewayProcess
    fleet: Sequence[PodProcess]
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    numbers: Iterator[int] = field(default_factory=itertools.count)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(**PLAIN))

    def words(self, count: int = 120) -> str:
        """A text that nobody has asked about before."""
        return f"{next(self.numbers)} " + " ".join(self.rng.choice(WORDS) for _ in range(count))

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> str:
        """Send a request; its id."""
        request_id = f"asked-{next(self.numbers)}"
        body = {"model": MODEL, "max_tokens": 2, **body}
        answer = self.client.post(f"{self.served.url}{path}", json=body, headers={"x-request-id": request_id})
        assert answer.status_code == 200, answer.text
        return request_id

    def text(self, prompt: str, **body: Any) -> str:
        return self.ask("/v1/completions", prompt=prompt, **body)

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What /decisions tells of these requests, in their order."""
        answer = self.served.get("/decisions", params={"limit": 2000}).json()
        found = {entry["request_id"]: entry for entry in answer["decisions"]}
        return [found[request_id] for request_id in ids]

    def fault(self, **changes: Any) -> None:
        for pod in self.fleet:
            pod.fault(**changes)


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """Two pods with little room."""
    with pods(PodProcess("pod-0", SMALL), PodProcess("pod-1", SMALL)) as running:
        yield running


@contextlib.contextmanager
def before(fleet: list[PodProcess], folder: Path, **sections: Any) -> Iterator[Asking]:
    """A gateway of its own, while they are empty and do nothing wrong."""
    for pod in fleet:
        pod.fault(restart=True, silent=False, tokens=None)
    with gateway(folder, [pod.configured for pod in fleet], **KEPT, **sections) as served:
        asked = Asking(served, fleet)
        yield asked
        asked.client.close()


@pytest.fixture
def asking(fleet: list[PodProcess], tmp_path: Path) -> Iterator[Asking]:
    """As it is by default."""
    with before(fleet, tmp_path) as asked:
        yield asked


@pytest.fixture
def in_turn(fleet: list[PodProcess], tmp_path: Path) -> Iterator[Asking]:
    """Pods are picked in turn, whatever they hold."""
    with before(fleet, tmp_path, scoring={"policy": "round-robin"}) as asked:
        yield asked


def causes(entry: dict[str, Any]) -> Counter[str]:
    """Tokens by cause; they and what was delivered are all of the prompt."""
    tokens: Counter[str] = Counter()
    for one in entry["missed"]:
        assert one["tokens"] > 0 and one["detail"]
        tokens[one["cause"]] += one["tokens"]
    outcome = entry["outcome"]
    assert entry["delivered_tokens"] + tokens.total() == outcome["prompt_tokens"], entry
    assert entry["delivered_tokens"] == (outcome["cached_tokens"] or 0)
    assert entry["captured_tokens"] <= entry["reachable_tokens"]
    return tokens


def named(asking: Asking, ids: Sequence[str], cause: str, least: int = 32) -> list[dict[str, Any]]:
    """Of each of these, most of what could have been cached is missed for this cause."""
    assert len(ids) == TIMES
    entries = asking.entries(ids)
    for entry in entries:
        tokens = causes(entry)
        edge = tokens.pop("block_edge", 0) if cause != "block_edge" else 0
        assert tokens.most_common(1)[0][0] == cause, (entry["missed"], edge)
        assert tokens[cause] >= least, entry["missed"]
    return entries


def test_first_seen(asking: Asking) -> None:
    """Nobody has asked for it before."""
    named(asking, [asking.text(asking.words()) for _ in range(TIMES)], "first_seen")
    total = asking.served.metric('warmroute_missed_tokens_total{cause="first_seen"}')
    assert total >= TIMES * 100


def test_clean_traffic(asking: Asking) -> None:
    """Conversations that go on, prompts that share a beginning, the same prompt again: what is missed is new."""
    system = asking.words(200)
    for _ in range(4):
        talk = [{"role": "system", "content": system}]
        for _ in range(4):
            talk.append({"role": "user", "content": asking.words(30)})
            ids = [asking.ask(messages=talk), asking.ask(messages=talk)]
            talk.append({"role": "assistant", "content": asking.words(20)})
            for entry in asking.entries(ids):
                assert set(causes(entry)) <= {"first_seen", "block_edge"}, entry["missed"]
    passage = asking.words(200)
    ids = [asking.text(f"{passage}\n\nQuestion: {asking.words(20)}") for _ in range(TIMES)]
    for entry in asking.entries(ids):
        assert set(causes(entry)) <= {"first_seen", "block_edge"}, entry["missed"]


def test_an_edited_turn(asking: Asking) -> None:
    """A message in the middle is another one, and what follows is the same."""
    ids = []
    for _ in range(TIMES):
        roles = itertools.cycle(("user", "assistant"))
        talk = [{"role": "system", "content": asking.words(40)}]
        talk += [{"role": next(roles), "content": asking.words(40)} for _ in range(5)]
        asking.ask(messages=talk)
        edited = [dict(message) for message in talk]
        edited[1]["content"] = asking.words(40)
        ids.append(asking.ask(messages=edited))
    entries = named(asking, ids, "changed")
    assert all("message 1 (user)" in one["detail"] for e in entries for one in e["missed"] if one["cause"] == "changed")


def test_tools_in_another_order(asking: Asking) -> None:
    """The same tools, and the same question."""
    ids = []
    for _ in range(TIMES):
        tools = [
            {"type": "function", "function": {"name": f"t{next(asking.numbers)}", "description": asking.words(20)}}
            for _ in range(4)
        ]
        messages = [{"role": "user", "content": asking.words(40)}]
        asking.ask(messages=messages, tools=tools)
        ids.append(asking.ask(messages=messages, tools=[*tools[1:], tools[0]]))
    entries = named(asking, ids, "changed")
    assert all(any(one["detail"] == "tools in another order" for one in entry["missed"]) for entry in entries)


def test_a_timestamp_in_the_system_prompt(asking: Asking) -> None:
    """It is named, and told in a sentence."""
    text, ids = asking.words(150), []
    for number in range(TIMES + 1):
        system = f"It is 2026-11-{number + 1:02} 08:{number:02}:11. {text}"
        talk = [{"role": "system", "content": system}, {"role": "user", "content": asking.words(20)}]
        ids.append(asking.ask(messages=talk))
    named(asking, ids[1:], "changed")
    summary = asking.served.get("/decisions").json()["summary"]
    sentences = [one["sentence"] for one in summary["missed"] if one["cause"] == "changed"]
    assert any("because the system prompt begins with a timestamp (13 requests)." in said for said in sentences)


def test_evicted(asking: Asking) -> None:
    """It was held until others needed the room."""
    prompts = [asking.words() for _ in range(TIMES)]
    for prompt in prompts:
        asking.text(prompt)
    for _ in range(8):
        for pod in asking.fleet:
            body = {"model": MODEL, "prompt": asking.words(1500), "max_tokens": 1}
            asking.client.post(f"{pod.address}/v1/completions", json=body).raise_for_status()
    entries = named(asking, [asking.text(prompt) for prompt in prompts], "evicted")
    assert all("pod-" in entry["missed"][0]["detail"] for entry in entries)


def test_routed_away(in_turn: Asking) -> None:
    """Another pod holds it, and the policy sends it elsewhere."""
    ids = []
    for _ in range(TIMES):
        prompt = in_turn.words()
        in_turn.text(prompt)
        ids.append(in_turn.text(prompt))
    entries = named(in_turn, ids, "routed_away")
    assert all(entry["reachable_tokens"] > entry["captured_tokens"] == 0 for entry in entries)


def test_another_salt(asking: Asking) -> None:
    """The same tokens under another cache_salt."""
    ids = []
    for number in range(TIMES):
        prompt, first = asking.words(), {} if number % 2 else {"cache_salt": "one"}
        asking.text(prompt, **first)
        ids.append(asking.text(prompt, cache_salt="other"))
    named(asking, ids, "other_salt")


def test_another_adapter(asking: Asking) -> None:
    """The same tokens with another adapter, or without one."""
    ids = []
    for number in range(TIMES):
        prompt = asking.words()
        asking.text(prompt, model=(MODEL, "red")[number % 2])
        ids.append(asking.text(prompt, model="blue"))
    named(asking, ids, "other_adapter")


def test_no_whole_block(asking: Asking) -> None:
    """A prompt of less than a block, and the last block of one that is there."""
    ids = []
    for number in range(TIMES):
        prompt = f"{number} is short" if number % 2 else asking.words()
        asking.text(prompt)
        ids.append(asking.text(prompt))
    for entry in named(asking, ids, "block_edge", 1):
        assert set(causes(entry)) == {"block_edge"}


def test_the_cache_is_not_read(asking: Asking) -> None:
    """vLLM computes all of a prompt whose tokens' probabilities are asked for."""
    ids = []
    for _ in range(TIMES):
        prompt = asking.words()
        asking.text(prompt)
        ids.append(asking.text(prompt, prompt_logprobs=1))
    named(asking, ids, "no_cache_read")


def test_events_that_do_not_come(asking: Asking) -> None:
    """Pods have given everything up, and their feeds say nothing."""
    prompts = [asking.words() for _ in range(TIMES)]
    for prompt in prompts:
        asking.text(prompt)
    asking.entries([])
    asking.fault(silent=True)
    for pod in asking.fleet:
        httpx.post(f"{pod.address}/reset_prefix_cache", **PLAIN).raise_for_status()
    named(asking, [asking.text(prompt) for prompt in prompts], "feed_not_exact")


def test_other_tokens(in_turn: Asking) -> None:
    """Pods read prompts as other tokens than they say: nobody knows where those are."""
    in_turn.fault(tokens="bos")
    ids = []
    for _ in range(TIMES):
        prompt = in_turn.words()
        in_turn.text(prompt)
        ids.append(in_turn.text(prompt))
    named(in_turn, ids, "wrong_tokens")


def test_pods_that_were_started_anew(asking: Asking) -> None:
    """They held it before."""
    prompts = [asking.words() for _ in range(TIMES)]
    for prompt in prompts:
        asking.text(prompt)
    asking.entries([])
    asking.fault(restart=True)
    named(asking, [asking.text(prompt) for prompt in prompts], "pod_gone")


def test_the_log(fleet: list[PodProcess], tmp_path: Path) -> None:
    """Each line is an object; a request's has its id, its pod by name, and its figures; no word of any prompt."""
    with before(fleet, tmp_path, log={"format": "json"}) as asking:
        prompt = f"unheard-of {asking.words()}"
        ids = [asking.text(prompt), asking.text(prompt)]
        entries = asking.entries(ids)
        logged = asking.served.logged()
        lines = {line.get("request_id"): line for line in map(json.loads, logged.splitlines())}
        for entry in entries:
            line = lines[entry["request_id"]]
            assert (line["level"], line["status"], line["pod"]) == ("info", 200, entry["pod"])
            assert line["cached_tokens"] == entry["delivered_tokens"]
            assert line["missed"] == dict(causes(entry))
        assert "unheard-of" not in logged and "RankId" not in logged
