"""The sources of pods that a configuration names."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from router.config.fleet import DiscoveryConfig, StaticPod
from router.discovery.file import FileSource
from router.discovery.found import Change, FoundPod, Joins, PodSource, Roster
from router.discovery.kubernetes import KubernetesSource
from router.discovery.kubernetes_api import api_of

STATIC = "static"


def sources_of(given: DiscoveryConfig) -> list[PodSource]:
    """All but the list by hand. Raises `ConfigError` where one can't be used at all."""
    sources: list[PodSource] = []
    if given.file is not None:
        sources.append(FileSource(given.file.path, given.file.interval))
    if given.dns is not None:
        from router.discovery.dns import DnsSource  # only who has a name needs a resolver

        sources.append(DnsSource(given.dns))
    if given.kubernetes is not None:
        sources.append(KubernetesSource(given.kubernetes, api_of(given.kubernetes)))
    return sources


def by_hand(given: DiscoveryConfig) -> list[Change]:
    """What the list in the configuration says."""
    return [FoundPod(pod.name, pod) for pod in given.static]


class Told(NamedTuple):
    """What all sources tell at first: each pod once, and in words what is wrong with them."""

    pods: list[StaticPod]
    troubles: list[str]


async def told_now(given: DiscoveryConfig, timeout_s: float) -> Told:
    """Ask all sources once; those that do not tell within `timeout_s` are left out."""
    roster, troubles = Roster(), []
    steps = roster.apply(STATIC, by_hand(given))
    for source in sources_of(given):
        changes, trouble = source.changes(), None
        try:
            async with asyncio.timeout(timeout_s):
                steps += roster.apply(source.name, await anext(changes))
            trouble = source.trouble
        except TimeoutError:
            trouble = source.trouble or f"nothing was told within {timeout_s:g} s"
        finally:
            await changes.aclose()
        if trouble is not None:
            troubles.append(f"discovery.{source.name}: {trouble}")
    joins = [step for step in steps if isinstance(step, Joins)]
    troubles += [
        f"two pods are called {j.called}: one is {j.found.pod.name}" for j in joins if j.called != j.found.pod.name
    ]
    return Told([join.found.pod for join in joins], troubles)
