"""Tokens by the pods' /tokenize: what is asked, of whom, how often, and what comes of bad answers; on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from router.prompts.prompt import parse
from router.tokens.given import GivenTokens
from router.tokens.questions import AS_BY_DEFAULT, AsServed, NotTold, Question, question_of
from router.tokens.remote import RemoteTokens
from router.upstream.pool import Upstream
from tests.fakes.limits import remote_tokens_limits, upstream_limits
from tests.fakes.peers import until
from tests.fakes.processes import BLOCK, PLAIN, GatewayProcess, PodProcess, gateway, pods
from tests.fakes.recordings import VECTORS, lines
from tests.fakes.stores import broken_store
from tests.fakes.tokenizing import MODEL, Asking, Says, asking

SLOW = "the pods' /tokenize is too slow"
FAILS = "the pods' /tokenize fails"
REFUSES = "the pods' /tokenize refuses it"


def asked(body: dict[str, Any], path: str = "/v1/chat/completions", served: AsServed = AS_BY_DEFAULT) -> Question:
    """The question of a request."""
    return question_of(parse(path, json.dumps({"model": MODEL, **body}).encode()), served, 100_000)


def chat(**more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"messages": [{"role": "user", "content": "Hallo"}], **more}


def text(prompt: str = "a text") -> Question:
    """The question of a completion."""
    return asked({"prompt": prompt}, "/v1/completions")


# --- the question


def test_all_that_changes_the_prompt_is_asked() -> None:
    """Messages, tools and template variables as they came; not what has no bearing on the prompt."""
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 10**30}}}],
        "chat_template_kwargs": {"enable_thinking": False, "odd": float("nan")},
        "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template": "{{ messages }}",
    }
    body = asked(chat(**fields, temperature=1, stream=True, max_tokens=5, user="x", tool_choice="none")).body
    known = json.loads(body)
    assert str(known.pop("chat_template_kwargs")) == "{'enable_thinking': False, 'odd': nan}"
    del fields["chat_template_kwargs"]
    assert known == {"model": MODEL, "add_special_tokens": False, **chat(), **fields}
    assert json.loads(text("Grüße\n").body) == {"model": MODEL, "add_special_tokens": True, "prompt": "Grüße\n"}
    assert asked(chat(temperature=1)) == asked(chat(temperature=2)) != asked(chat(add_special_tokens=True))


@pytest.mark.parametrize("text", ["null", '\u2028\x00"\\', "\ud55c 😀", "nan"])
def test_texts_stay_as_they_are(text: str) -> None:
    """Whatever writes the question down, the pod reads the client's text."""
    kwargs = {"x": text, "y": None, "z": 2**70 if text == "nan" else 2**63}
    question = asked({"messages": [{"role": "user", "content": text}], "chat_template_kwargs": kwargs})
    known = json.loads(question.body)
    assert (known["messages"][0]["content"], known["chat_template_kwargs"]) == (text, kwargs)


def test_as_the_pods_were_started() -> None:
    """What servers add by their own flags, and /tokenize may not."""
    served = AsServed({"a": 1, "b": 2}, exclude_tools_when_tool_choice_none=True)
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = json.loads(asked(chat(chat_template_kwargs={"b": 3}, tools=tools, tool_choice="none"), served=served).body)
    assert (body["chat_template_kwargs"], "tools" in body) == ({"a": 1, "b": 3}, False)
    assert "tools" in json.loads(asked(chat(tools=tools), served=served).body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat(documents=[{"text": "x"}]), "documents are unknown to the pods' /tokenize"),
        (chat(reasoning_effort="low"), "reasoning_effort is unknown to the pods' /tokenize"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "too long to ask a pod"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 100_001}]}]},
            "too long to ask a pod",
        ),
        (chat(tools=[{"type": "function", "function": {"name": "f" * 100_001}}]), "too long to ask a pod"),
        (chat(model=None), "the request names no model"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_not_asked(body: dict[str, Any], reason: str) -> None:
    """What /tokenize can't know, or should not be asked."""
    with pytest.raises(NotTold) as caught:
        asked(body)
    assert caught.value.reason == reason


# --- asking


async def why_not(made: Asking, question: Question) -> str:
    """Why there are no tokens."""
    with pytest.raises(NotTold) as caught:
        await made.pods.encode(question, 16)
    return caught.value.reason


async def test_asked_once() -> None:
    """The pod's ids become keys, under LoRA and salt too; the same again is known at once."""
    ids = list(range(500, 600))
    async with asking(Says(ids)) as made:
        assert made.pods.encode_now(text(), 16) is None
        first = await made.pods.encode(text(), 16)
        again = made.pods.encode_now(text(), 16)
        assert again is not None
        assert (first.lookup, again.lookup, again.ending) == ("miss", "partial", first.ending)
        assert first.tokens.tolist() == ids and first.count == 100
        wanted = np.array(ids, np.uint32)
        assert first.keys.tolist() == made.space.chain(wanted, 16).tolist()
        other = made.pods.encode_now(text(), 32, "lora", "salt")
        assert other is not None and other.keys.tolist() == made.space.chain(wanted, 32, None, "lora", "salt").tolist()
        assert made.calls == [1]
        assert b"POST /tokenize HTTP/1.1" in made.peers[0].calls[0].head
        assert made.peers[0].calls[0].body == text().body


async def test_not_kept_for_ever() -> None:
    """Templates write dates, pods come back with other templates: after ten minutes it is asked again."""
    async with asking(Says([1, 2, 3])) as made:
        await made.pods.encode(text(), 16)
        made.now += 600
        assert made.pods.encode_now(text(), 16) is None


async def test_equal_questions_are_one() -> None:
    """Asked at one time by many; one that leaves takes nothing from the others."""
    says = Says([1, 2, 3])
    says.gate.clear()
    async with asking(says) as made:
        tasks = [asyncio.create_task(made.pods.encode(text(), 16)) for _ in range(20)]
        await until(lambda: made.calls == [1])
        tasks[0].cancel()
        says.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [result.tokens.tolist() for result in results[1:]] == [[1, 2, 3]] * 19  # type: ignore[union-attr]
        assert made.calls == [1]


async def test_hedged() -> None:
    """A pod that hangs costs the delay: a second one is asked, and the first comes last for a while."""
    hanging, fine = Says(), Says([7])
    hanging.hangs = True
    async with asking(hanging, fine) as made:
        for number in range(6):
            assert (await made.pods.encode(text(f"{number}"), 16)).tokens.tolist() == [7]
        assert made.calls == [1, 6]
        assert made.pods.counts["hedged"] == 1
        await until(lambda: made.upstreams["pod-0"].connections == 0)  # it is not waited for
        made.now += 6
        hanging.hangs, hanging.body = False, fine.body
        for number in range(6, 10):
            await made.pods.encode(text(f"{number}"), 16)
        assert made.calls == [3, 8]


@pytest.mark.parametrize(
    "bad",
    [
        Says([1], status=500),
        Says([1], status=404),
        Says(raw=b"nonsense"),
        Says(raw=b"[]"),
        Says(raw=b"{}"),
        Says([]),
        Says([-1]),
        Says([2**32]),
        Says(raw=b'{"tokens": ["a"]}'),
        Says(raw=b'{"tokens": [1.5]}'),
        Says(raw=b'{"tokens": null}'),
        Says(raw=b'{"tokens": [' + b"1," * 200_000 + b'"a"]}'),
        Says(raw=b"1" * 100_000),
        Says(raw=b'{"tokens": ' + b" " * 100_000 + b"[" + b"1" * 100_000 + b"]}"),
        Says([1] * 400_000),
    ],
)
async def test_bad_answers(bad: Says) -> None:
    """A pod that can't tell is no pod to ask: the next one is; alone, it is said that it fails."""
    async with asking(bad) as made:
        assert await why_not(made, text("long enough a text for an answer of many tokens " * 1000)) == FAILS
    async with asking(bad, Says([7])) as made:
        for number in range(2):
            assert (await made.pods.encode(text(f"{number}"), 16)).tokens.tolist() == [7]


async def test_pods_that_are_gone() -> None:
    """A pod that can't be reached, and one that is not fit."""
    async with asking(Says([7]), Says([8])) as made:
        made.upstreams["pod-0"] = Upstream("http://127.0.0.1:1", upstream_limits())
        for number in range(3):
            assert (await made.pods.encode(text(f"{number}"), 16)).tokens.tolist() == [8]
        made.fleet.pods["pod-1"].drain(True)
        assert await why_not(made, text("more")) == FAILS
        made.fleet.pods["pod-0"].believe(False)
        assert await why_not(made, text("still more")) == "no pod is fit to be asked"


async def test_refused() -> None:
    """What one pod refuses is not asked of another."""
    async with asking(Says([7], status=400), Says([7], status=400)) as made:
        assert await why_not(made, text()) == REFUSES
        assert sum(made.calls) == 1


async def test_deadline() -> None:
    """When all hang, the deadline ends it, and nobody waits on."""
    hanging = Says()
    hanging.hangs = True
    async with asking(hanging, hanging, deadline_s=0.3) as made:
        reasons = await asyncio.gather(*(why_not(made, text()) for _ in range(5)))
        assert set(reasons) == {SLOW}
        assert made.calls == [1, 1]
        await until(lambda: all(upstream.connections == 0 for upstream in made.upstreams.values()))


async def test_questions_at_a_time() -> None:
    """No more than allowed are under way; the others have their turn."""
    says = Says([7])
    says.gate.clear()
    async with asking(says, questions_max=3) as made:
        tasks = [asyncio.create_task(made.pods.encode(text(f"{number}"), 16)) for number in range(8)]
        await until(lambda: made.calls == [3])
        await asyncio.sleep(0.1)
        assert made.calls == [3]
        says.gate.set()
        assert len(await asyncio.gather(*tasks)) == 8


async def test_long_answers() -> None:
    """An answer of several parts is the same list, and the loop has its turns meanwhile."""
    ids = [number * 7919 % 150_000 for number in range(150_000)]
    async with asking(Says(ids)) as made:
        question = Question(MODEL, text().body + b" " * 200_000)
        assert (await made.pods.encode(question, 16)).tokens.tolist() == ids


async def test_truncation() -> None:
    """The last ids are kept; where special tokens would be kept too, nobody knows which those are."""
    ids = list(range(100))
    async with asking(Says(ids)) as made:
        kept = await made.pods.encode(asked(chat(truncate_prompt_tokens=30)), 16)
        assert kept.tokens.tolist() == ids[70:]
        whole = asked({"prompt": "x", "truncate_prompt_tokens": 100}, "/v1/completions")
        assert (await made.pods.encode(whole, 16)).tokens.tolist() == ids
        cut = asked({"prompt": "x", "truncate_prompt_tokens": 99}, "/v1/completions")
        assert await why_not(made, cut) == "truncation is unknown to the pods' /tokenize"


async def test_a_broken_store_costs_no_answer() -> None:
    """Without the store each question is asked, and keys are computed."""
    async with asking(Says(list(range(40)))) as made:
        broken = broken_store(made.space)
        keys = GivenTokens(made.space, broken)
        pods = RemoteTokens(made.fleet, made.upstreams, broken, keys, remote_tokens_limits())
        for _ in range(2):
            encoded = await pods.encode(text(), 16)
            assert encoded.keys.tolist() == made.space.chain(np.arange(40, dtype=np.uint32), 16).tolist()
        assert made.calls == [2]
        assert broken.failures > 2  # of the keys, which need it once each time, and of the answers


# --- simulated pods, and the gateway in front of them, without any tokenizer configured

SERVED = "nobody-named-it"


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """Two pods of a model that the gateway's configuration does not know; one speaks of an adapter."""
    options = ("--served-model-name", SERVED, "--lora", "adapter")
    with pods(*(PodProcess(f"pod-{number}", options) for number in range(2))) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway."""
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured for pod in fleet]) as served:
        yield served


@pytest.mark.parametrize("model", [SERVED, "adapter"])
def test_zero_configuration(served: GatewayProcess, model: str) -> None:
    """Chats, texts and token ids of a model that nobody configured are predicted to the token."""
    system = {"role": "system", "content": f"You know much about {model} and tell it at length. " * 10}
    messages = [system, {"role": "user", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with httpx.Client(base_url=served.url, **PLAIN) as client:
        warm = []
        for _ in range(3):
            body = {"model": model, "messages": messages, "tools": tools, "max_tokens": 8}
            answer = client.post("/v1/chat/completions", json=body)
            usage = answer.json()["usage"]
            warm.append(int(answer.headers["x-warmroute-matched-tokens"]))
            assert warm[-1] == usage["prompt_tokens_details"]["cached_tokens"]
            scored = client.post("/score", json={"model": model, "messages": messages, "tools": tools}).json()
            assert scored["tokens"] == usage["prompt_tokens"]
            messages.append({"role": "user", "content": "And more of it? " * 8})
        assert warm[0] == 0 < warm[1] < warm[2]
        prompt = f"one text of {model}, told twice " * 8
        ids = client.post("/tokenize", json={"model": model, "prompt": prompt}).json()["tokens"]
        for given, expected in (
            (prompt, 0),
            (ids, (len(ids) - 1) // BLOCK * BLOCK),
            (prompt, (len(ids) - 1) // BLOCK * BLOCK),
        ):
            answer = client.post("/v1/completions", json={"model": model, "prompt": given, "max_tokens": 1})
            assert int(answer.headers["x-warmroute-matched-tokens"]) == expected


def test_what_is_told_of_it(served: GatewayProcess) -> None:
    """/pods and the metrics say that pods tokenize; a decision says why a prompt was not tokenized."""
    told = served.get("/pods").json()["pods"][0]["tokenizers"]
    assert list(told) == [SERVED] and told[SERVED]["state"] == "pod"
    assert served.metric(f'warmroute_tokenizer_state{{model="{SERVED}",state="pod"}}') == 1
    with httpx.Client(base_url=served.url, **PLAIN) as client:
        body = {"model": SERVED, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json={**body, "documents": [{"text": "d"}]}).is_success
    newest = served.get("/decisions?limit=1").json()["decisions"][0]
    assert newest["reason"] == "not tokenized: documents are unknown to the pods' /tokenize"
    assert served.metric('warmroute_tokenizer_questions_total{result="told"}') > 0


async def test_recorded_requests(fleet: list[PodProcess]) -> None:
    """For every recorded request that may be asked, a pod with the recording's tokenizer tells the recorded ids.

    So what is asked has all that changes a prompt. (The pod is simulated: its rendering is checked elsewhere.)
    """
    version = "vllm-0.32.0"
    assert (VECTORS / version).is_dir()
    compared, untold = 0, set()
    upstream = Upstream(fleet[0].address, upstream_limits())
    made = Asking([], remote_tokens_limits())
    made.upstreams["pod-0"] = upstream
    for line in lines(version, "requests.jsonl"):
        if line["status"] != 200 or len(line["prompts"]) != 1 or not line["path"].endswith("completions"):
            continue
        prompt = parse(line["path"], json.dumps({**line["body"], "model": SERVED}).encode())
        if prompt.kind not in ("chat", "text"):
            continue
        try:
            question = question_of(prompt, AS_BY_DEFAULT, 1 << 20)
        except NotTold as error:
            untold.add(error.reason.split()[0])
            continue
        ids = await made.pods.ask_pod("pod-0", question)
        kept = question.keep
        if kept is None or not question.special:
            wanted = line["prompts"][0]["token_ids"]
            assert (ids if kept is None else ids[-kept:]).tolist() == wanted, line["note"]
            compared += 1
    await upstream.aclose()
    assert compared > 60 and untold <= {"documents", "reasoning_effort"}
