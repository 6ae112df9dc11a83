"""The part of the configuration that says when a pod is left alone and when a request has to wait."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from router.config.values import Count, Ratio, Seconds, Section


class BreakerConfig(Section):
    """When a pod is ejected for its failures, and for how long. Never more than half of the pods are."""

    failures_in_row: Count = Field(default=5, ge=1, le=10_000, description="Failures in a row after which it is.")
    failure_share: Ratio = Field(
        default=0.5, gt=0, le=1, description="Share of failures in a window after which it is, 500s included."
    )
    requests_min: Count = Field(default=20, ge=1, le=1_000_000, description="Requests that such a window must have.")
    window: Seconds = Field(default=10.0, gt=0, le=3600, description="A window begins with a failure and is so long.")
    open_time: Seconds = Field(
        default=5.0, gt=0, le=3600, description="The first ejection; each one after it is twice as long."
    )
    open_time_max: Seconds = Field(
        default=60.0, gt=0, le=86400, description="The longest ejection; after so long without one it is short again."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.open_time_max < self.open_time:
            raise ValueError("open_time_max is less than open_time")
        return self


class AdmissionConfig(Section):
    """How much work is taken on. What is over a bound waits, in a short queue that is fair between flows; then 429.

    What its pod can't soon begin with waits, too (`look_ahead`): it is bound late, and costs the pod nothing before.

    A flow is what `x-warmroute-flow` says, else an API key. Lower `x-warmroute-priority` (else the body's `priority`)
    goes first, as in vLLM. Where clients are not to be believed (`claims_believed`), a flow is the API key that was
    shown, or where none is asked for the client's address, and no priority is below `priority_min`, or below what
    stands behind the key (`gateway.api_keys`).
    """

    prefill_tokens_max: Count | None = Field(
        default=None, ge=1, description="Prompt tokens that wait to be computed, over all pods. null: no bound."
    )
    pod_requests_max: Count | None = Field(
        default=None,
        ge=1,
        description="Requests at one pod (at one rank, if it has several). Whoever would be served sooner there than "
        "elsewhere waits for it. null: no bound.",
    )
    pod_prefill_tokens_max: Count | None = Field(
        default=None,
        ge=1,
        description="Prompt tokens that wait at one pod (or rank), likewise. null: no bound.",
    )
    queue_max: Count = Field(default=256, ge=0, le=100_000, description="Requests that wait. 0: 429 at once.")
    flow_queue_max: Count = Field(default=64, ge=1, le=100_000, description="Requests of one flow that wait.")
    wait_max: Seconds = Field(default=5.0, gt=0, le=600, description="A request waits so long at most.")
    look_ahead: Seconds = Field(
        default=0.5,
        ge=0,
        le=60,
        description="A pod that is not idle is promised prefill for so long; what is more waits here, and may still go "
        "elsewhere. Under policies whose prices are seconds. 0: nothing waits.",
    )
    hold_max: Seconds = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="A request waits so long for the pod that is best; then it goes there.",
    )
    claims_believed: bool | None = Field(
        default=None,
        description="Believe flows and priorities that requests claim. null: unless the gateway asks for API keys.",
    )
    priority_min: int = Field(
        default=0, ge=-8, le=7, description="The most urgent priority of a request that is not believed."
    )
