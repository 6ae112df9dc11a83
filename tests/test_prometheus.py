"""A real Prometheus scrapes the gateway before simulated pods: what it keeps, and what it answers to the dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, end, eventually, free_ports, gateway, pods

FILES = Path(__file__).parents[1] / "charts" / "warmroute" / "files"
STOP_S = 20

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus")


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **query: str) -> Any:
        """The data of a good answer of its API; None while it does not answer."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self._url}/api/v1/{path}", params=query, **PLAIN)
            if answer.status_code != 503:
                assert answer.json()["status"] == "success", answer.text
                return answer.json()["data"]
        return None

    def ask(self, expression: str) -> list[float]:
        """The values of a query, now."""
        data = self.get("query", query=expression)
        return [float(each["value"][1]) for each in data["result"]] if data else []


@contextlib.contextmanager
def prometheus(folder: Path, served: GatewayProcess) -> Iterator[Prometheus]:
    """It scrapes the gateway every second, with the chart's alerts."""
    target = {"job_name": "warmroute", "static_configs": [{"targets": [served.ops_url.removeprefix("http://")]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [target],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports()[0]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://{address}")
    finally:
        end(process, STOP_S)


def chats(served: GatewayProcess, count: int) -> None:
    """The same prompt again and again, as a stream: all but the first are cached."""
    prompt = [7 * place % 5000 + 200 for place in range(400)]
    for _ in range(count):
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "stream": True}
        httpx.post(f"{served.url}/v1/completions", json=body, **PLAIN).raise_for_status()


async def test_it_scrapes_and_answers_the_dashboard(tmp_path: Path) -> None:
    """It takes the text as it is; counts that begin are seen as rates; every panel and every rule can be evaluated."""
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    with (
        pods(*fleet),
        gateway(tmp_path, [pod.configured for pod in fleet]) as served,
        prometheus(tmp_path, served) as seen,
    ):
        await eventually(lambda: seen.ask("up") == [1.0], 60)
        await eventually(lambda: len(seen.ask("count_over_time(warmroute_cache_hit_ratio[1m]) > 1")) == 1, 60)
        await asyncio.to_thread(chats, served, 12)
        rate = 'sum(increase(warmroute_requests_total{code="200"}[1m])) > 6'
        await eventually(lambda: len(seen.ask(rate)) == 1, 60)
        assert await eventually(lambda: seen.ask('warmroute_pod_up{pod="pod-0"}')) == [1.0]
        await eventually(lambda: seen.ask("gen_ai_server_time_to_first_token_seconds_count > 0"), 60)
        (rules,) = (group["rules"] for group in seen.get("rules")["groups"])
        assert len(rules) > 15 and {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
        panels = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))["panels"]
        expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
        filled = [each.replace("$__rate_interval", "1m").replace("$job", "warmroute") for each in expressions]
        told = [bool(seen.ask(expression)) for expression in filled]
        assert sum(told) > 0.7 * len(told), [each for each, fine in zip(filled, told, strict=True) if not fine]
        assert not seen.ask('scrape_samples_scraped{job="warmroute"} < 300')
