"""Prompts that are bad, huge or made to harm: 400 where pods would refuse too, else routed by load with the reason."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.blocks import KeySpace
from router.config.settings import Config
from router.core.decision import Core
from router.errors import ConfigError
from router.service import core_settings
from router.tokens.encoder import Encoder
from tests.fakes.hostile import TINY_QWEN
from tests.fakes.peers import peer
from tests.fakes.probes import Anything
from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods
from tests.fakes.services import in_process

TEMPLATES = {
    "raises": "{{ raise_exception('no system messages, please') }}",
    "divides": "{{ 1 // 0 }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "counts": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "grows": "{% for i in range(99999) %}{{ messages | string * 1000 }}{% endfor %}",
    "repeats": "{{ 'x' * 10 ** 12 }}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "escapes": "{{ messages.__class__.__mro__ }}",
    "is empty": "",
}
SLOW_S = 10.0  # far above what anything here takes, and far below what an unbounded template would


def model_with(folder: Path, template: str) -> str:
    """A model's folder with this chat template."""
    shutil.copytree(TINY_QWEN, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


async def test_templates_of_all_kinds(tmp_path: Path) -> None:
    """A template that raises, loops, grows or reaches out costs a moment: the request is served, the reason is said."""
    models = [
        {"name": name, "tokenizer": model_with(tmp_path / name, template)} for name, template in TEMPLATES.items()
    ]
    async with peer(Anything(TEMPLATES)) as seen:
        static = [{"name": "pod-0", "address": seen.address}]
        async with in_process({"discovery": {"static": static}, "models": models}) as (service, client):
            for name in TEMPLATES:
                began = time.monotonic()
                body = {"model": name, "messages": [{"role": "user", "content": "x" * 1000}]}
                answer = await client.post("/v1/chat/completions", json=body)
                assert (answer.status_code, answer.json()) == (200, {"ok": True}), name
                assert answer.headers["x-warmroute-matched-tokens"] == "0"
                assert time.monotonic() - began < SLOW_S, name
                decision = service.core.decisions[-1]
                if name == "is empty":
                    assert not decision.demand.reason and decision.demand.keys
                else:
                    assert decision.reason.startswith("not rendered: "), name
                    assert decision.demand.tokens > 0


async def test_pods_that_do_not_tokenize() -> None:
    """All pods' /tokenize hang: after the deadline requests are routed by load, and the reason is said."""
    async with peer(Anything(TEMPLATES)) as first, peer(Anything(TEMPLATES)) as second:
        static = [{"name": f"pod-{n}", "address": seen.address} for n, seen in enumerate((first, second))]
        tokens = {"deadline": 0.3, "hedge_delay": 0.05}
        async with in_process({"discovery": {"static": static}, "tokens": tokens}) as (service, client):
            for number in range(2):
                body = {"model": "raises", "prompt": f"{number} of a model that nobody configured"}
                answer = await client.post("/v1/completions", json=body)
                assert answer.json() == {"ok": True}
                assert service.core.decisions[-1].reason == "not tokenized: the pods' /tokenize is too slow"
            ids = {"model": "raises", "prompt": list(range(100))}
            for expected in ("0", "96"):
                answer = await client.post("/v1/completions", json=ids)
                assert answer.headers["x-warmroute-matched-tokens"] == expected
            assert b'warmroute_tokenizer_questions_total{result="slow"} 2\n' in service.metrics.text()


async def test_what_is_recalled_without_tokens() -> None:
    """A body of which nobody makes tokens means the same again, until the fleet changes; not where pods were asked."""
    async with peer(Anything(TEMPLATES)) as seen:
        static = [{"name": "pod-0", "address": seen.address}]
        tokens = {"deadline": 0.3, "hedge_delay": 0.05}
        async with in_process({"discovery": {"static": static}, "tokens": tokens}) as (service, client):
            for path, given, lasts in (
                ("/v1/embeddings", {"model": "raises", "input": "of no prompt " * 20}, True),
                ("/v1/completions", {"model": "raises", "prompt": "that the pod is asked about " * 20}, False),
                ("/v1/embeddings", {"model": "nobody's", "input": "of no prompt " * 20}, False),
            ):
                body = json.dumps(given).encode()
                await client.post(path, content=body)
                known = service.encoder.recalled(path, body)
                assert (known is not None) is lasts, path
                if known is not None:
                    assert known.demand is service.core.decisions[-1].demand and known.demand.text is not None
                    service.core.fleet.changed()
                    assert service.encoder.recalled(path, body) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{% if %}", '{"version": "1.0"}', "\udcff"])
def test_broken_files(file: str, content: str, tmp_path: Path) -> None:
    """What can't be used stops the start, naming the file; what an optional file lacks does not."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_QWEN, folder)
    (folder / file).write_bytes(content.encode(errors="surrogateescape"))
    fine = (file == "chat_template.jinja" and content not in ("{% if %}", "\udcff")) or (
        file == "tokenizer_config.json" and content == '{"version": "1.0"}'
    )
    config = Config.model_validate({"models": [{"name": "m", "tokenizer": str(folder)}]})
    space = KeySpace(1)
    if fine:
        Encoder(config, Core(core_settings(config), space), space, {}).close()
        return
    with pytest.raises(ConfigError) as caught:
        Encoder(config, Core(core_settings(config), space), space, {})
    assert str(folder / file) in caught.value.message and "\n" not in caught.value.message


# --- with processes: a real pod says what it refuses


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """A pod whose tokenizer is ours, and one whose model nobody configured."""
    with pods(PodProcess("ours"), PodProcess("theirs", ("--served-model-name", "other"))) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway in front of both; 0.3 s for tokens, and a minute for reading."""
    tokens = {"deadline": 0.3, "reading_max": 60}
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured for pod in fleet], tokens=tokens) as served:
        yield served


def nested(depth: int) -> bytes:
    """JSON of lists in lists."""
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("model", [MODEL, "other"])
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("completions", b'{"prompt": [-1]}', 400),
        ("completions", b'{"prompt": [4294967296]}', 400),
        ("completions", b'{"prompt": [4294967295, 7]}', 400),
        ("completions", b'{"prompt": [1000000, 7]}', 400),
        ("completions", b'{"prompt": [1.5]}', 400),
        ("completions", b'{"prompt": "lone \\ud800 surrogate"}', 400),
        ("completions", b'{"prompt": "\\u0000 \\ufffe"}', 200),
        ("completions", b'{"prompt": "cut', 400),
        ("completions", b'{"prompt": "\xff"}', 400),
        ("completions", b'{"prompt": ' + nested(100_000) + b"}", 400),
        ("completions", b'{"prompt": "x", "logit_bias": ' + nested(1010) + b"}", 200),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "\\udfff"}]}', 400),
        ("chat/completions", b'{"messages": [{"role": "user", "content": ' + nested(1010) + b"}]}", None),
        (
            "chat/completions",
            b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": ' + nested(1010) + b"}}",
            200,
        ),
        (
            "chat/completions",
            b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": '
            b'{"name": "f", "parameters": {"a": ' + nested(1010) + b"}}}]}",
            None,
        ),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_bad_bodies(served: GatewayProcess, path: str, body: bytes, status: int | None, model: str) -> None:
    """The status is the pod's own (None: whatever it says), and the gateway goes on."""
    whole = body.replace(b"{", b'{"model": "%b", "max_tokens": 1, ' % model.encode(), 1)
    with httpx.Client(base_url=served.url, **PLAIN) as client:
        answer = client.post(f"/v1/{path}", content=whole, headers={"content-type": "application/json"})
        assert answer.status_code == status or (status is None and answer.status_code in (200, 400, 500)), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["message"]
        fine = {"model": model, "prompt": "still there", "max_tokens": 1}
        assert client.post("/v1/completions", json=fine).is_success


@pytest.mark.parametrize("model", [MODEL, "other"])
@pytest.mark.parametrize("kind", ["text", "chat", "blanks", "one word"])
def test_ten_megabytes(served: GatewayProcess, model: str, kind: str) -> None:
    """Longer than any context: nobody tokenizes it, and the gateway goes on."""
    texts = {"blanks": " " * 10_000_000, "one word": "a" * 10_000_000}
    text = texts.get(kind, "ten megabytes of words, ") * (1 if kind in texts else 420_000)
    body: dict[str, Any] = {"model": model, "max_tokens": 1}
    if kind == "chat":
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    with httpx.Client(base_url=served.url, **PLAIN) as client:
        scored = client.post("/score", content=json.dumps(body))
        assert scored.status_code == 200
        reasons = {"other": "not tokenized: too long to ask a pod", MODEL: "not tokenized: too long for any context"}
        assert scored.json()["reason"] == reasons[model] or kind == "chat"
        assert scored.json()["reason"].startswith("not ")
        assert client.get("/healthz").is_success


def test_as_long_as_it_may_be(served: GatewayProcess) -> None:
    """One word of 6 MB takes a thread longer than the deadline: the loop goes on, and so does the next request."""
    with httpx.Client(base_url=served.url, **PLAIN) as client:
        scored = client.post("/score", json={"model": MODEL, "prompt": "a" * 6_000_000})
        assert scored.json()["reason"] == "not tokenized: deadline"
        assert client.get("/healthz").is_success
        assert client.post("/score", json={"model": MODEL, "prompt": "a short one"}).json()["tokens"] > 1
