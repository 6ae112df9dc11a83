"""`warmroute check`: a doctor. Asks each pod what the gateway will rely on, and says plainly what is wrong.

It sends no request for tokens: a pod that is idle stays idle, and then its replay is the proof that its feed is right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import zmq

from router.commands.examination import Examination
from router.commands.findings import Findings
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


def check_fleet(config: Config, wait_s: float) -> int:
    """Print a line for all that was looked at; returns how many things are wrong.

    `wait_s`: seconds that each pod has for an event to come.
    """
    config, troubles = _with_pods(config)
    found = _load(config, troubles)
    for line in found.findings.lines:
        click.echo(line)
    pods = asyncio.run(_check_pods(config, found, wait_s))
    wrong = found.findings.wrong_count + sum(findings.wrong_count for findings in pods)
    served = set[str]().union(*(findings.served for findings in pods))
    if len({frozenset(findings.served) for findings in pods if findings.served}) > 1 and not config.models:
        click.echo(
            f"  fleet: its pods serve different models: {', '.join(sorted(served))}; each gets requests for its own."
        )
    for model in config.models:
        if served and not served & {model.name, *model.aliases}:
            click.echo(f"✗ {model.name}: {_MISSING}.")
            wrong += 1
    click.echo("Nothing is wrong." if not wrong else f"Wrong: {wrong}.")
    return wrong


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
        findings.wrong("there are no pods: neither in it nor where it says that there are some.")
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


async def _check_pods(config: Config, found: _Loaded, wait_s: float) -> list[Findings]:
    """All pods, some at a time; each one's lines are printed as soon as those before it are."""
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
            for line in findings.lines:
                click.echo(line)
        return done
    finally:
        if isinstance(bound, BoundEndpoint):
            bound.stop()
        context.destroy(linger=0)
