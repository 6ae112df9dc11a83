"""Our token ids against the pods': how many are compared, what a difference does, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from indexer.blocks import Tokens
from router.core.demand import Demand
from router.core.token_states import Origin, Witness
from router.prompts.prompt import Prompt, parse
from router.tokens.parity import Parity, ParityLimits, difference_of
from router.tokens.questions import AS_BY_DEFAULT
from router.tokens.understanding import shape_of
from tests.fakes.hostile import TINY_LLAMA, TINY_QWEN
from tests.fakes.limits import parity_limits
from tests.fakes.peers import until
from tests.fakes.processes import MODEL as SERVED
from tests.fakes.processes import PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods
from tests.fakes.tokenizing import MODEL, Asking, Says, asking

LOOK_S = 0.02
LOOKS_A_TURN = 4  # at the clock, at most
OURS = np.arange(50, dtype=np.uint32)
SAME = OURS.tolist()
OTHER = [*range(20), 99, *range(21, 50)]


def prompt_of(number: int = 0, **more: Any) -> Witness:
    """A request, unlike those of other numbers."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{number}"}], **more}
    return Witness("/v1/chat/completions", json.dumps(body).encode())


class Watching:
    """A Parity that runs, over the pods of an Asking; `ours` is what we make of every prompt."""

    def __init__(self, made: Asking, limits: ParityLimits) -> None:
        self.made = made
        self.ours: Tokens | None = OURS
        self._looks = 0  # at the clock
        self.parity = Parity(made.fleet, made.pods, self._ours, limits, self._clock)
        self.state = self.parity.watch((MODEL, "alias"), AS_BY_DEFAULT)

    async def looked(self) -> None:
        """What has changed is known by now, whatever the machine's speed: there was a whole turn since."""
        enough = self._looks + 2 * LOOKS_A_TURN
        await until(lambda: self._looks >= enough)

    def _clock(self) -> float:
        self._looks += 1
        return self.made.now

    async def _ours(self, prompt: Prompt, version: str | None) -> Tokens | None:
        return self.ours

    def offer_now(self, served: Witness) -> None:
        """A pod has served this."""
        origin = Origin(self.state, shape_of(parse(*served)), MODEL)
        self.parity.offer(Demand(MODEL, origin=origin), served)

    async def offer(self, *prompts: Witness) -> None:
        """One after the other, each with time to be compared, once the pods were looked at."""
        await self.looked()
        for prompt in prompts:
            self.offer_now(prompt)
            await until(lambda: self.parity.waiting == 0)


@contextlib.asynccontextmanager
async def watching(*says: Says, **limits: Any) -> AsyncIterator[Watching]:
    """Comparisons with as many pods as there are `says`."""
    async with asking(*says) as made:
        watched = Watching(
            made,
            parity_limits(
                **{"first": 3, "share": 0.0, "recheck_interval_s": 60.0, "look_interval_s": LOOK_S, **limits}
            ),
        )
        task = asyncio.create_task(watched.parity.run())
        try:
            yield watched
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_first_are_compared() -> None:
    """As many as are wanted of each version, and then none; equal ids make the state exact."""
    async with watching(Says(SAME), Says(SAME), Says(SAME)) as watched:
        made = watched.made
        for pod, version in zip(made.fleet.pods.values(), ("0.30.0", "0.31.0", "0.31.0"), strict=True):
            pod.version = version
        assert watched.state.state == "unverified"
        await watched.offer(*map(prompt_of, range(20)))
        assert (watched.state.state, watched.state.reason) == ("exact", None)
        assert (made.calls[0], made.calls[1] + made.calls[2], watched.state.compared) == (3, 3, 6)
        made.fleet.pods["pod-2"].version = "0.32.0"
        await watched.looked()
        await watched.offer(*map(prompt_of, range(10)))
        assert (made.calls[0], watched.state.compared) == (3, 9)
        assert made.fleet.tokenizers == {MODEL: watched.state, "alias": watched.state}


async def test_a_share_is_compared() -> None:
    """After the first, every so many-th; with neither, none ever."""
    async with watching(Says(SAME), first=0, share=0.1) as watched:
        await watched.offer(*map(prompt_of, range(50)))
        await until(lambda: watched.state.compared == 5)
    async with watching(Says(SAME), first=0) as watched:
        await watched.offer(*map(prompt_of, range(50)))
        assert watched.made.calls == [0]


async def test_few_wait() -> None:
    """While a pod takes its time, what is offered beyond the queue is let go: requests never wait."""
    says = Says(SAME)
    says.gate.clear()
    async with watching(says, first=1000, queue_max=2) as watched:
        await watched.looked()
        for number in range(30):
            watched.offer_now(prompt_of(number))
            await asyncio.sleep(0.001)
        says.gate.set()
        await until(lambda: watched.state.compared == 3)
        assert watched.made.calls == [3]


async def test_a_difference(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, with both lists where they part; the pods tokenize until the very prompt is equal again."""
    says = Says(OTHER)
    async with watching(says) as watched:
        epoch = watched.made.fleet.epoch
        with caplog.at_level(logging.INFO, "warmroute.parity"):
            await watched.offer(*map(prompt_of, range(5)))
            await until(lambda: watched.state.state == "degraded")
            assert (watched.state.different, watched.made.calls) == (1, [1])
            assert watched.made.fleet.epoch > epoch  # answers that were kept are not used any more
            watched.made.now += 61
            await until(lambda: len(watched.made.peers[0].calls) == 2)
            assert watched.state.state == "degraded"
            says.body = Says(SAME).body
            await watched.looked()
            assert watched.made.calls == [2]  # not before the time has come
            watched.made.now += 61
            await until(lambda: watched.state.state == "unverified")
            await watched.offer(prompt_of(9))
            await until(lambda: watched.state.state == "exact")
        first, second = (record.getMessage() for record in caplog.records)
        assert "at place 20: ours [17, 18, 19, 20, 21, 22, 23] (50 in all), " in first
        assert "the pod's [17, 18, 19, 99, 21, 22, 23] (50)" in first and "pod-0" in first
        assert second == "m: token ids equal the pods' again"
        assert watched.made.peers[0].calls[0].body == watched.made.peers[0].calls[2].body != b""


@pytest.mark.parametrize(
    "prompt",
    [prompt_of(documents=[{"text": "x"}]), prompt_of(reasoning_effort="low"), prompt_of(truncate_prompt_tokens=4)],
)
async def test_what_can_not_be_compared(prompt: Witness) -> None:
    """What /tokenize does not know is no difference, and is not asked."""
    async with watching(Says(OTHER)) as watched:
        await watched.offer(prompt, prompt)
        assert (watched.state.state, watched.made.calls) == ("unverified", [0])
        assert watched.state.reason is not None and "unknown to the pods' /tokenize" in watched.state.reason


async def test_what_is_not_tokenized_here() -> None:
    """A prompt that we ran out of time for says nothing."""
    async with watching(Says(OTHER)) as watched:
        watched.ours = None
        await watched.offer(prompt_of())
        assert (watched.state.state, watched.state.compared) == ("unverified", 0)


async def test_pods_that_can_not_be_asked() -> None:
    """They are left alone for a while; a pod that refuses a prompt says nothing of its ids."""
    says = Says(SAME, status=404)
    async with watching(says) as watched:
        await watched.offer(prompt_of())
        await until(lambda: watched.state.reason == "not compared: the pods' /tokenize fails")
        await watched.looked()
        await watched.offer(*map(prompt_of, range(5)))
        assert watched.made.calls == [1]
        says.status = 400
        watched.made.now += 61
        await watched.looked()
        await watched.offer(prompt_of())
        await until(lambda: watched.state.reason == "not compared: the pods' /tokenize refuses it")
        says.status = 200
        await watched.offer(prompt_of())
        await until(lambda: watched.state.state == "exact")
        assert watched.state.reason is None


async def test_a_model_that_is_gone() -> None:
    """Nobody serves it any more: nobody is asked, and nothing breaks."""
    async with watching(Says(OTHER)) as watched:
        await watched.offer(prompt_of())
        await until(lambda: watched.state.state == "degraded")
        pod = watched.made.fleet.pods["pod-0"]
        watched.made.fleet.learned_models(pod, [{"id": "another"}])
        watched.made.now += 61
        await watched.looked()
        assert watched.made.calls == [1]
        watched.made.fleet.learned_models(pod, [{"id": MODEL}])
        watched.made.now += 61
        await until(lambda: watched.made.calls == [2])


def test_differences_in_words() -> None:
    """Also where one list is the beginning of the other."""
    shorter = difference_of(OURS, OURS[:10])
    assert shorter == "at place 10: ours [7, 8, 9, 10, 11, 12, 13] (50 in all), the pod's [7, 8, 9] (10)"
    assert difference_of(OURS[1:], OURS).startswith("at place 0: ours [1, 2, 3, 4] (49 in all), the pod's [0, 1, 2, 3]")


# --- with real processes


def ask(client: httpx.Client, number: int) -> tuple[int, int]:
    """One chat of its own: tokens as /score and as the pod count them."""
    messages = [{"role": "user", "content": f"{number}: how would you put this, being asked to be brief? " * 3}]
    scored = client.post("/score", json={"model": SERVED, "messages": messages}).json()["tokens"]
    return scored, post(client, {"model": SERVED, "messages": messages, "max_tokens": 1})["usage"]["prompt_tokens"]


def post(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a chat."""
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.is_success, answer.text
    return dict(answer.json())


def tokenizer_of(served: GatewayProcess) -> dict[str, Any]:
    """What /pods says of the model's tokenizer."""
    return dict(served.get("/pods").json()["pods"][0]["tokenizers"][SERVED])


async def test_a_pod_with_another_tokenizer(tmp_path: Path) -> None:
    """Found by itself, said everywhere, and lived with: tokens are the pod's; when the pod is put right, ours again."""
    pod = PodProcess("pod-0", ("--model-path", str(TINY_LLAMA)))
    parity = {"first": 4, "recheck_interval": 0.5}
    with (
        pods(pod),
        gateway(tmp_path, [pod.configured], parity=parity) as served,
        httpx.Client(base_url=served.url, **PLAIN) as client,
    ):
        ours, theirs = ask(client, 0)
        assert ours != theirs
        await eventually(lambda: tokenizer_of(served)["state"] == "degraded")
        for number in range(5):
            ours, theirs = ask(client, number)
            assert ours == theirs
        told = tokenizer_of(served)
        assert "pod-0 (vLLM 0.32.0)" in told["reason"] and "[" not in told["reason"]
        assert served.metric(f'warmroute_tokenizer_state{{model="{SERVED}",state="degraded"}}') == 1
        assert served.metric(f'warmroute_tokenizer_comparisons_total{{model="{SERVED}",result="different"}}') >= 1
        logged = [line for line in served.logged().splitlines() if "token ids differ" in line]
        assert len(logged) == 1 and "at place" in logged[0]

        pod.kill()
        pod.options = ("--model-path", str(TINY_QWEN))
        pod.start()
        pod.wait()
        await eventually(lambda: tokenizer_of(served)["state"] != "degraded")
        assert await eventually(lambda: ask(client, 100)[0] == ask(client, 100)[1])
        await eventually(lambda: ask(client, 101) and tokenizer_of(served)["state"] == "exact")
        assert served.metric(f'warmroute_tokenizer_state{{model="{SERVED}",state="exact"}}') == 1


async def test_a_pod_with_our_tokenizer(tmp_path: Path) -> None:
    """Chats with all that there is in them are compared, and are equal."""
    pod = PodProcess("pod-0")
    with (
        pods(pod),
        gateway(tmp_path, [pod.configured], parity={"first": 50}) as served,
        httpx.Client(base_url=served.url, **PLAIN) as client,
    ):
        for number in range(6):
            ours, theirs = ask(client, number)
            assert ours == theirs
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Ça va, 世界?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]
        before = await eventually(lambda: (compared := tokenizer_of(served)["compared"]) >= 6 and compared)
        for more in ({"tools": tools}, {"tools": tools, "add_generation_prompt": False}):
            post(client, {"model": SERVED, "messages": messages, "max_tokens": 1, **more})
        await eventually(lambda: tokenizer_of(served)["compared"] == before + 2)
        assert tokenizer_of(served)["state"] == "exact"
