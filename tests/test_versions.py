"""Versions of vLLM beside each other: each pod is asked about the tokens that it makes itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from router.core.cards import Version, version_of
from router.core.fleet import Fleet, Pod
from router.prompts.messages import rules_of
from router.prompts.prompt import Prompt, parse
from router.prompts.rendering import RenderError, Rendering, RenderOptions
from router.prompts.renderings import Renderings
from tests.fakes.processes import BLOCK, MODEL, PLAIN, TOKENIZER, GatewayProcess, PodProcess, eventually, gateway, pods

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
SYSTEM = {"role": "system", "content": "You know all the rules of the house, and some more."}
DEVELOPER = {"role": "developer", "content": "Answer in short sentences, and never in verse; " * 4}
USER = {"role": "user", "content": "What are the rules for a long evening with friends? " * 8}


def renderings(folder: Path, template: str = TEMPLATE, version: Version | None = None) -> Renderings:
    """Of a folder made for it."""
    (folder / "chat_template.jinja").write_text(template)
    return Renderings(folder, RenderOptions(vllm_version=version))


def prompt_of(*messages: dict[str, Any], **fields: Any) -> Prompt:
    """A chat."""
    return parse("/v1/chat/completions", orjson.dumps({"model": "m", "messages": messages, **fields}))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("0.32.0", (0, 32)),
        ("v0.11.2.post2", (0, 11)),
        ("1.0.0rc1+g123", (1, 0)),
        ("0.1.dev1+g123", None),
        ("latest", None),
        (None, None),
        (["0.32"], None),
        (5, None),
        ("9" * 5000 + ".1", None),
    ],
)
def test_versions_as_told(told: object, expected: Version | None) -> None:
    """Major and minor; what says none is taken for the newest."""
    assert version_of(told) == expected
    assert rules_of((1, 0)) == rules_of(None)


def test_equal_rules_are_one_renderer(tmp_path: Path) -> None:
    """Versions between which nothing changed share it; a configured version is that of all."""
    made = renderings(tmp_path)
    assert made.of("0.33.0") is made.of(None) is made.of("0.99.1") is made.of("no version") is made.renderer
    assert made.of("0.31.0") is made.of("0.31.2.post1") is not made.renderer
    assert made.of("0.24.1") is made.of("0.25.0") is not made.of("0.26.0")
    fixed = renderings(tmp_path, version=(0, 20))
    assert fixed.of("0.33.0") is fixed.of(None) is fixed.renderer
    assert fixed.renderer.rules == rules_of((0, 20))


def test_one_text_where_all_write_the_same(tmp_path: Path) -> None:
    """Versions are told apart by what they write of this prompt, not by their rules."""
    made = renderings(tmp_path)
    versions = ("0.20.2", "0.22.1", "0.32.0", None)
    assert made.render(prompt_of(USER), versions) == (Rendering(f"<user>{USER['content']}", False), {})
    written = made.render(prompt_of(DEVELOPER, USER), versions)
    old, new = (f"<{role}>{DEVELOPER['content']}<user>{USER['content']}" for role in ("developer", "system"))
    assert written == (Rendering(old, False), {"0.32.0": Rendering(new, False), None: Rendering(new, False)})


def test_what_some_versions_refuse(tmp_path: Path) -> None:
    """The others' text is the prompt's; where all refuse, so do we."""
    made = renderings(tmp_path, "{{ raise_exception('no') if messages[0].role != 'system' }}{{ messages[0].role }}")
    written = made.render(prompt_of(DEVELOPER), ("0.22.1", "0.32.0"))
    assert written.rendering.text == "system"
    assert [(version, str(error)) for version, error in written.others.items()] == [("0.22.1", "the chat template: no")]
    with pytest.raises(RenderError, match="no"):
        made.render(prompt_of(USER), ("0.22.1", "0.32.0"))


@pytest.mark.parametrize("said", [["0.32"], 5, None, {}, "0.32\nERROR", "x" * 65, "", "0.32 beta"])
def test_an_odd_version_is_none(said: object) -> None:
    """Whatever a pod says of itself: it goes neither into logs nor into look-ups."""
    fleet, pod = Fleet(), Pod("pod-0", "http://127.0.0.1:1")
    fleet.join(pod)
    fleet.learned_version(pod, "0.20.0")
    epoch = fleet.epoch
    fleet.learned_version(pod, "0.20.0")
    assert (fleet.epoch, pod.version, pod.hides_zero) == (epoch, "0.20.0", True)
    fleet.learned_version(pod, said)
    assert (fleet.epoch, pod.version) == (epoch + 1, None)


SOURCES = {
    "tokenized here": (("0.22.1",), ("0.32.0",), str(TOKENIZER)),
    "both render": (("0.22.1",), ("0.32.0", "--enable-scale-out"), "pod"),
    "one renders": (("0.22.1",), ("0.32.0",), "pod"),
    "the newer one renders": (("0.14.0",), ("0.32.0", "--enable-scale-out"), "pod"),
    "both tokenize": (("0.14.0",), ("0.32.0",), "pod"),
}
"""How two pods are started, and who makes the tokens."""


@pytest.mark.parametrize("source", SOURCES)
async def test_each_pod_by_its_own_tokens(tmp_path: Path, source: str) -> None:
    """In a rolling upgrade the same chat has other tokens in each pod: what is said of each is what it then reports."""
    *starts, tokenizer = SOURCES[source]
    fleet = [PodProcess(f"pod-{v}", ("--vllm-version", v, *more)) for v, *more in starts]
    models = [{"name": MODEL, "tokenizer": tokenizer}]
    body = {"model": MODEL, "messages": [SYSTEM, DEVELOPER, USER], "max_tokens": 1}
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet], models=models) as served:
        async with httpx.AsyncClient(**PLAIN) as http:
            cached = {pod.name: await _cached_by(http, pod.address, body) for pod in fleet}
            assert min(cached.values()) >= BLOCK
            assert len(set(cached.values())) == 2
            await eventually(lambda: _matched(served, body) == cached)
            for _ in range(8):
                answer = await http.post(f"{served.url}/v1/chat/completions", json=body)
                usage = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert usage == cached[answer.headers["x-warmroute-pod"]]
                assert answer.headers["x-warmroute-matched-tokens"] == str(usage)
        assert {rank["state"] for ranks in served.ranks().values() for rank in ranks} == {"exact"}


@pytest.mark.parametrize("tokenizer", [str(TOKENIZER), "pod"])
async def test_a_pod_that_comes_back_as_another_version(tmp_path: Path, tokenizer: str) -> None:
    """It writes prompts differently now, and its /render is gone: what was told before is of no use."""
    pod = PodProcess("pod-0", ("--vllm-version", "0.22.1"))
    models = [{"name": MODEL, "tokenizer": tokenizer}]
    chats: list[dict[str, Any]] = [
        {"model": MODEL, "messages": [SYSTEM, DEVELOPER, {"role": "user", "content": f"{n}: {USER['content']}"}]}
        for n in range(2)
    ]
    with pods(pod), gateway(tmp_path, [pod.configured], models=models) as served:
        async with httpx.AsyncClient(**PLAIN) as http:
            before = [await _right_in_the_end(http, served, body) for body in chats]
            pod.kill()
            pod.options = ("--vllm-version", "0.32.0")
            pod.start()
            await asyncio.to_thread(pod.wait)
            await eventually(lambda: served.get("/pods").json()["pods"][0]["version"] == "0.32.0")
            after = [await _right_in_the_end(http, served, body) for body in chats]
            assert before != after


async def _right_in_the_end(http: httpx.AsyncClient, served: GatewayProcess, body: dict[str, Any]) -> int:
    """Ask until what is promised is what the pod then reports to have cached, and more than nothing."""
    for _ in range(100):
        answer = await http.post(f"{served.url}/v1/chat/completions", json={**body, "max_tokens": 1})
        if answer.is_success:
            details = answer.json()["usage"]["prompt_tokens_details"] or {}  # 0 is not told up to 0.23
            cached = int(details.get("cached_tokens", 0))
            if cached and answer.headers["x-warmroute-matched-tokens"] == str(cached):
                return cached
        await asyncio.sleep(0.1)
    raise AssertionError("what is promised is never right")


async def _cached_by(http: httpx.AsyncClient, address: str, body: dict[str, Any]) -> int:
    """The tokens that the pod has in its cache after it was asked once."""
    answers = [(await http.post(f"{address}/v1/chat/completions", json=body)).json() for _ in range(2)]
    return int(answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"])


def _matched(served: GatewayProcess, body: dict[str, Any]) -> dict[str, int]:
    asked = {name: body[name] for name in ("model", "messages")}
    answer = httpx.post(f"{served.url}/score", json=asked, **PLAIN).json()
    assert "pods" in answer, answer
    return {entry["pod"]: entry["matched_tokens"] for entry in answer["pods"]}
