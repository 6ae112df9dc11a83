"""The sources of pods that a configuration names."""

from __future__ import annotations

import asyncio

from router.config.fleet import DiscoveryConfig, StaticPod
from router.discovery.dns import DnsSource
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
        sources.append(DnsSource(given.dns))
    if given.kubernetes is not None:
        sources.append(KubernetesSource(given.kubernetes, api_of(given.kubernetes)))
    return sources


def by_hand(given: DiscoveryConfig) -> list[Change]:
    """What the list in the configuration says."""
    return [FoundPod(pod.name, pod) for pod in given.static]


async def pods_now(given: DiscoveryConfig, timeout_s: float) -> list[StaticPod]:
    """All pods that are known at first, each once; sources that do not tell within `timeout_s` are left out."""
    roster = Roster()
    steps = roster.apply(STATIC, by_hand(given))
    for source in sources_of(given):
        changes = source.changes()
        try:
            async with asyncio.timeout(timeout_s):
                steps += roster.apply(source.name, await anext(changes))
        except TimeoutError:
            continue
        finally:
            await changes.aclose()
    return [step.found.pod for step in steps if isinstance(step, Joins)]
