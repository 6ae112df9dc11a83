"""One pod as a process: HTTP by the official client, KV events by ZMQ, faults."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import zmq
import zmq.asyncio
from click.testing import CliRunner

from simulator.cli import simulate

VECTORS = Path(__file__).parent / "vectors"
MODEL = VECTORS / "vllm-0.20.2" / "tokenizer"
FAST = ("--time-scale", "0.05", "--block-size", "16", "--num-blocks", "512")
WAIT_S = 10.0
END = b"\xff" * 8


@dataclass(frozen=True)
class Address:
    """Where a pod is."""

    http: str
    events: list[str]
    replay: list[str]


@contextmanager
def pod(*options: str) -> Iterator[Address]:
    """A pod of its own process that is ready."""
    command = [sys.executable, "-m", "simulator", "--port", "0", "--model-path", str(MODEL), *FAST]
    command += ["--served-model-name", "tiny-llama", "--lora", "lora-a", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=VECTORS.parent.parent) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            yield Address(line["address"], line["events"], line["replay"])
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def shared() -> Iterator[Address]:
    """One pod for the tests that leave it as it is."""
    with pod("--topic", "kv@pod-0@tiny-llama") as address:
        yield address


@pytest.fixture
def faulty() -> Iterator[Address]:
    """A pod to be spoiled."""
    with pod() as address:
        yield address


@pytest.fixture
async def client(shared: Address) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client."""
    async with openai.AsyncOpenAI(base_url=f"{shared.http}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(shared: Address) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client of the shared pod."""
    async with httpx.AsyncClient(base_url=shared.http, trust_env=False, timeout=WAIT_S) as http:
        yield http


@contextmanager
def subscriber(endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    """A SUB socket to all topics; wait for its first frame before counting on any."""
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.subscribe(b"")
        socket.connect(endpoint)
        yield socket


async def receive(socket: zmq.asyncio.Socket) -> list[bytes]:
    """The next message; TimeoutError if none comes."""
    async with asyncio.timeout(WAIT_S):
        parts: list[bytes] = await socket.recv_multipart()
        return parts


async def replay(endpoint: str, start: int) -> list[list[bytes]]:
    """All answers of the replay socket as a DEALER gets them, the end marker included."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(endpoint)
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        answers = [await receive(socket)]
        while answers[-1][-2] != END:
            answers.append(await receive(socket))
        return answers


async def post(address: Address, path: str, body: object, **headers: str) -> httpx.Response:
    """One request on a connection of its own."""
    async with httpx.AsyncClient(base_url=address.http, trust_env=False, timeout=WAIT_S) as http:
        return await http.post(path, json=body, headers=headers)


async def complete(address: Address, prompt: list[int], **more: Any) -> dict[str, Any]:
    """The answer to a completion of token ids."""
    response = await post(address, "/v1/completions", {"prompt": prompt, "max_tokens": 2, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def cached(answer: dict[str, Any]) -> int:
    """What an answer says was read from the cache."""
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_chat_answers_and_the_second_time_from_the_cache(client: openai.AsyncOpenAI) -> None:
    """The same chat twice: the same words, and all full blocks but the last token's are cached."""
    messages: list[Any] = [{"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": "Hello"}]
    answers = [
        await client.chat.completions.create(model="tiny-llama", messages=messages, max_completion_tokens=5)
        for _ in range(2)
    ]
    usages = [answer.usage for answer in answers]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].choices[0].finish_reason == "length"
    assert usages[1] is not None and usages[1].prompt_tokens_details is not None
    assert usages[1].completion_tokens == 5
    assert usages[1].prompt_tokens_details.cached_tokens == (usages[1].prompt_tokens - 1) // 16 * 16 > 0


async def test_a_stream_is_the_same_text_in_pieces(client: openai.AsyncOpenAI) -> None:
    """Role first, then a piece per token or more, a finish reason once, and the usage at the end."""
    messages: list[Any] = [{"role": "user", "content": "stream me"}]
    whole = await client.chat.completions.create(model="tiny-llama", messages=messages, max_tokens=7)
    stream = await client.chat.completions.create(
        model="tiny-llama", messages=messages, max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 7


async def test_completions_take_lists_and_siblings(client: openai.AsyncOpenAI) -> None:
    """Two prompts with n = 2 are four choices in order, streamed or not; echo puts the prompt first."""
    options: dict[str, Any] = {
        "model": "tiny-llama",
        "prompt": ["a red", "a blue"],
        "n": 2,
        "max_tokens": 3,
        "echo": True,
    }
    whole = await client.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith("a red") for choice in whole.choices] == [True, True, False, False]
    texts = ["", "", "", ""]
    async for chunk in await client.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


async def test_a_required_tool_is_called(client: openai.AsyncOpenAI) -> None:
    """Streamed and not: a tool call with JSON arguments, finish reason tool_calls."""
    tools: list[Any] = [
        {
            "type": "function",
            "function": {"name": "find", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}},
        }
    ]
    options: dict[str, Any] = {
        "model": "tiny-llama", "messages": [{"role": "user", "content": "find it"}], "tools": tools,
        "tool_choice": "required",
    }  # fmt: skip
    whole = await client.chat.completions.create(**options)
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"what": "value"})
    assert whole.choices[0].finish_reason == "tool_calls"
    arguments = ""
    async for chunk in await client.chat.completions.create(**options, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            arguments += piece.function.arguments
    assert json.loads(arguments) == {"what": "value"}


async def test_errors_are_openai_errors(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """The official client raises its own errors; paths and methods that are not there are 404 and 405."""
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.completions.create(model="no-such", prompt="x")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.completions.create(model="tiny-llama", prompt=[5] * 9_000, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        await client.completions.create(model="tiny-llama", prompt="x", extra_body={"cache_salt": ""})
    bad = await http.post("/v1/completions", content=b'{"model": ')
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, 400)
    for path, body in (
        ("/detokenize", {"tokens": [-1]}),
        ("/simulator/state", {"token_ids": [2**40]}),
        ("/tokenize", {}),
    ):
        assert (await http.post(path, json=body)).status_code == 400
    assert (await http.get("/nowhere")).status_code == 404
    assert (await http.get("/v1/completions")).status_code == 405


async def test_tokenize_tells_the_ids_that_requests_use(http: httpx.AsyncClient) -> None:
    """Both forms equal `prompt_token_ids` of a request; /detokenize gives the text back."""
    chat = {"messages": [{"role": "user", "content": "Grüße"}]}
    told = (await http.post("/tokenize", json=chat)).json()
    answer = (await http.post("/v1/chat/completions", json={**chat, "max_tokens": 1, "return_token_ids": True})).json()
    assert answer["prompt_token_ids"] == told["tokens"]
    told = (await http.post("/tokenize", json={"prompt": "two words", "return_token_strs": True})).json()
    body = {"prompt": "two words", "max_tokens": 1, "return_token_ids": True}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["prompt_token_ids"] == told["tokens"]
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    back = (await http.post("/detokenize", json={"tokens": told["tokens"]})).json()
    assert back["prompt"].endswith("two words")


async def test_models_health_version_and_request_ids(http: httpx.AsyncClient) -> None:
    """The base model and its adapter as vLLM lists them, and the client's request id in the body."""
    cards = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [("tiny-llama", None), ("lora-a", "tiny-llama")]
    assert cards[0]["max_model_len"] == 511 * 16
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/version")).json() == {"version": "0.32.0"}
    body = {"prompt": "x", "max_tokens": 1}
    answer = await http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"})
    assert answer.json()["id"] == "cmpl-mine"
    answer = await http.post("/v1/completions", json=body, headers={"endpoint-load-metrics-format": "json"})
    assert "kv_cache_usage_perc" in answer.headers["endpoint-load-metrics"]


async def test_metrics_use_names_of_the_recorded_server(http: httpx.AsyncClient) -> None:
    """Every name on /metrics is on the recorded one, and the cache's figures are there."""
    text = (await http.get("/metrics")).text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    recorded = "".join(
        (VECTORS / name / "metrics_end.txt").read_text("utf-8") for name in ("vllm-0.32.0", "vllm-0.20.2")
    )
    assert names <= {line.split()[2] for line in recorded.splitlines() if line.startswith("# TYPE")}
    assert 'block_size="16"' in text and 'num_gpu_blocks="512"' in text
    assert 'vllm:num_requests_running{engine="0",model_name="tiny-llama"} 0.0' in text


async def test_events_tell_what_was_stored_and_replay_tells_it_again(shared: Address) -> None:
    """A prompt's blocks come as one BlockStored with salt and adapter; replay has the same bytes; seq has no gap."""
    with subscriber(shared.events[0]) as socket:
        await wait_for_feed(shared, socket)
        prompt = [*range(300, 340)]
        await complete(shared, prompt, model="lora-a", cache_salt="tenant")
        topic, seq, payload = await receive(socket)
        assert topic == b"kv@pod-0@tiny-llama"
        _, (event,), rank = msgspec.msgpack.decode(payload)
        assert rank == 0
        assert (event["type"], event["token_ids"], event["parent_block_hash"]) == ("BlockStored", prompt[:32], None)
        assert (event["lora_name"], event["extra_keys"]) == ("lora-a", [["lora-a", "tenant"], ["lora-a"]])
        answers = await replay(shared.replay[0], int.from_bytes(seq, "big"))
        assert answers == [[b"", topic, seq, payload], [b"", b"", END, b""]]
        everything = await replay(shared.replay[0], 0)
        assert [int.from_bytes(answer[-2], "big") for answer in everything[:-1]] == list(range(len(everything) - 1))


async def wait_for_feed(address: Address, socket: zmq.asyncio.Socket) -> None:
    """Until a subscription works: distinct prompts until the first frame, then what is under way is read."""
    for number in range(200):
        await complete(address, [number + 1000] * 20)
        if await socket.poll(50):
            break
    while await socket.poll(100):
        await socket.recv_multipart()


async def test_state_knows_what_is_cached(shared: Address) -> None:
    """What /simulator/state foretells is what the next request reports; a salt is another content."""
    prompt = [*range(500, 550)]
    answer = await complete(shared, prompt)
    assert cached(answer) == 0
    for body, expected in (({"token_ids": prompt}, 48), ({"token_ids": prompt, "salt": "a"}, 0)):
        state = (await post(shared, "/simulator/state", body)).json()
        assert state["ranks"][0]["cached_tokens"] == expected
    assert cached(await complete(shared, prompt)) == 48
    assert cached(await complete(shared, prompt, cache_salt="a")) == 0


async def test_a_client_that_leaves_frees_its_blocks(shared: Address) -> None:
    """Closing a long stream aborts it: nothing runs afterwards."""
    body = {"prompt": "long", "max_tokens": 6_000, "stream": True}
    async with httpx.AsyncClient(base_url=shared.http, trust_env=False) as http:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                break
        for _ in range(500):
            state = (await http.get("/simulator/state")).json()["ranks"][0]
            if not state["running"]:
                break
            await asyncio.sleep(0.02)
    assert state["running"] == 0
    assert state["blocks_used"] == 0
    assert state["generated"] < 6_000


async def test_a_reset_is_announced_with_the_next_step() -> None:
    """After /reset_prefix_cache nothing hits, and AllBlocksCleared comes in the batch of the next request."""
    with pod() as address:
        prompt = [*range(40)]
        await complete(address, prompt)
        assert (await post(address, "/reset_prefix_cache", {})).json() == {"success": True}
        assert len(await replay(address.replay[0], 0)) == 2
        assert cached(await complete(address, prompt)) == 0
        answers = await replay(address.replay[0], 1)
        _, events, _ = msgspec.msgpack.decode(answers[0][-1])
        assert [event["type"] for event in events] == ["AllBlocksCleared", "BlockStored"]


async def test_the_replay_buffer_is_bounded() -> None:
    """Only the last batches can be replayed; older ones are missing without notice."""
    with pod("--buffer-steps", "2") as address:
        for number in range(5):
            await complete(address, [number] * 20)
        answers = await replay(address.replay[0], 0)
        assert [int.from_bytes(answer[-2], "big") for answer in answers[:-1]] == [3, 4]


async def test_an_old_version_speaks_its_old_forms() -> None:
    """0.11: events as arrays, replay answers without topic, no report of zero cached tokens; hashes as told."""
    with pod("--vllm-version", "0.11.2.post2", "--event-hashes", "bytes", "--hash-seed", "7") as address:
        answer = await complete(address, [*range(20)])
        assert answer["usage"]["prompt_tokens_details"] is None
        first, end = await replay(address.replay[0], 0)
        assert end == [b"", END, b""]
        _, (event,), rank = msgspec.msgpack.decode(first[2])
        assert (event[0], len(event), len(event[1][0]), rank) == ("BlockStored", 7, 32, 0)


async def test_ranks_have_feeds_and_caches_of_their_own() -> None:
    """X-data-parallel-rank steers, out of range is refused, and each rank counts its own events."""
    with pod("--data-parallel-size", "2", "--hash-seed", "1") as address:
        assert len(set(address.events)) == len(set(address.replay)) == 2
        prompt = [*range(40)]
        body = {"prompt": prompt, "max_tokens": 1}
        for rank, expected in (("1", 0), ("1", 32), ("0", 0)):
            response = await post(address, "/v1/completions", body, **{"X-data-parallel-rank": rank})
            assert cached(response.json()) == expected
        response = await post(address, "/v1/completions", body, **{"X-data-parallel-rank": "2"})
        assert response.status_code == 400
        batches = [msgspec.msgpack.decode((await replay(endpoint, 0))[0][-1]) for endpoint in address.replay]
        assert [batch[2] for batch in batches] == [0, 1]
        assert batches[0][1] == batches[1][1]
        sources = (await post_free_get(address, "/kv_event_sources")).json()
        assert [source["endpoint"] for source in sources.values()] == address.events


async def post_free_get(address: Address, path: str) -> httpx.Response:
    """One GET on a connection of its own."""
    async with httpx.AsyncClient(base_url=address.http, trust_env=False) as http:
        return await http.get(path)


async def test_dropped_frames_can_be_replayed(faulty: Address) -> None:
    """With every frame dropped a subscriber gets none, the replay all of them; `no_replay` silences that too."""
    with subscriber(faulty.events[0]) as socket:
        await wait_for_feed(faulty, socket)
        seq = (await post_free_get(faulty, "/simulator/state")).json()["ranks"][0]["seq"]
        await post(faulty, "/simulator/fault", {"drop": 1.0})
        await complete(faulty, [*range(64)])
        assert len(await replay(faulty.replay[0], seq)) >= 2
        assert not await socket.poll(50)
        await post(faulty, "/simulator/fault", {"clear": True, "duplicate": 1.0})
        await complete(faulty, [*range(100, 164)])
        assert (await receive(socket)) == (await receive(socket))


async def test_a_dying_stream_ends_without_its_end(faulty: Address) -> None:
    """After so many chunks the connection is gone; the engine goes on serving."""
    await post(faulty, "/simulator/fault", {"die_after_chunks": 2})
    seen: list[str] = []
    async with httpx.AsyncClient(base_url=faulty.http, trust_env=False) as http:
        body = {"prompt": "die", "max_tokens": 500, "stream": True}
        with pytest.raises(httpx.TransportError):
            async with http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    seen += [line] if line else []
    assert len(seen) == 2
    await post(faulty, "/simulator/fault", {"clear": True})
    assert (await complete(faulty, [1, 2, 3]))["usage"]["completion_tokens"] == 2


async def test_a_failing_stream_says_so_and_ends(faulty: Address) -> None:
    """After so many chunks comes an error, and the end as of any stream, as with vLLM."""
    await post(faulty, "/simulator/fault", {"fail_after_chunks": 2})
    async with httpx.AsyncClient(base_url=faulty.http, trust_env=False) as http:
        body = {"prompt": "die", "max_tokens": 500, "stream": True}
        answer = await http.post("/v1/completions", json=body)
    lines = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200 and len(lines) == 4 and lines[-1] == "data: [DONE]"
    assert json.loads(lines[2].removeprefix("data: "))["error"]["code"] == 500
    await post(faulty, "/simulator/fault", {"clear": True})


async def test_a_refusing_pod_cuts_or_answers_503(faulty: Address) -> None:
    """Before any byte of an answer; the test's own endpoints go on."""
    await post(faulty, "/simulator/fault", {"refuse": "close"})
    with pytest.raises(httpx.TransportError):
        await post(faulty, "/v1/completions", {"prompt": "x"})
    await post(faulty, "/simulator/fault", {"refuse": "503"})
    assert (await post(faulty, "/v1/completions", {"prompt": "x"})).status_code == 503
    assert (await post(faulty, "/simulator/fault", {"refuse": "perhaps"})).status_code == 400


async def test_a_restart_forgets_everything(faulty: Address) -> None:
    """Streams are cut, the cache is empty, seq begins at 0 again, and engine hashes are new."""
    prompt = [*range(40)]
    await complete(faulty, prompt)
    before = await replay(faulty.replay[0], 0)
    async with httpx.AsyncClient(base_url=faulty.http, trust_env=False) as http:
        body = {"prompt": "cut me", "max_tokens": 6_000, "stream": True}
        with pytest.raises(httpx.TransportError):
            async with http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                await post(faulty, "/simulator/fault", {"restart": True})
                async for _ in lines:
                    pass
    assert cached(await complete(faulty, prompt)) == 0
    after = await replay(faulty.replay[0], 0)
    assert [answer[-2] for answer in after] == [(0).to_bytes(8, "big"), END]
    events = [msgspec.msgpack.decode(answers[0][-1])[1][0] for answers in (before, after)]
    assert events[0]["token_ids"] == events[1]["token_ids"]
    assert events[0]["block_hashes"] != events[1]["block_hashes"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--vllm-version", "0.8.5"], "no KV events"),
        (["--fault", "dorp=1"], "unknown fault"),
        (["--fault", "drop"], "NAME=VALUE"),
        (["--max-model-len", "100000"], "does not fit"),
        (["--prefill-tokens-per-s", "0"], "above 0"),
        (["--model-path", str(VECTORS)], "no tokenizer.json"),
    ],
)
def test_bad_options_end_with_one_plain_line(options: list[str], complaint: str) -> None:
    """No traceback, a code that is not 0, and what is wrong."""
    result = CliRunner().invoke(simulate, ["--model-path", str(MODEL), "--port", "0", *options])
    assert result.exit_code != 0
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_a_taken_port_is_named(shared: Address) -> None:
    """Of HTTP and of the feeds."""
    for option, address in (("--port", shared.http), ("--events-port", shared.events[0])):
        taken = address.rsplit(":", 1)[1]
        options = ["--model-path", str(MODEL), "--port", "0", option, taken]
        result = CliRunner().invoke(simulate, options)
        assert result.exit_code == 1
        assert "in use" in result.output


def test_a_pod_ends_with_its_signal() -> None:
    """SIGTERM ends it, also with a stream open that would go on for long."""
    command = [sys.executable, "-m", "simulator", "--port", "0", "--model-path", str(MODEL), "--num-blocks", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=VECTORS.parent.parent) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        body = {"prompt": "on and on", "max_tokens": 900, "stream": True}
        with (
            httpx.Client(trust_env=False) as http,
            http.stream("POST", f"{address}/v1/completions", json=body) as stream,
        ):
            next(stream.iter_lines())
            process.terminate()
            assert process.wait(WAIT_S) in (0, -signal.SIGTERM)


def test_help_documents_faults_and_has_an_example() -> None:
    """The text of --help."""
    screen = CliRunner().invoke(simulate, ["--help"]).output
    assert "Example" in screen and "--help-all" in screen and "--drafter" not in screen
    text = CliRunner().invoke(simulate, ["--help-all"]).output
    assert "--drafter" in text
    assert all(name in text for name in ("die_after_chunks", "no_replay", "restart"))
