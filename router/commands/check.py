"""`warmroute check`: a doctor. Asks each pod what the gateway will rely on, and says plainly what is wrong.

It sends no request for tokens: a pod that is idle stays idle, and then its replay is the proof that its feed is right.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import orjson
import zmq

from router.commands.examination import Examination
from router.commands.findings import Finding, Findings
from router.commands.token_examination import Local
from router.config.fleet import ASK_THE_PODS, StaticPod
from router.config.settings import Config
from router.discovery.pods import bound_endpoint
from router.discovery.sources import told_now
from router.errors import ConfigError
from router.events.bound_endpoint import BoundEndpoint
from router.prompts.renderings import renderings_of
from router.tokens.tokenizer import Tokenizer
from router.upstream.certificates import Certificates
from router.upstream.pool import Tls

_DISCOVERY_S = 10.0  # for what a source of pods tells at first
_PODS_AT_ONCE = 16
_MISSING = "is served by none of the pods"


def check_fleet(config: Config, wait_s: float, as_json: bool) -> int:
    """Print a line for all that was looked at, or all as JSON; returns how many things are wrong.

    `wait_s`: seconds that each pod has for an event to come.
    """
    found: list[Finding] = []

    def tell(one: Finding) -> None:
        found.append(one)
        if not as_json:
            click.echo(one.line)

    _check(config, wait_s, tell)
    wrong = sum(one.fine is False for one in found)
    if as_json:
        click.echo(orjson.dumps({"wrong": wrong, "findings": [one._asdict() for one in found]}))
    else:
        click.echo("Nothing is wrong." if not wrong else f"Wrong: {wrong}.")
    return wrong


def _check(config: Config, wait_s: float, tell: Callable[[Finding], None]) -> None:
    config, troubles = _with_pods(config)
    found = _load(config, troubles)
    for one in found.findings.all:
        tell(one)
    pods = asyncio.run(_check_pods(config, found, wait_s, tell))
    served = set[str]().union(*(findings.served for findings in pods))
    if len({frozenset(findings.served) for findings in pods if findings.served}) > 1 and not config.models:
        names = ", ".join(sorted(served))
        tell(Finding("fleet", None, f"its pods serve different models: {names}; each gets requests for its own."))
    for model in config.models:
        if served and not served & {model.name, *model.aliases}:
            near = difflib.get_close_matches(model.name, served, n=1)
            tell(Finding(model.name, False, f"{_MISSING}{f' (is it {near[0]}?)' if near else ''}."))


class _Loaded(NamedTuple):
    local: list[Local]
    tls: dict[str, Tls | None]  # by pod; those whose files can't be used are left out
    findings: Findings


def _with_pods(config: Config) -> tuple[Config, list[str]]:
    """The configuration as if all pods that its sources know now had been given by hand; and what is wrong with these.

    Raises `ConfigError`.
    """
    told = asyncio.run(told_now(config.discovery, _DISCOVERY_S))
    discovery = config.discovery.model_copy(update={"static": tuple(told.pods)})
    return config.model_copy(update={"discovery": discovery}), told.troubles


def _load(config: Config, troubles: Sequence[str]) -> _Loaded:
    """The files that are named: what start-up would refuse is said in the same words. `troubles`: of sources."""
    findings, local, tls, trusts = Findings("configuration"), [], {}, Certificates(config.upstream)
    for trouble in troubles:
        findings.wrong(f"{trouble}.")
    if not config.discovery.static:
        findings.wrong(
            "there are no pods: neither in it nor where it says that there are some "
            "(--pod name=pod-0,address=http://…, or discovery in --config FILE)."
        )
    for model in config.models:
        if model.tokenizer == ASK_THE_PODS:
            continue
        try:
            local.append(Local(model, renderings_of(model), Tokenizer(Path(model.tokenizer))))
        except ConfigError as error:
            findings.wrong(error.message)
    for pod in config.discovery.static:
        try:
            tls[pod.name] = trusts.of(pod)
        except ConfigError as error:
            findings.wrong(error.message)
    return _Loaded(local, tls, findings)


async def _check_pods(config: Config, found: _Loaded, wait_s: float, tell: Callable[[Finding], None]) -> list[Findings]:
    """All pods, some at a time; what was found of each is told as soon as that of those before it is."""
    room = asyncio.Semaphore(_PODS_AT_ONCE)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bound: BoundEndpoint | str | None
    try:
        bound = bound_endpoint(context, config, time.monotonic)
    except ConfigError as error:
        bound = error.message

    async def one(pod: StaticPod) -> Findings:
        async with room:
            return await Examination(config, pod, found.local, found.tls[pod.name], context, bound, wait_s).run()

    try:
        if isinstance(bound, BoundEndpoint):
            bound.start()
        tasks = [asyncio.create_task(one(pod)) for pod in config.discovery.static if pod.name in found.tls]
        done = []
        for task in tasks:
            findings = await task
            done.append(findings)
            for each in findings.all:
                tell(each)
        return done
    finally:
        if isinstance(bound, BoundEndpoint):
            bound.stop()
        context.destroy(linger=0)
