"""Two vLLM servers and the gateway in front of them, as an operator would start them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from tests_vllm.install import ROOT, python_of, vllm_venv
from tests_vllm.processes import Process, answers, free_ports, wait_until

MODEL = "tiny-qwen"
BLOCK_SIZE = 32  # on the CPU, vLLM takes multiples of 32 only
BLOCKS = 256  # one of them is vLLM's null block
CONTEXT = 4096
SPECULATIVE = os.environ.get("VLLM_SPECULATIVE", "")
"""vLLM's --speculative-config, if the servers are to have a drafter; or just `eagle3`, for the head made beside the
model."""
DROPPED = 1 if SPECULATIVE and "ngram" not in SPECULATIVE else 0
"""Blocks that this vLLM finds and computes again for its drafter's sake."""

_TOKENIZER = ROOT / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"
_MODEL_TIMEOUT_S = 180
_SERVER_TIMEOUT_S = 400.0  # two at once on two busy cores, right after installing
_GATEWAY_TIMEOUT_S = 30.0
_ASK_TIMEOUT_S = 10.0


def make_model(folder: Path) -> Path:
    """The model's folder, written in vLLM's venv, which has torch."""
    command = [python_of(vllm_venv()), ROOT / "tests_vllm" / "make_model.py", _TOKENIZER, folder]
    made = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=_MODEL_TIMEOUT_S, check=False
    )
    assert made.returncode == 0, made.stderr
    return folder


class VllmServer:
    """One vLLM server on a core of its own; `start` may be called again after `process.kill`. Leave it to stop it."""

    def __init__(self, name: str, number: int, model: Path, logs: Path) -> None:
        self.name = name
        self.port, self._events, self._replay = free_ports(3)
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = logs / f"{name}.log"
        cores = sorted(os.sched_getaffinity(0))
        self._core = cores[number % len(cores)]
        self._model = model
        self.process = self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()

    def start(self) -> Process:
        """Start it; `wait` until it answers."""
        self.process = Process(self._command(), self._settings(), self.log)
        return self.process

    def wait(self) -> float:
        """Seconds until it answered /health; raises if its process ends before."""
        return wait_until(self._up, _SERVER_TIMEOUT_S, f"{self.name} does not answer")

    def reset(self) -> None:
        """Let it forget its prefix cache, as an operator may."""
        answer = httpx.post(f"{self.address}/reset_prefix_cache", timeout=_ASK_TIMEOUT_S, trust_env=False)
        assert answer.is_success, answer.text

    @property
    def flag(self) -> str:
        """The pod as the gateway's command line names it."""
        events, replay = f"tcp://127.0.0.1:{self._events}", f"tcp://127.0.0.1:{self._replay}"
        return f"name={self.name},address={self.address},events={events},replay={replay}"

    def _up(self) -> bool:
        if not self.process.alive:
            raise RuntimeError(f"{self.name} ended:\n{self.process.tail()}")
        return answers(f"{self.address}/health")

    def _settings(self) -> dict[str, str]:
        return _environment() | {
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; --num-gpu-blocks-override takes less of it
            "VLLM_CPU_OMP_THREADS_BIND": str(self._core),
            "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
        }

    def _command(self) -> list[str]:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self._events}",
            "replay_endpoint": f"tcp://*:{self._replay}",
            "topic": f"kv@{self.name}@{MODEL}",
        }
        python = str(python_of(vllm_venv()))
        return [
            python, "-m", "vllm.entrypoints.cli.main", "serve", str(self._model),
            "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port),
            "--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(BLOCKS),
            "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--enforce-eager",
            "--enable-prefix-caching", "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events),
            *(("--speculative-config", self._speculative()) if SPECULATIVE else ()),
        ]  # fmt: skip

    def _speculative(self) -> str:
        head = {"method": "eagle3", "model": str(self._model / "eagle3"), "num_speculative_tokens": 2}
        return json.dumps(head) if SPECULATIVE == "eagle3" else SPECULATIVE


class Gateway:
    """`warmroute serve` with its flags, and its operators' plane as seen from outside. Leave it to stop it."""

    def __init__(
        self, servers: list[VllmServer], tokenizer: Path, logs: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        """`settings`: further ones, as variables without their prefix."""
        (self.port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).with_name("warmroute")), "serve"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += [argument for server in servers for argument in ("--pod", server.flag)]
        command += ["--model", f"name={MODEL},tokenizer={tokenizer}"]
        environment = _environment() | {
            "WARMROUTE_HANDOVER__KEPT_MAX": "0"
        }  # who is drained here is only to be left out
        environment |= {f"WARMROUTE_{name}": value for name, value in (settings or {}).items()}
        self.process = Process(command, environment, logs / f"gateway-{self.port}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()

    def wait(self) -> float:
        """Seconds until it was ready."""
        return wait_until(self._ready, _GATEWAY_TIMEOUT_S, "the gateway is not ready")

    def rank(self, pod: str) -> dict[str, Any]:
        """What /pods says of a pod's only rank."""
        return dict(self._pod(pod)["ranks"][0])

    def fit(self, pod: str) -> bool:
        return bool(self._pod(pod)["fit"])

    def last_decision(self) -> str:
        """What the newest pick was made from, and how old each pod's newest event is, in one line."""
        (newest,) = self._ask("/decisions?limit=1")["decisions"]
        heard = {pod["pod"]: pod["ranks"][0]["events"]["heard_s_ago"] for pod in self._ask("/pods")["pods"]}
        candidates = ", ".join(
            f"{each['pod']} {each['matched_tokens']} ({each['predicted_blocks']} blocks predicted) "
            f"price {each['price']:.3f}, last event {heard[each['pod']]} s ago"
            for each in newest["pods"]
        )
        return f"{newest['tokens']} tokens: {candidates}"

    def missed(self, request_id: str) -> Counter[str]:
        """The tokens of a request that were not cached, by cause."""
        told = self._ask("/decisions?limit=50")["decisions"]
        (entry,) = [each for each in told if each["request_id"] == request_id]
        return sum((Counter({each["cause"]: each["tokens"]}) for each in entry["missed"]), Counter())

    def pieces(self) -> int:
        """How many were computed."""
        text = httpx.get(f"{self.address}/metrics", timeout=_ASK_TIMEOUT_S, trust_env=False).raise_for_status().text
        series = 'warmroute_pieces_total{result="computed"} '
        return int(sum(float(line.removeprefix(series)) for line in text.splitlines() if line.startswith(series)))

    def speeds(self) -> dict[str, int]:
        """Tokens of prefill a second, as learned of each pod."""
        pods = self._ask("/pods")["pods"]
        return {pod["pod"]: round(pod["ranks"][0]["load"]["prefill_tokens_per_s"]) for pod in pods}

    @contextlib.contextmanager
    def only(self, pod: str, pods: Sequence[str]) -> Iterator[None]:
        """Of `pods`, only this one is sent to."""
        others = [other for other in pods if other != pod]
        for other in others:
            self._tell(f"/pods/{other}/drain")
        try:
            yield
        finally:
            for other in others:
                self._tell(f"/pods/{other}/undrain")

    def settle(self, pods: Sequence[str], quiet_s: float = 0.15) -> None:
        """Wait until no pod's feed has moved for a moment: vLLM sends a step's events after the step's answer."""
        seen, since = None, time.monotonic()
        while time.monotonic() - since < quiet_s:
            sequences = [self.rank(pod)["events"]["sequence"] for pod in pods]
            if sequences != seen:
                seen, since = sequences, time.monotonic()
            time.sleep(quiet_s / 5)

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of /score."""
        answer = httpx.post(f"{self.address}/score", json=body, timeout=_ASK_TIMEOUT_S, trust_env=False)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def _pod(self, name: str) -> dict[str, Any]:
        return next(dict(pod) for pod in self._ask("/pods")["pods"] if pod["pod"] == name)

    def _ask(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.address}{path}", timeout=_ASK_TIMEOUT_S, trust_env=False)
        return dict(answer.raise_for_status().json())

    def _tell(self, path: str) -> None:
        httpx.post(f"{self.address}{path}", timeout=_ASK_TIMEOUT_S, trust_env=False).raise_for_status()

    def _ready(self) -> bool:
        if not self.process.alive:
            raise RuntimeError(f"the gateway ended:\n{self.process.tail()}")
        return answers(f"{self.address}/readyz")


def _environment() -> dict[str, str]:
    """Ours without what would change the gateway or vLLM behind our back, and no way to a model hub."""
    prefixes = ("WARMROUTE_", "VLLM_", "PYTHON", "HF_", "OMP_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
