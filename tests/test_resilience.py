"""No request that could be served is lost: the whole gateway in front of bad pods on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from router.endpoints.answers import pod_answer
from router.proxy.proxy import Proxy
from router.upstream.pool import Upstream
from tests.fakes.houses import (
    EVENT,
    EVENTS,
    MODEL,
    PATIENCE_S,
    STREAM,
    TOKENIZED,
    TOKENIZER,
    BadPod,
    Behaviour,
    Client,
    House,
    dies,
    hangs,
    house,
    reply,
    says,
    streams,
    streams_for_ever,
)
from tests.fakes.limits import upstream_limits
from tests.fakes.mortals import POISON, asked_for, mortals
from tests.fakes.peers import Call, until

# --- retries


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_refusal_is_served_by_another(status: int, chunked: bool) -> None:
    """A pod that says it can't: the client gets the other's answer, each pod is asked once, and it is counted."""
    body = b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" if chunked else b"content-length: 2\r\n\r\n{}"

    async def refuses(call: Call) -> None:
        await call.send(b"HTTP/1.1 %d No\r\n" % status + body)

    async with house(refuses, says(200, b"fine"), probe={"interval": 100.0}) as here:  # no probe clears it meanwhile
        answers = [await here.ask() for _ in range(2)]
        assert [(answer.status, answer.body) for answer in answers] == [(200, b"fine")] * 2
        assert {answer.headers[b"x-warmroute-pod"] for answer in answers} == {b"pod-1"}
        assert here.pods["pod-0"].posts == 1
        assert await here.metric(f'warmroute_retries_total{{reason="status_{status}"}}') == 1
        series = f'warmroute_requests_total{{code="200",model="{MODEL}",pod="pod-1"}}'
        assert await here.metric(series) == 2


async def test_what_is_an_answer_is_no_refusal() -> None:
    """400, 422 and 500 are of the request: no other pod is asked."""
    for status in (400, 422, 500):
        async with house(says(status, b"its own"), says(200)) as here:
            assert (await here.ask())[::2] == (status, b"its own")
            assert here.pods["pod-1"].posts == 0


async def test_no_other_pod_is_left() -> None:
    """The pod's own answer goes to the client as it is: status, Retry-After, body; and is counted as the pod's."""
    async with house(says(503, b"my own words", b"Retry-After: 7", b"X-Own: 1")) as here:
        for _ in range(2):
            answer = await here.ask()
            assert (answer.status, answer.body) == (503, b"my own words")
            assert (answer.headers[b"retry-after"], answer.headers[b"x-own"]) == (b"7", b"1")
            assert answer.headers[b"x-warmroute-pod"] == b"pod-0"
        assert await here.metric(f'warmroute_requests_total{{code="503",model="{MODEL}",pod="pod-0"}}') == 2


async def test_all_refuse() -> None:
    """At most `attempts_max` pods are asked, each once; the last one's answer is the client's."""
    behaviours = [says(503, b"%d" % number) for number in range(5)]
    async with house(*behaviours, upstream={"attempts_max": 3}) as here:
        answer = await here.ask()
        asked = [name for name, pod in here.pods.items() if pod.posts]
        assert sum(pod.posts for pod in here.pods.values()) == len(asked) == 3
        assert answer.status == 503 and answer.headers[b"x-warmroute-pod"] == f"pod-{answer.body.decode()}".encode()


async def test_a_refusal_is_better_than_nothing() -> None:
    """One pod refuses, the other is dead: the client gets the words of the one that lives."""
    async with house(says(429, b"later", b"Retry-After: 1"), dies) as here:
        assert (await here.ask())[::2] == (429, b"later")


async def test_refusals_without_an_end() -> None:
    """A refusal whose body never ends is let go of as soon as another pod has answered."""

    async def goes_on(call: Call) -> None:
        await call.send(b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n" + EVENT)
        await call.gone()

    async with house(goes_on, says(200, b"fine"), goes_on) as here:  # round-robin comes to pod-1 last
        assert (await here.ask())[::2] == (200, b"fine")
        await here.at_rest()
        assert all(here.pods[name].posts == 1 for name in ("pod-0", "pod-2"))


async def test_a_silent_pod_is_left() -> None:
    """No head of a stream in time, where it should come at once: another pod serves."""
    async with house(hangs, says(200, b"fine"), upstream={"first_byte_timeout": 0.5}) as here:
        assert (await here.ask({"stream": True}))[::2] == (200, b"fine")


async def test_what_is_computed_is_not_computed_again() -> None:
    """A whole answer that takes too long, of a pod that is well: 504, and no other pod has to work on it, too."""
    async with house(hangs, hangs, hangs, upstream={"first_byte_timeout": 0.1}) as here:
        assert (await here.ask()).status == 504
        assert sum(pod.posts for pod in here.pods.values()) == 1


@pytest.mark.parametrize("status", [502, 504])
async def test_a_proxy_in_the_way_may_hide_a_break(status: int) -> None:
    """502 and 504 are of something before the pod, which had the request: one more pod may get it, no third."""
    async with house(says(status), says(status), says(status)) as here:
        assert (await here.ask()).status == status
        assert sum(pod.posts for pod in here.pods.values()) == 2


@pytest.mark.parametrize("warm", [False, True])
async def test_a_query_of_death(warm: bool) -> None:
    """A request that breaks its pod breaks one more at most; a kept connection, which may be old, is made anew."""
    poison = "poison"

    async def behave(call: Call) -> None:
        if poison in call.body.decode():
            call.reset()
        else:
            await call.send(reply(200))

    async with house(*[behave] * 4) as here:
        for _ in range(8 * warm):
            assert (await here.ask()).status == 200
        assert (await here.ask({"prompt": poison})).status == 502
        posts = [pod.posts - 2 * warm for pod in here.pods.values()]
        assert sum(count > 0 for count in posts) == 2
        assert sum(posts) == 2 + warm


@pytest.mark.parametrize("status", [200, 201, 202, 302, 307, 308, 400])
@pytest.mark.parametrize("name", [b"Location", b"Content-Location"])
async def test_no_answer_says_where_its_pod_is(status: int, name: bytes) -> None:
    """Neither of what was made there, nor of where else to ask; nor of another way to it."""
    more = (b"Link: <http://10.0.0.1:8000/v1/x>; rel=next", b"Refresh: 1; url=http://10.0.0.1/", b'Alt-Svc: h2=":8000"')
    async with house(says(status, b"{}", name + b": HTTP://10.0.0.1:8000/v1/x?y=1", *more)) as here:
        headers = (await here.ask()).headers
        assert headers[name.lower()] == b"/v1/x?y=1"
        assert (headers[b"link"], headers[b"refresh"]) == (b"</v1/x>; rel=next", b"1; url=/")
        assert b"alt-svc" not in headers and not any(b"10.0.0.1" in value for value in headers.values())


async def test_an_old_connection_costs_nothing_after_a_break() -> None:
    """One pod breaks of a request; the next one is about to close what it kept: it is asked anew, once, and serves."""
    word = "last"

    async def breaks(call: Call) -> None:
        if word in call.body.decode():
            call.reset()
        else:
            await call.send(reply(200))

    async def closes_what_it_kept(call: Call) -> None:
        if word in call.body.decode() and call.number:
            call.close()
        else:
            await call.send(reply(200, b"fine"))

    async with house(breaks, closes_what_it_kept) as here:
        for _ in range(4):
            assert (await here.ask()).status == 200
        for _ in range(2):  # round-robin begins with either
            answer = await here.ask({"prompt": word})
            assert (answer.status, answer.body) == (200, b"fine")


@pytest.mark.parametrize("agony_s", [0.0, 0.2])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("tokenizer", "renders"), [(str(TOKENIZER), False), ("pod", False), ("pod", True)])
async def test_a_prompt_of_death(tokenizer: str, renders: bool, warm: bool, agony_s: float) -> None:
    """Who is asked for a prompt's tokens may die of it, too: two pods at most see one, on whatever path."""
    async with mortals(tokenizer, renders, agony_s) as (service, app, pods):
        for number in range(8 * warm):
            assert await asked_for(app, f"{number}") == 200
        assert await asked_for(app, POISON.decode()) == 502
        await until(lambda: service.encoder.parity.waiting == 0)
        assert sum(pod.dead for pod in pods) == 2
        assert await asked_for(app, "of the two that are left, one serves this") == 200


async def test_only_what_was_served_is_shown_to_others() -> None:
    """Token ids are compared when a pod has answered, whole: not before, and not of what only `/score` knows."""
    async with mortals(str(TOKENIZER)) as (service, app, pods):
        parity = service.encoder.parity
        async with asyncio.timeout(PATIENCE_S):
            while not sum(pod.asked for pod in pods):  # until it wants to compare, and has
                assert await asked_for(app, "x") == 200
                await asyncio.sleep(0.01)
        await until(lambda: parity.waiting == 0)
        before = sum(pod.asked for pod in pods)
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "y"}]}).encode()
        for path in ("/score", "/v1/chat/completions"):
            known = await service.encoder.understood(path, body, await service.encoder.parsed(path, body))
            assert (known.demand.reason, parity.waiting) == (None, 0)
        assert await asked_for(app, "y") == 200
        await until(lambda: sum(pod.asked for pod in pods) == before + 1)


async def test_pods_that_can_not_be_reached_are_passed() -> None:
    """Who never had a request can't have died of it: connections that fail go on to the next pod, and the next."""
    async with house(says(200), says(200), says(200), says(200), upstream={"attempts_max": 4}) as here:
        for name in ("pod-0", "pod-1", "pod-2"):
            here.service.upstreams[name] = Upstream("127.0.0.1:1", upstream_limits())
        assert {(await here.ask()).headers[b"x-warmroute-pod"] for _ in range(4)} == {b"pod-3"}


# --- disputes


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_pod_that_alone_refuses_is_at_fault(status: int) -> None:
    """A wrong key after a roll-out, a model that is not loaded: clients are served by others, the pod is ejected."""
    breaker = {"failures_in_row": 2, "open_time": 60}
    async with house(says(status), says(200), says(200), breaker=breaker, probe={"interval": 0.01}) as here:
        while not here.pod("pod-0").breaker.tripped:
            assert (await here.ask()).status == 200
            await asyncio.sleep(0.002)
        assert here.pods["pod-0"].posts == 2
        assert {(await here.ask()).status for _ in range(6)} == {200}
        assert here.pods["pod-0"].posts == 2


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_all_pods_refuse_is_the_client_s_fault(status: int) -> None:
    """The answer is a pod's own, two are asked at most, and nobody is ejected or left out for it."""
    words = b"%d, says the pod" % status
    async with house(*[says(status, words)] * 3, breaker={"failures_in_row": 1}) as here:
        for count in range(1, 6):
            assert (await here.ask())[::2] == (status, words)
            assert sum(pod.posts for pod in here.pods.values()) <= 2 * count
        for name in here.pods:
            assert not here.pod(name).breaker.tripped and here.pod(name).fit(time.monotonic())


@pytest.mark.parametrize("status", [302, 400, 405, 422])
async def test_a_pod_that_calls_all_its_clients_wrong_is_at_fault(status: int) -> None:
    """It lacks a template, say: at once done with all, it would be the least busy one, and get nearly everything."""

    async def slow(call: Call) -> None:
        await asyncio.sleep(0.01)
        await call.send(reply(200, b"fine"))

    breaker = {"failures_in_row": 2, "open_time": 60}
    async with house(says(status), slow, slow, breaker=breaker, probe={"interval": 0.01}) as here:
        lost = 0
        while not here.pod("pod-0").breaker.tripped:
            lost += (await here.ask()).status == status
            await asyncio.sleep(0.002)
        assert lost == 4 and here.pods["pod-0"].posts == 6
        assert {(await here.ask()).status for _ in range(6)} == {200}


async def test_clients_that_are_wrong_are_told_so_by_one_pod_mostly() -> None:
    """Every fifth of such requests in a row is shown to another pod, which says the same: nobody is ejected."""
    async with house(says(400, b"wrong"), says(400, b"wrong"), breaker={"failures_in_row": 1}) as here:
        for _ in range(30):
            assert (await here.ask())[::2] == (400, b"wrong")
        assert 30 < sum(pod.posts for pod in here.pods.values()) <= 30 * 5 / 4
        assert not any(here.pod(name).breaker.tripped for name in here.pods)


async def test_no_other_pod_to_ask() -> None:
    """The only pod's 401 is the client's, with its own words."""
    async with house(says(401, b"no")) as here:
        assert (await here.ask())[::2] == (401, b"no")
        assert not here.pod("pod-0").breaker.tripped


async def test_a_404_of_another_path_accuses_nobody() -> None:
    """A path that one pod alone does not know, during an upgrade say, is no reason to eject it."""
    async with house(says(404), says(200), breaker={"failures_in_row": 1}, probe={"interval": 0.01}) as here:
        for _ in range(4):
            assert (await here.ask(path="/v1/embeddings")).status == 200
        assert here.pods["pod-0"].posts >= 1 and not here.pod("pod-0").breaker.tripped


async def test_a_model_that_has_moved() -> None:
    """An adapter goes from one pod to another between two looks: the request that meets a 404 goes where it is now."""
    both = [{"id": MODEL}, {"id": "ad", "parent": MODEL}]

    def serving(pod: BadPod) -> Behaviour:
        async def behave(call: Call) -> None:
            known = json.loads(call.body)["model"] in [model["id"] for model in pod.models]
            await call.send(reply(200 if known else 404, b"fine" if known else b"no such model"))

        return behave

    async with house(says(200), says(200), probe={"interval": 100.0}) as here:
        one, other = here.pods["pod-0"], here.pods["pod-1"]
        one.behaviour, other.behaviour = serving(one), serving(other)
        one.models = both
        assert (await here.ask({"model": "ad"})).headers[b"x-warmroute-pod"] == b"pod-0"
        one.models, other.models = other.models, both
        answer = await here.ask({"model": "ad"})
        assert (answer.status, answer.headers[b"x-warmroute-pod"]) == (200, b"pod-1")
        posts = one.posts
        assert (await here.ask({"model": "ad"})).status == 200 and one.posts == posts
        other.models = one.models
        assert (await here.ask({"model": "ad"})).status == 404


async def test_retry_after_is_honoured() -> None:
    """A pod that names a time is left alone for it, whatever its probes say; and for no longer than is allowed."""
    busy = says(429, b"", b"Retry-After: 100")
    async with house(busy, says(200), upstream={"retry_after_max": 0.8}) as here:
        began = time.monotonic()
        assert (await here.ask()).status == 200
        assert not here.pod("pod-0").fit(time.monotonic())
        while (now := time.monotonic()) < began + 0.6:
            assert (await here.ask()).status == 200
            await asyncio.sleep(0.01)
            if time.monotonic() < began + 0.8:
                assert here.pods["pod-0"].posts == 1
        assert here.pod("pod-0").breaker.state(now) == "closed", "it is not ill"
        here.pods["pod-0"].behaviour = says(200)
        await until(lambda: here.pod("pod-0").fit(time.monotonic()))
        assert {(await here.ask()).headers[b"x-warmroute-pod"] for _ in range(4)} == {b"pod-0", b"pod-1"}


async def test_an_outage_is_not_amplified() -> None:
    """All pods refuse all: beside each request's first attempt there are no more retries than the budget has."""
    budget = {"retry_share": 0.1, "retry_floor": 2, "attempts_max": 3}
    async with house(says(503), says(503), says(503), upstream=budget) as here:
        for _ in range(30):
            assert (await here.ask()).status == 503
        posts = sum(pod.posts for pod in here.pods.values())
        assert 30 + 2 <= posts <= 30 + 2 + 3 + 2  # the share, and what the floor may have gained meanwhile
        assert await here.metric("warmroute_retries_refused_total") >= 20


# --- breaker


async def test_a_failing_pod_is_ejected_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    """Probes are fine and requests fail: no client notices; it is ejected, said once, tried again, and back."""
    breaker = {"failures_in_row": 3, "open_time": 0.6, "open_time_max": 0.8}
    caplog.set_level(logging.INFO, "warmroute.attempts")
    async with house(dies, says(200), says(200), breaker=breaker, scoring={"policy": "round-robin"}) as here:
        bad = here.pods["pod-0"]

        def said() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == "warmroute.attempts"]

        async def ask_until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert (await here.ask()).status == 200
                    await asyncio.sleep(0.005)

        await ask_until(lambda: here.pod("pod-0").breaker.tripped)
        assert len(bad.attempts) == 3
        assert await here.metric('warmroute_breaker_state{pod="pod-0"}') == 2
        assert await here.metric('warmroute_breaker_state{pod="pod-1"}') == 0
        told = pod_answer(here.pod("pod-0"), here.service.core, time.monotonic())["breaker"]
        assert (told["state"], told["reason"], told["openings"]) == ("open", "3 requests failed in a row", 1)
        assert 0 < told["blocked_s"] <= 0.6
        assert said() == ["pod-0 is ejected: 3 requests failed in a row, the last one with broken_response"]
        await ask_until(lambda: here.pod("pod-0").breaker.openings == 2)
        assert len(bad.attempts) == 4, "one request decides"
        bad.behaviour = says(200)
        await ask_until(lambda: not here.pod("pod-0").breaker.tripped)
        assert await here.metric('warmroute_breaker_state{pod="pod-0"}') == 0
        assert here.pod("pod-0").slow_until > time.monotonic()
        assert len(said()) == 3
        assert here.pod("pod-1").breaker.openings == here.pod("pod-2").breaker.openings == 0


@pytest.mark.parametrize(
    ("status", "header", "ejected"), [(429, b"X-A: 1", False), (503, b"Retry-After: 0", False), (503, b"X-A: 1", True)]
)
async def test_a_busy_pod_is_not_a_failing_one(status: int, header: bytes, ejected: bool) -> None:
    """Who says that it has too much to do is left alone, and not ejected; who fails without a word is."""
    async with house(says(status, b"", header), says(200), breaker={"failures_in_row": 1}) as here:
        assert (await here.ask()).status == 200
        assert here.pods["pod-0"].posts == 1
        assert here.pod("pod-0").breaker.tripped is ejected


async def test_a_deciding_request_whose_client_leaves() -> None:
    """The one request of half-open is given up by its client: another may decide at once."""
    async with house(dies, says(200), breaker={"failures_in_row": 1, "open_time": 0.5}) as here:
        here.service.proxy = Proxy(watch_after_s=0.0)
        breaker, bad = here.pod("pod-0").breaker, here.pods["pod-0"]
        while not breaker.tripped:
            assert (await here.ask()).status == 200
        bad.behaviour = hangs
        await until(lambda: breaker.state(time.monotonic()) == "half-open" and here.pod("pod-0").fit(time.monotonic()))
        task = None
        while task is None or task.done():
            client = Client(here.app, {}, {})
            task = asyncio.create_task(client.run())
            await until(lambda task=task: task.done() or bad.busy == 1)  # type: ignore[misc]
        assert not here.pod("pod-0").fit(time.monotonic())
        client.leave()
        await task
        assert breaker.blocked_until <= time.monotonic()


async def test_a_stream_that_breaks_counts() -> None:
    """A pod whose streams break in the middle is ejected; each client sees its break."""

    async def breaks(call: Call) -> None:
        await call.send(STREAM + EVENT)
        call.reset()

    async with house(breaks, streams, breaker={"failures_in_row": 2}) as here:
        for _ in range(4):
            client = Client(here.app, {"stream": True}, {})
            await client.run()
        assert here.pod("pod-0").breaker.tripped
        assert here.pods["pod-0"].posts == 2


async def test_the_last_pod_is_never_ejected() -> None:
    """With one pod, and with two that both fail: somebody is always asked."""
    async with house(dies, breaker={"failures_in_row": 1}) as here:
        assert [(await here.ask()).status for _ in range(4)] == [502] * 4
        assert len(here.pods["pod-0"].attempts) == 4
    async with house(dies, dies, breaker={"failures_in_row": 1}) as here:
        for _ in range(4):
            assert (await here.ask()).status == 502
        assert sum(here.pod(name).breaker.tripped for name in here.pods) == 1


async def test_clients_who_leave_are_no_failure() -> None:
    """However many leave, before or after the first byte, the pod is not ejected."""
    async with house(hangs, streams_for_ever, breaker={"failures_in_row": 1}) as here:
        here.service.proxy = Proxy(watch_after_s=0.0)
        for _ in range(6):
            client = Client(here.app, {"stream": True}, {})
            task = asyncio.create_task(client.run())
            await until(lambda: any(pod.busy for pod in here.pods.values()))
            client.leave()
            await asyncio.wait_for(task, PATIENCE_S)
            await here.at_rest()
        assert not any(here.pod(name).breaker.tripped for name in here.pods)


# --- admission


def gated(gate: asyncio.Semaphore) -> Behaviour:
    """A pod that answers when it is let."""

    async def behave(call: Call) -> None:
        await gate.acquire()
        await call.send(reply(200))

    return behave


async def test_who_is_over_the_bound_waits_for_its_turn() -> None:
    """One at a time: the urgent first, then flows in turns, and nobody is refused."""
    gate = asyncio.Semaphore(0)
    async with house(gated(gate), gateway={"requests_max": 1}, admission={"wait_max": "10s"}) as here:
        asked = []
        for place, (user, flow, priority) in enumerate(
            [
                ("first", "a", "0"),
                *((f"a{number}", "a", "0") for number in range(6)),
                ("b", "b", "0"),
                ("urgent", "c", "-1"),
            ]
        ):
            headers = {"x_warmroute_flow": flow, "x_warmroute_priority": priority}
            asked.append(asyncio.create_task(here.ask({"user": user}, **headers)))
            await until(lambda place=place: here.pods["pod-0"].posts + here.service.core.queue.waiting == place + 1)
        assert here.pods["pod-0"].order == ["first"]
        assert await here.metric("warmroute_admission_waiting") == 8
        for _ in asked:
            gate.release()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 9
        order = here.pods["pod-0"].order
        assert order[:2] == ["first", "urgent"]
        assert [user for user in order if user.startswith("a")] == [f"a{number}" for number in range(6)]
        assert order.index("b") < len(order) - 1, "it did not wait for all of the other flow"
        assert await here.metric('warmroute_admissions_total{result="granted"}') == 8


async def test_who_waits_too_long_is_told() -> None:
    """No room in time, or no place in the queue: 429 with Retry-After, as an OpenAI error."""
    gate = asyncio.Semaphore(0)
    bounds = {"queue_max": 1, "wait_max": 0.1, "pod_requests_max": 1}
    async with house(gated(gate), admission=bounds) as here:
        first = asyncio.create_task(here.ask())
        await until(lambda: here.pods["pod-0"].posts == 1)
        waits = asyncio.create_task(here.ask())
        await until(lambda: here.service.core.queue.waiting == 1)
        for answer in (await here.ask(), await waits):
            assert (answer.status, answer.headers[b"retry-after"]) == (429, b"1")
            assert json.loads(answer.body)["error"]["type"] == "rate_limit_error"
        gate.release()
        assert (await first).status == 200
        results = {r: await here.metric(f'warmroute_admissions_total{{result="{r}"}}') for r in ("full", "timeout")}
        assert results == {"full": 1, "timeout": 1}


async def test_all_that_is_accepted_is_bounded() -> None:
    """Beyond what may be at pods and what may wait, requests are refused before their body is read."""
    gate = asyncio.Semaphore(0)
    async with house(gated(gate), gateway={"requests_max": 1}, admission={"queue_max": 1}) as here:
        tasks = [asyncio.create_task(here.ask()) for _ in range(2)]
        await until(lambda: here.service.core.queue.waiting == 1)
        client = Client(here.app, {}, {})
        await client.run()
        assert client.answer.status == 429
        assert not client.asked_for_body
        gate.release()
        gate.release()
        assert [(await task).status for task in tasks] == [200, 200]


async def test_a_waiting_client_that_leaves_is_out() -> None:
    """It is taken from the queue at once, and the pod never hears of it."""
    gate = asyncio.Semaphore(0)
    async with house(gated(gate), gateway={"requests_max": 1}) as here:
        first = asyncio.create_task(here.ask({"user": "first"}))
        await until(lambda: here.pods["pod-0"].posts == 1)
        client = Client(here.app, {"user": "gone"}, {})
        waits = asyncio.create_task(client.run())
        await until(lambda: here.service.core.queue.waiting == 1)
        client.leave()
        await asyncio.wait_for(waits, PATIENCE_S)
        assert here.service.core.queue.waiting == 0 and not client.started
        gate.release()
        assert (await first).status == 200
        assert here.pods["pod-0"].order == ["first"]


# --- every await


@types.coroutine
def interrupted(coroutine: Coroutine[Any, Any, None], at: int, act: Callable[[], None]) -> Generator[Any, Any, bool]:
    """Run `coroutine`, and call `act` when it waits for the `at`th time; whether it came to that."""
    step, resume, value = 0, coroutine.send, None
    while True:
        try:
            waited = resume(value)
        except StopIteration:
            return step >= at
        step += 1
        if step == at:
            act()
        try:
            value, resume = (yield waited), coroutine.send
        except BaseException as error:
            value, resume = error, coroutine.throw


async def interrupt(client: Client, at: int, act: Callable[[], None]) -> bool:
    """`interrupted`, as a task of its own."""
    return await interrupted(client.run(), at, act)


def cancel() -> None:
    """What a server does that stops."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def every_await(here: House, leaving: bool, before: Callable[[], Awaitable[Any]] | None = None) -> int:
    """Ask again and again, interrupted at the first await, the second … until there are no more; how many there are.

    After each, all is at rest. `leaving`: by the client's leaving, else by cancelling the request's task.
    """
    at = 0
    while True:
        at += 1
        held = await before() if before is not None else None
        prompt = f"{at} {leaving} " + "all that a long prompt says. " * 1500  # long and new: tokenized in a thread
        client = Client(here.app, {"prompt": prompt, "stream": True}, {})
        task = asyncio.create_task(interrupt(client, at, client.leave if leaving else cancel))
        reached = True
        async with asyncio.timeout(PATIENCE_S):
            if held is not None:
                await held(task)
            ends = asyncio.create_task(_has_all(client)) if leaving else asyncio.create_task(asyncio.sleep(PATIENCE_S))
            await asyncio.wait((task, ends), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():  # it waits for ever now, and we have seen all its awaits
                reached = False
                client.leave()
            ends.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                reached = await task and reached
        await here.at_rest()
        for name in here.pods:
            here.pod(name).suspect(0.0)
        if not reached:
            return at - 1


async def _has_all(client: Client) -> None:
    for _ in range(EVENTS):
        await client.events.acquire()
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("leaving", [False, True])
async def test_stopped_at_every_await(leaving: bool) -> None:
    """One pod refuses, one dies, one streams: wherever the request is stopped, nothing is left of it anywhere."""
    last = streams_for_ever if leaving else streams
    async with house(says(503), dies, last, **TOKENIZED) as here:
        here.service.proxy = Proxy(watch_after_s=0.0)
        assert await every_await(here, leaving) >= 6
        assert here.pods["pod-2"].posts >= 3


@pytest.mark.parametrize("leaving", [False, True])
async def test_stopped_at_every_await_of_a_wait(leaving: bool) -> None:
    """The same for a request that waits for another to end first."""
    gate = asyncio.Semaphore(0)
    after = streams_for_ever if leaving else streams

    async def behave(call: Call) -> None:
        if b"holds the place" in call.body:
            await gate.acquire()
            await call.send(reply(200))
        else:
            await after(call)

    async with house(behave, gateway={"requests_max": 1}, **TOKENIZED) as here:
        here.service.proxy = Proxy(watch_after_s=0.0)
        queue = here.service.core.queue
        waited: Counter[bool] = Counter()  # whether it came so far

        async def occupied() -> Callable[[asyncio.Task[bool]], Awaitable[None]]:
            first = asyncio.create_task(here.ask({"prompt": "holds the place"}))
            await until(lambda: here.pods["pod-0"].busy == 1)

            async def let_in(task: asyncio.Task[bool]) -> None:
                await until(lambda: task.done() or queue.waiting == 1)
                waited[queue.waiting == 1] += 1
                gate.release()
                assert (await first).status == 200

            return let_in

        assert await every_await(here, leaving, occupied) >= 5
        assert waited[True] >= 3
