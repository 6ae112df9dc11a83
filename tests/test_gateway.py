"""The gateway in front of three simulated pods, all of them processes: what clients and operators may rely on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.processes import BLOCK, MODEL, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """Three pods."""
    with pods(*(PodProcess(f"pod-{number}") for number in range(3))) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway, which takes small bodies only."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(folder, [pod.configured for pod in fleet], gateway={"body_max": 65536}) as served:
        yield served


@pytest.fixture
async def client(served: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(served: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client."""
    async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        yield http


def caught_up(served: GatewayProcess, fleet: list[PodProcess]) -> bool:
    """Has the gateway heard all that the pods have published?"""
    ranks = served.ranks()
    return all(ranks[pod.name][0]["events"]["sequence"] == pod.state()["ranks"][0]["seq"] - 1 for pod in fleet)


async def score(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The answer of POST /score."""
    answer = await http.post("/score", json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def of(answer: dict[str, Any], pod: str) -> dict[str, Any]:
    """One pod's entry in an answer of /score."""
    return next(entry for entry in answer["pods"] if entry["pod"] == pod)


# --- what is proxied


async def test_chat(client: openai.AsyncOpenAI) -> None:
    """A chat is answered by a pod, whose name and match are in headers, and streamed with its usage at the end."""
    messages: Any = [{"role": "user", "content": "Tell me about chats and streams."}]
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=6)
    whole = raw.parse()
    assert whole.usage and whole.usage.completion_tokens == 6
    assert raw.headers["x-warmroute-pod"].startswith("pod-")
    assert raw.headers["x-warmroute-matched-tokens"] == "0"
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [bool(c.usage) for c in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_a_request_that_names_no_model(http: httpx.AsyncClient) -> None:
    """vLLM takes it for its own: it is tokenized and routed as that, also on /score."""
    chat = {"messages": [{"role": "user", "content": "Which model is it that nobody names? " * 12}]}
    first = await http.post("/v1/chat/completions", json={**chat, "max_tokens": 2})
    assert first.status_code == 200 and first.json()["model"] == MODEL
    home = first.headers["x-warmroute-pod"]
    again = await http.post("/v1/chat/completions", json={**chat, "max_tokens": 2})
    cached = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (again.headers["x-warmroute-pod"], int(again.headers["x-warmroute-matched-tokens"])) == (home, cached)
    assert cached > BLOCK
    known = (await http.post("/score", json=chat)).json()
    assert (known["model"], known["pick"], of(known, home)["matched_tokens"]) == (MODEL, home, cached)
    asked = (await http.get("/score", params={"prompt": "Which model?"})).json()
    assert asked["model"] == MODEL


async def test_tools(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """Tools change the prompt as the pod sees it; a forced tool is called."""
    messages: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
    forced: Any = {"type": "function", "function": {"name": "weather"}}
    answer = await client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice=forced, max_tokens=8
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].type == "function" and calls[0].function.name == "weather"
    known = await score(http, messages=messages, tools=[WEATHER])
    assert answer.usage and known["tokens"] == answer.usage.prompt_tokens
    assert known["tokens"] > (await score(http, messages=messages))["tokens"]


async def test_completions(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """Texts, token ids and lists of prompts; text and its ids are one prompt to the index."""
    text = "A completion of a text that has more than one block of tokens in it, told twice. " * 2
    one = await client.completions.create(model=MODEL, prompt=text, max_tokens=4)
    ids = (await http.post("/tokenize", json={"model": MODEL, "prompt": text})).json()["tokens"]
    raw = await client.completions.with_raw_response.create(model=MODEL, prompt=ids, max_tokens=4)
    assert raw.parse().choices[0].text == one.choices[0].text
    assert raw.headers["x-warmroute-matched-tokens"] == str((len(ids) - 1) // BLOCK * BLOCK) != "0"
    both = await client.completions.create(model=MODEL, prompt=["first of two", "second"], max_tokens=4)
    assert len(both.choices) == 2


async def test_messages(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """What the Messages API says in texts is the chat that means the same: it goes where that chat's blocks are."""
    system, asked = "Be kind, be brief, and be on time with it. " * 6, [{"role": "user", "content": "Hello, messages."}]
    chat: Any = [{"role": "system", "content": system}, *asked]
    first = await client.chat.completions.with_raw_response.create(model=MODEL, messages=chat, max_tokens=5)
    usage = first.parse().usage
    body = {"model": MODEL, "system": [{"type": "text", "text": system}], "messages": asked, "max_tokens": 5}
    for stream in (False, True):
        answer = (await http.post("/v1/messages", json={**body, "stream": stream})).raise_for_status()
        assert usage is not None and f'"input_tokens":{usage.prompt_tokens}' in answer.text
        assert answer.headers["x-warmroute-pod"] == first.headers["x-warmroute-pod"]
        matched = answer.headers["x-warmroute-matched-tokens"]
        assert matched == str((usage.prompt_tokens - 1) // BLOCK * BLOCK) != "0"


async def test_models(client: openai.AsyncOpenAI) -> None:
    """The union of what the pods serve: once, though three serve it."""
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_request_id(http: httpx.AsyncClient) -> None:
    """The client's own id reaches the pod and comes back; without one there is a new one, each time another."""
    body = {"model": MODEL, "prompt": "id", "max_tokens": 1}
    mine = await http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    assert mine.json()["id"].startswith("cmpl-mine-1")
    new = {(await http.post("/v1/completions", json=body)).headers["x-request-id"] for _ in range(2)}
    assert len(new) == 2


async def test_pass_through(http: httpx.AsyncClient, fleet: list[PodProcess]) -> None:
    """What the gateway does not know is the pod's to answer, also with an error: its bytes come back as they are."""
    for path, body in (
        ("/v1/embeddings", {"model": MODEL, "input": "x"}),
        ("/v1/nothing/of/this", {}),
        ("/score", {"model": MODEL, "text_1": "a", "text_2": "b"}),
        ("/tokenize", {"model": MODEL, "prompt": "some text"}),
        ("/detokenize", {"model": MODEL, "tokens": [100, 200]}),
    ):
        through = await http.post(path, json=body)
        async with httpx.AsyncClient(base_url=fleet[0].address, **PLAIN) as pod:
            direct = await pod.post(path, json=body)
        assert (through.status_code, through.content) == (direct.status_code, direct.content), path
        assert through.headers["x-warmroute-pod"].startswith("pod-")


async def test_tokenize_leaves_nothing(http: httpx.AsyncClient) -> None:
    """To tokenize a prompt is not to compute it: nobody is believed to hold its blocks afterwards."""
    text = "tokenized, and not computed, by anybody; " * 10
    assert (await http.post("/tokenize", json={"model": MODEL, "prompt": text})).status_code == 200
    assert {entry["matched_blocks"] for entry in (await score(http, prompt=text))["pods"]} == {0}


# --- where requests go


async def test_turns_stay_and_are_predicted(
    client: openai.AsyncOpenAI, served: GatewayProcess, fleet: list[PodProcess]
) -> None:
    """Each turn of a conversation goes to the pod that holds it, and what it has cached is exactly what was said."""
    system = "You answer questions about houses, in whole sentences and at some length. " * 8
    conversations: list[list[Any]] = [
        [{"role": "system", "content": system}, {"role": "user", "content": f"Conversation {number}: hello"}]
        for number in range(3)
    ]
    homes: list[set[str]] = [set() for _ in conversations]
    warm = 0
    for turn in range(4):
        for messages, home in zip(conversations, homes, strict=True):
            raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=40)
            answer = raw.parse()
            assert answer.usage and answer.usage.prompt_tokens_details
            cached = answer.usage.prompt_tokens_details.cached_tokens
            assert cached == int(raw.headers["x-warmroute-matched-tokens"])
            warm += bool(cached)
            home.add(raw.headers["x-warmroute-pod"])
            messages += [answer.choices[0].message.model_dump(include={"role", "content"})]
            messages += [{"role": "user", "content": f"And in turn {turn}?"}]
            await eventually(lambda: caught_up(served, fleet))
    assert [len(home) for home in homes] == [1, 1, 1]
    assert warm >= 11  # all but the very first
    assert served.metric("warmroute_prediction_error_tokens_sum") == 0


async def test_spreads_what_nobody_holds(http: httpx.AsyncClient) -> None:
    """Prompts that nobody holds go to all pods: to those first on which fewer have begun before."""
    taken: set[str] = set()
    for number in range(30):
        body = {"model": MODEL, "prompt": f"{number} is a prompt of its own, unlike any other " * 30, "max_tokens": 1}
        taken.add((await http.post("/v1/completions", json=body)).headers["x-warmroute-pod"])
        if len(taken) == 3:
            break
    assert taken == {"pod-0", "pod-1", "pod-2"}


# --- /score


async def test_score_changes_nothing(http: httpx.AsyncClient, served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """Asked a hundred times, no pod has had a request, no load was taken, no decision made, no block believed."""

    def all_state() -> object:
        ranks = [(rank["load"]["requests"], rank["blocks"]) for ranks in served.ranks().values() for rank in ranks]
        return [pod.state() for pod in fleet], ranks, served.get("/decisions?limit=1").json()["decisions"][0]["pods"]

    await http.post("/v1/completions", json={"model": MODEL, "prompt": "a decision to compare with", "max_tokens": 1})
    await eventually(lambda: caught_up(served, fleet))
    await eventually(lambda: all(not r["blocks"]["predicted"] for ranks in served.ranks().values() for r in ranks))
    before = await asyncio.to_thread(all_state)
    text = "a prompt that is only asked about; " * 20
    answers = [await score(http, prompt=text) for _ in range(100)]
    assert {entry["matched_tokens"] for answer in answers for entry in answer["pods"]} == {0}
    assert await asyncio.to_thread(all_state) == before


async def test_score_answers(http: httpx.AsyncClient, served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """What is scored is what is then cached: by text, chat, ids and GET, for one pod or all."""
    text = "scored as text, as ids, and by the query of a GET; " * 8
    sent = await http.post("/v1/completions", json={"model": MODEL, "prompt": text, "max_tokens": 1})
    home, tokens = sent.headers["x-warmroute-pod"], sent.json()["usage"]["prompt_tokens"]
    await eventually(lambda: caught_up(served, fleet))
    answer = await score(http, prompt=text)
    assert (answer["model"], answer["tokens"], answer["blocks"]) == (MODEL, tokens, tokens // BLOCK)
    assert (answer["pick"], answer["block_size"]) == (home, BLOCK)
    mine = of(answer, home)
    assert mine["matched_tokens"] == (tokens - 1) // BLOCK * BLOCK
    assert mine["matched_by_tier"] == {"gpu": mine["matched_blocks"]} == {"gpu": tokens // BLOCK}
    assert (mine["score"], mine["state"]) == (1.0, "exact")
    others = [entry for entry in answer["pods"] if entry["pod"] != home]
    assert all(0 <= entry["score"] < 1 and entry["matched_tokens"] == 0 for entry in others)
    assert answer["reason"] and set(answer["timing_us"]) == {"render", "tokenize", "keys", "lookup", "score"}
    assert {(await score(http, prompt=text))["cache"] for _ in range(2)} == {"hit"}
    ids = (await http.post("/tokenize", json={"model": MODEL, "prompt": text})).json()["tokens"]
    asked = await http.get("/score", params={"model": MODEL, "prompt": text})
    for other in (await score(http, token_ids=ids), asked.json()):
        assert [(e["pod"], e["matched_tokens"]) for e in other["pods"]] == [
            (e["pod"], e["matched_tokens"]) for e in answer["pods"]
        ]
    elsewhere = others[0]["pod"]
    only = await score(http, prompt=text, pods=[elsewhere])
    assert ([entry["pod"] for entry in only["pods"]], only["pick"]) == ([elsewhere], elsewhere)


async def test_score_refuses(http: httpx.AsyncClient) -> None:
    """Bad questions get an OpenAI error body, of the status that fits."""
    for body, status in (
        ({"model": MODEL}, 400),
        ({"model": MODEL, "prompt": "a", "token_ids": [1]}, 400),
        ({"model": MODEL, "prompt": "a", "pods": "pod-0"}, 400),
        ({"model": "unheard", "prompt": "a"}, 404),
        ({"model": MODEL, "prompt": "a", "pods": ["unheard"]}, 404),
        ({"model": MODEL, "prompt": "a", "pods": []}, 400),
    ):
        answer = await http.post("/score", json=body)
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) >= {"message", "type", "code"}


# --- errors


async def test_errors(client: openai.AsyncOpenAI, http: httpx.AsyncClient, served: GatewayProcess) -> None:
    """Each has an OpenAI error body that the official client understands, and is counted with its status."""

    def count(model: str, code: int) -> float:
        return served.metric(f'warmroute_requests_total{{code="{code}",model="{model}",pod=""}}')

    before = {code: count("unknown", code) for code in (400, 404, 413)}
    with pytest.raises(openai.NotFoundError, match=f"Known models: {MODEL}") as unknown:
        await client.completions.create(model="unheard", prompt="x")
    assert unknown.value.code == "model_not_found"
    malformed = await http.post("/v1/chat/completions", content=b'{"model": ')
    assert malformed.status_code == 400 and malformed.json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.APIStatusError, match="larger than 65536 bytes") as large:
        await client.completions.create(model=MODEL, prompt="x" * 70_000)
    assert large.value.status_code == 413
    assert {code: count("unknown", code) - before[code] for code in before} == {400: 1, 404: 1, 413: 1}
    for method, path, status in (("POST", "/v1/models", 405), ("GET", "/nowhere", 404)):
        answer = await http.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["message"]


async def test_chunked_body_too_large(http: httpx.AsyncClient) -> None:
    """A body without a length is counted as it comes."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 8192

    answer = await http.post("/v1/completions", content=parts())
    assert answer.status_code == 413


async def test_client_gone(http: httpx.AsyncClient, served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """A client that leaves in the middle of a stream leaves no load behind, here or in the pod."""
    body = {"model": MODEL, "prompt": "a very long story", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as stream:
        async for _ in stream.aiter_bytes():
            break
        assert sum(rank["load"]["requests"] for ranks in served.ranks().values() for rank in ranks) == 1
    await eventually(lambda: not sum(r["load"]["requests"] for ranks in served.ranks().values() for r in ranks))
    await eventually(lambda: not any(pod.state()["ranks"][0]["running"] for pod in fleet))


# --- operators


async def test_drain(http: httpx.AsyncClient, served: GatewayProcess) -> None:
    """A drained pod gets nothing new; with all drained there is a 503 that says when to come again."""
    body = {"model": MODEL, "prompt": "drained, or not drained; " * 6, "max_tokens": 1}
    home = (await http.post("/v1/completions", json=body)).headers["x-warmroute-pod"]
    assert (await http.post(f"/pods/{home}/drain")).json()["draining"] is True
    try:
        other = (await http.post("/v1/completions", json=body)).headers["x-warmroute-pod"]
        assert other != home
        for pod in served.ranks():
            await http.post(f"/pods/{pod}/drain")
        nobody = await http.post("/v1/completions", json=body)
        assert (nobody.status_code, nobody.headers["retry-after"]) == (503, "1")
        assert nobody.json()["error"]["code"] == "no_fit_pod"
        assert served.metric(f'warmroute_requests_total{{code="503",model="{MODEL}",pod=""}}') >= 1
        assert (await http.get("/readyz")).status_code == 503
    finally:
        for pod in served.ranks():
            assert (await http.post(f"/pods/{pod}/undrain")).json()["draining"] is False
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert (await http.post("/pods/unheard/drain")).status_code == 404


async def test_cache_endpoints(http: httpx.AsyncClient, served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """Status tells what is held; a pod's blocks, or all, can be forgotten: they are read anew, and exact only then."""
    text = "a text to be forgotten and learned again; " * 8
    body = {"model": MODEL, "prompt": text, "max_tokens": 1}
    home = (await http.post("/v1/completions", json=body)).headers["x-warmroute-pod"]
    await eventually(lambda: caught_up(served, fleet))
    assert of(await score(http, prompt=text), home)["matched_tokens"] > 0
    status = (await http.get("/cache/status")).json()
    assert status["index"]["pods"][home]["0"]["gpu"] > 0
    assert status["prefix_store"]["blocks"] > 0 and status["prefix_store"]["nbytes"] > 0
    assert (await http.post("/cache/invalidate", json={"pod": home})).json()["pods"] == [home]
    told = of(await score(http, prompt=text), home)
    assert told["state"] == "degraded" or told["matched_tokens"] > 0

    def read_anew() -> bool:
        """Is the pod's feed exact, and does it tell of blocks?"""
        rank = served.ranks()[home][0]
        return rank["state"] == "exact" and rank["blocks"]["gpu"] > 0

    await eventually(read_anew)
    assert of(await score(http, prompt=text), home)["matched_tokens"] > 0
    assert (await http.post("/cache/invalidate", json={"model": MODEL})).json()["pods"] == ["pod-0", "pod-1", "pod-2"]
    assert (await http.post("/cache/cleanup")).json()["removed"] >= 0
    cleared = (await http.post("/cache/clear")).json()
    assert cleared["text_blocks"] > 0
    status = (await http.get("/cache/status")).json()
    assert status["prefix_store"]["blocks"] == 0
    await eventually(read_anew)
    again = f"after that, {text}"
    fresh = await http.post("/v1/completions", json={**body, "prompt": again})
    await eventually(lambda: caught_up(served, fleet))
    assert of(await score(http, prompt=again), fresh.headers["x-warmroute-pod"])["matched_tokens"] > 0
    for bad in ({"keys": [-1]}, {"keys": [1 << 64]}, {"unheard": 1}):
        assert (await http.post("/cache/invalidate", json=bad)).status_code == 400


async def test_decisions(http: httpx.AsyncClient) -> None:
    """The last picks, newest first, with every candidate, and without the prompt."""
    secret = "a-secret-word"
    sent = [
        await http.post("/v1/completions", json={"model": MODEL, "prompt": f"{n} {secret} " * 9, "max_tokens": 1})
        for n in range(2)
    ]
    answer = await http.get("/decisions", params={"limit": 2})
    newest, older = answer.json()["decisions"]
    assert [older["pick"], newest["pick"]] == [each.headers["x-warmroute-pod"] for each in sent]
    assert older["at"] < newest["at"]
    assert {entry["pod"] for entry in newest["pods"]} == {"pod-0", "pod-1", "pod-2"}
    assert newest["reason"] and secret not in answer.text
    assert (await http.get("/decisions", params={"limit": 0})).status_code == 400


async def test_pods(http: httpx.AsyncClient, fleet: list[PodProcess]) -> None:
    """What is known of each pod."""
    known = (await http.get("/pods")).json()["pods"]
    assert [pod["pod"] for pod in known] == [pod.name for pod in fleet]
    for pod in known:
        assert pod["fit"] and pod["models"] == [MODEL] and pod["version"].startswith("0.32")
        (rank,) = pod["ranks"]
        assert (rank["state"], rank["reasons"], rank["block_size"]) == ("exact", [], BLOCK)


async def test_every_metric_of_the_contract(http: httpx.AsyncClient) -> None:
    """Each family that is promised is on /metrics, typed; what counts up ends in _total."""
    text = (await http.get("/metrics")).text
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    promised = """
        requests_total request_duration_seconds time_to_first_byte_seconds decision_seconds cache_hit_ratio
        cache_miss_ratio predicted_cached_tokens_total actual_cached_tokens_total prediction_error_tokens
        prefix_store_lookups_total prefix_store_entries prefix_store_bytes cache_evictions_total
        cache_lookup_latency_seconds pod_mapping_invalidations_total global_index_size index_bytes pod_blocks pod_state
        pod_inflight_requests pod_inflight_prefill_tokens events_total event_lag_seconds event_gaps_total
        event_replays_total event_orphans_total event_decode_errors_total retries_total breaker_state
            picks_total
    """.split()
    assert {name for name in promised if f"warmroute_{name}" not in families} == set()
    counters = {name for name, kind in families.items() if kind == "counter"}
    assert all(name.endswith("_total") for name in counters)
    assert {name.removeprefix("warmroute_") for name in counters} >= {n for n in promised if n.endswith("_total")}
