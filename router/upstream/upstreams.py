"""All pods as places to send to: made as they join, retired as they leave."""

from __future__ import annotations

from router.config.fleet import StaticPod
from router.config.settings import Config
from router.upstream.certificates import Certificates
from router.upstream.pod_client import PodClient
from router.upstream.pod_keys import Keyring
from router.upstream.pool import Upstream, UpstreamLimits


class Upstreams(dict[str, Upstream]):
    """By the pod's name. What is on its way to a pod that has left may end."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._limits = UpstreamLimits.of(config.upstream)
        self._trusts = Certificates(config.upstream)
        self._keyring = Keyring(config.pods)
        self._probe_timeout_s = config.probe.timeout
        self._retired: list[Upstream] = []

    def add(self, pod: StaticPod) -> None:
        """A pod is there. Raises `ConfigError` where its certificates can't be used."""
        self[pod.name] = Upstream(pod.address, self._limits, self._trusts.of(pod), self._keyring.of(pod))

    def client(self, pod: StaticPod) -> PodClient:
        """For what is asked of it beside requests."""
        return PodClient(pod.address, self._probe_timeout_s, self._trusts.of(pod), self._keyring.of(pod))

    def is_verified(self, pod: StaticPod) -> bool:
        """Its certificate is checked, if it shows one."""
        tls = self._trusts.of(pod)
        return tls is None or tls.verified

    def retire(self, name: str) -> None:
        """A pod has left: nothing new goes there."""
        upstream = self.pop(name)
        upstream.retire()
        self._retired = [each for each in self._retired if each.connections] + [upstream]

    async def aclose(self) -> None:
        for upstream in (*self.values(), *self._retired):
            await upstream.aclose()
