"""The pod's HTTP surface: OpenAI's endpoints as vLLM serves them, and the test's own under /simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from simulator.answer import Answer
from simulator.asgi import BodyTooLarge, Exchange, Receive, Scope, Send
from simulator.ask import Ask, Body, Refused, chat_tokens, parse, parse_json, text_tokens
from simulator.engine import Engine, Rest
from simulator.events import Origin
from simulator.faults import change
from simulator.generate import generate
from simulator.messages import Message, as_chat, error_body
from simulator.metrics import exposition
from simulator.pod import Pod

INLINE_BYTES_MAX = 4_096
"""A larger body is tokenized in a thread: the engine's steps must not wait for it."""
Handler = Callable[[Exchange], Awaitable[None]]


class Api:
    """The ASGI application of one pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/chat/completions/render"): self._render_chat,
            ("POST", "/v1/completions/render"): self._render_text,
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/load"): self._load,
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/kv_event_sources"): self._sources,
            ("POST", "/reset_prefix_cache"): self._reset,
            **(self._development() if pod.development else {}),
            ("POST", "/simulator/fault"): self._fault,
            ("GET", "/simulator/state"): self._state,
            ("POST", "/simulator/state"): self._state,
        }
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other scopes (lifespan, websocket) are not for us."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        refuse = self._pod.faults.refuse
        if refuse is not None and not exchange.path.startswith("/simulator/"):
            await (exchange.cut() if refuse == "close" else self._error(exchange, Refused(503, "told to refuse")))
            return
        if self._pod.api_keys and exchange.path.startswith("/v1") and not self._has_key(exchange):
            await self._json(exchange, {"error": "Unauthorized"}, 401)
            return
        handler = self._routes.get((exchange.method, exchange.path))
        if handler is None:
            known = exchange.path in self._paths
            detail = {"detail": "Method Not Allowed" if known else "Not Found"}
            await self._json(exchange, detail, 405 if known else 404)
            return
        try:
            await handler(exchange)
        except Refused as refused:
            await self._error(exchange, refused)
        except BodyTooLarge:
            await self._error(exchange, Refused(413, "the request's body is too large"))

    def _has_key(self, exchange: Exchange) -> bool:
        scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in self._pod.api_keys

    def _development(self) -> dict[tuple[str, str], Handler]:
        """What vLLM has in its development mode."""

        def rests(why: Rest | None) -> Handler:
            async def handler(exchange: Exchange) -> None:
                self._pod.rest(why)
                await self._json(exchange, {})

            return handler

        def says(name: str, why: Rest) -> Handler:
            async def handler(exchange: Exchange) -> None:
                await self._json(exchange, {name: any(engine.resting == why for engine in self._pod.engines)})

            return handler

        return {
            ("POST", "/sleep"): rests("asleep"),
            ("POST", "/wake_up"): rests(None),
            ("GET", "/is_sleeping"): says("is_sleeping", "asleep"),
            ("POST", "/pause"): rests("paused"),
            ("POST", "/resume"): rests(None),
            ("GET", "/is_paused"): says("is_paused", "paused"),
        }

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, chat=True)

    async def _completions(self, exchange: Exchange) -> None:
        await self._generate(exchange, chat=False)

    async def _messages(self, exchange: Exchange) -> None:
        try:
            await self._generate(exchange, chat=True, shape=Message)
        except Refused as refused:
            await self._json(exchange, error_body(refused), refused.status)

    async def _generate(self, exchange: Exchange, chat: bool, shape: type[Answer] = Answer) -> None:
        pod = self._pod
        raw = await exchange.body()
        body = parse_json(raw)
        if shape is Message:
            body = as_chat(body)
        ask: Ask = await self._worked(raw, parse, body, chat, pod.model, exchange.headers, pod.faults.tokens)
        engine = pod.engine_for(exchange.headers.get("x-data-parallel-rank"))
        if pod.faults.hang:
            await exchange.gone()
            return
        headers = self._load_report(exchange, engine)
        await generate(ask, pod.model, engine, pod.faults, exchange, headers, shape)

    async def _worked(self, raw: bytes, work: Callable[..., Any], *arguments: Any) -> Any:
        """Tokenizing: here when small, in a thread when large."""
        if len(raw) <= INLINE_BYTES_MAX:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)

    def _load_report(self, exchange: Exchange, engine: Engine) -> dict[str, str]:
        """The load header that a client may ask for (vLLM >= 0.11)."""
        form = exchange.headers.get("endpoint-load-metrics-format", "").lower()
        if form not in ("json", "text") or self._pod.model.version < (0, 11):
            return {}
        scheduler = engine.scheduler
        figures = {
            "num_requests_waiting": float(len(scheduler.waiting)),
            "kv_cache_usage_perc": scheduler.pool.used / scheduler.pool.usable,
        }
        if form == "json":
            return {"endpoint-load-metrics": "JSON " + orjson.dumps({"named_metrics": figures}).decode()}
        pairs = ", ".join(f"named_metrics.{name}={value}" for name, value in figures.items())
        return {"endpoint-load-metrics": "TEXT " + pairs}

    async def _models(self, exchange: Exchange) -> None:
        await self._json(exchange, self._pod.model.cards())

    async def _tokenize(self, exchange: Exchange) -> None:
        model = self._pod.model
        raw = await exchange.body()
        body = parse_json(raw)
        if "messages" in body:
            tokens = await self._worked(raw, chat_tokens, {**body, "documents": None}, model)
        elif isinstance(body.get("prompt"), str):
            tokens = await self._worked(raw, text_tokens, body["prompt"], body, model)
        else:
            raise Refused(400, "1 validation error:\n  prompt or messages is required", "body", "Bad Request")
        spelled = model.vocabulary.spell(tokens) if body.get("return_token_strs") else None
        answer = {
            "count": len(tokens),
            "max_model_len": model.context_tokens_max,
            "tokens": tokens,
            "token_strs": spelled,
        }
        await self._json(exchange, answer)

    async def _render_chat(self, exchange: Exchange) -> None:
        (rendered,) = await self._rendered(exchange, chat=True)
        await self._json(exchange, rendered)

    async def _render_text(self, exchange: Exchange) -> None:
        await self._json(exchange, await self._rendered(exchange, chat=False))

    async def _rendered(self, exchange: Exchange, chat: bool) -> list[dict[str, Any]]:
        """What would be generated from; Refused before 0.15, and from 0.30 on unless it is allowed."""
        pod = self._pod
        if pod.model.version < (0, 15):
            raise Refused(404, "Not Found")
        if pod.model.version >= (0, 30) and not pod.scale_out:
            raise Refused(403, "this endpoint needs --enable-scale-out")
        raw = await exchange.body()
        ask: Ask = await self._worked(raw, parse, parse_json(raw), chat, pod.model, exchange.headers, pod.faults.tokens)
        return [{"request_id": ask.id, "token_ids": ids, "features": None} for ids in ask.prompts]

    async def _detokenize(self, exchange: Exchange) -> None:
        tokens = self._token_ids(parse_json(await exchange.body()), "tokens")
        await self._json(exchange, {"prompt": self._pod.model.vocabulary.decode(tokens, skip_special=False)})

    async def _health(self, exchange: Exchange) -> None:
        await exchange.respond(200, b"", "text/plain", {})

    async def _load(self, exchange: Exchange) -> None:
        await self._json(exchange, {"server_load": 0})

    async def _version(self, exchange: Exchange) -> None:
        await self._json(exchange, {"version": self._pod.model.version_text})

    async def _metrics(self, exchange: Exchange) -> None:
        model = self._pod.model
        text = exposition(self._pod.engines, model.name, model.loras, model.version)
        await exchange.respond(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8", {})

    async def _sources(self, exchange: Exchange) -> None:
        if self._pod.model.version < (0, 31):
            await self._json(exchange, {"detail": "Not Found"}, 404)
            return
        await self._json(exchange, self._pod.event_sources())

    async def _reset(self, exchange: Exchange) -> None:
        external = b"reset_external=true" in exchange.query.lower().split(b"&")
        results = [engine.reset_prefix_cache(external) for engine in self._pod.engines]
        if self._pod.model.version >= (0, 26):
            await self._json(exchange, {"success": all(results)})
        else:
            await exchange.respond(200, b"", "application/json", {})

    async def _fault(self, exchange: Exchange) -> None:
        changes = parse_json(await exchange.body())
        restart = changes.pop("restart", False)
        try:
            faults = change(type(self._pod.faults)() if changes.pop("clear", False) else self._pod.faults, changes)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        self._pod.misbehave(faults)
        if restart:
            self._pod.restart()
        await self._json(exchange, self._pod.state()["faults"])

    async def _state(self, exchange: Exchange) -> None:
        state = self._pod.state()
        if exchange.method == "POST":
            body = parse_json(await exchange.body())
            tokens = self._token_ids(body, "token_ids")
            origin = Origin(self._pod.model.loras.get(str(body.get("lora"))), body.get("salt"))
            for rank, engine in zip(state["ranks"], self._pod.engines, strict=True):
                rank["cached_tokens"] = engine.cached_tokens(tokens, origin)
        await self._json(exchange, state)

    def _token_ids(self, body: Body, name: str) -> list[int]:
        tokens = body.get(name)
        if not isinstance(tokens, list):
            raise Refused(400, f"1 validation error:\n  {name} must be a list", f"body.{name}", "Bad Request")
        return text_tokens(tokens, {}, self._pod.model)

    @staticmethod
    async def _json(exchange: Exchange, body: object, status: int = 200) -> None:
        await exchange.respond(status, orjson.dumps(body), "application/json", {})

    async def _error(self, exchange: Exchange, refused: Refused) -> None:
        await self._json(exchange, refused.body, refused.status)
