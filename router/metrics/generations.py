"""Answers of models by OpenTelemetry's names for generative AI (semantic conventions, as Prometheus writes them)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from router.metrics.families import OTHER, Steps, histograms
from router.metrics.histograms import Histogram

_OPERATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))
_OPERATIONS = {
    "/v1/chat/completions": "chat", "/v1/messages": "chat", "/v1/responses": "chat",
    "/v1/completions": "text_completion", "/v1/embeddings": "embeddings",
}  # fmt: skip
_FROM_START = 8
_MODELS_MAX = 256  # of which series are kept; further ones count as `other`


class Generation:
    """Answers of one operation by one model."""

    __slots__ = ("durations", "first_tokens", "input_tokens", "output_s", "output_tokens")

    def __init__(self) -> None:
        self.durations = Histogram(_OPERATION_S)
        self.first_tokens = Histogram(_FIRST_TOKEN_S)
        self.output_s = Histogram(_OUTPUT_TOKEN_S)
        self.input_tokens = Histogram(_TOKENS)
        self.output_tokens = Histogram(_TOKENS)


class Generations:
    """All of them. Models are those that pods serve."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Generation] = {}

    @property
    def models(self) -> set[str]:
        """Those that series speak of."""
        return {model for _, model in self._known}

    def of(self, path: str, model: str | None) -> Generation | None:
        """Those of one path; None where no model computes anything."""
        operation = _OPERATIONS.get(path)
        if operation is None or model is None:
            return None
        known = self._known.get((operation, model))
        if known is None:
            if len(self._known) >= _MODELS_MAX:
                model = OTHER
            known = self._known.setdefault((operation, model), Generation())
        return known

    def end(self, models: set[str]) -> None:
        """No series speak of these models any more."""
        for key in [key for key in self._known if key[1] in models]:
            del self._known[key]

    def collect(self, models: Iterable[str]) -> Steps:
        """Their families. `models`: those that are served; chats with a few of them are there from the start."""
        for model in islice(models, _FROM_START):
            self.of("/v1/chat/completions", model)
        each = [
            ({"gen_ai_operation_name": operation, "gen_ai_provider_name": "vllm", "gen_ai_request_model": model}, known)
            for (operation, model), known in self._known.items()
        ]
        text = "From a request to the end of its answer, by operation and model."
        yield histograms("gen_ai_server_request_duration_seconds", text, [(one, of.durations) for one, of in each])
        yield None
        text = "From a request to the first token of its stream."
        yield histograms(
            "gen_ai_server_time_to_first_token_seconds", text, [(one, of.first_tokens) for one, of in each]
        )
        yield None
        text = "Of a stream, from the first token to the end, by each further token."
        yield histograms("gen_ai_server_time_per_output_token_seconds", text, [(one, of.output_s) for one, of in each])
        yield None
        usage = [
            ({**one, "gen_ai_token_type": kind}, tokens)
            for one, of in each
            for kind, tokens in (("input", of.input_tokens), ("output", of.output_tokens))
        ]
        yield histograms("gen_ai_client_token_usage", "Tokens of prompts and answers, as pods tell.", usage)
        yield None
