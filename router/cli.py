"""The `warmroute` command. Heavy parts are imported by the command that needs them: `--help` is quick."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from router.commands.plain import OneOf, Plain
from router.workers.own_python import command_of, environment_of_ours

if TYPE_CHECKING:
    from router.config.settings import Config

_URL = "http://127.0.0.1:8080"


@click.group(name="warmroute", cls=Plain, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmroute")
def main() -> None:
    """A KV-cache-aware router in front of a fleet of vLLM pods.

    \b
    Example: warmroute demo
    """


@main.command()
@click.option("--config", "path", envvar="WARMROUTE_CONFIG", help="YAML or JSON file; also as WARMROUTE_CONFIG.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port of the data plane.")
@click.option("--ops-port", type=int, help="Port of the operators' endpoints.")
@click.option("--pod", "pods", multiple=True, help="name=…,address=http://…[,events=tcp://…,replay=tcp://…].")
@click.option("--model", "models", multiple=True, help="name=…,tokenizer=FOLDER.")
@click.option("--policy", help="Who picks the pod: predicted-ttft (default), or one of those in docs/configuration.md.")
@click.option("--workers", type=int, help="Processes that serve, each on a core of its own.")
@click.option("--restore", help="A snapshot to begin with.")
@click.option("--log-level", help="debug, info, warning or error.")
def serve(path: str | None, pods: tuple[str, ...], models: tuple[str, ...], **given: object) -> None:
    """Run the gateway.

    \b
    Example: warmroute serve --config warmroute.yaml
             warmroute serve --model name=tiny,tokenizer=/models/tiny-qwen \\
               --pod name=a,address=http://10.0.0.7:80,events=tcp://10.0.0.7:5557
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as process 1 it would not be told otherwise
    flags = {
        "gateway.host": given["host"],
        "gateway.port": given["port"],
        "gateway.ops_port": given["ops_port"],
        "gateway.workers": given["workers"],
        "gateway.log_level": given["log_level"],
        "state.restore": given["restore"],
        "scoring.policy": given["policy"],
    }
    config = _config(path, pods, models, flags)
    _log(config)
    if config.gateway.workers > 1:
        from router.workers.supervisor import supervise

        sys.exit(supervise(config))
    from router.process import run

    run(config)
    _exit()


@main.command(hidden=True)
@click.argument("descriptor", type=int)
def worker(descriptor: int) -> None:
    """One of several workers: `serve --workers` starts it, and says all that it needs over a socket.

    \b
    Example: warmroute serve --workers 4
    """
    from router.process import run
    from router.workers.control import Control

    control = Control(descriptor)
    _log(control.config, f"[worker {control.worker.number}] ")
    control.serve(run)
    _exit()


def _config(path: str | None, pods: Sequence[str], models: Sequence[str], flags: dict[str, object]) -> Config:
    """Of flags, environment and file. Raises `ConfigError`."""
    from router.config.reading import load, parse_model, parse_pod

    lists = {
        "discovery.static": [parse_pod(text) for text in pods] or None,
        "models": [parse_model(text) for text in models] or None,
    }
    return load(path, os.environ, {**flags, **lists})


def _exit() -> None:
    """All is answered; a thread may still be at a text that nobody waits for, and Python would wait for it."""
    logging.shutdown()
    os._exit(0)


def _log(config: Config, who: str = "") -> None:
    from router.causes.log_lines import AsJson, AsText

    handler = logging.StreamHandler()
    handler.setFormatter(AsJson(who) if config.log.format == "json" else AsText(who))
    logging.basicConfig(level=config.gateway.log_level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


@main.command()
@click.option("--url", default=_URL, envvar="WARMROUTE_URL", show_default=True, help="The gateway; or WARMROUTE_URL.")
@click.option("--model", help="Model; may be left out if the gateway serves one only.")
@click.option("--prompt", help="A prompt's text.")
@click.option("--messages", help="JSON file: a list, or a chat body.")
@click.option("--token-ids", help="JSON file: a list of token ids.")
@click.option("--key", help="API key, sent as a bearer token.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
def score(url: str, as_json: bool, key: str | None, **given: str | None) -> None:
    """Ask who would serve a prompt, and why.

    \b
    Example: warmroute score --prompt 'Once upon a time'
             warmroute score --url http://gateway:8080 --messages chat.json --json
    """
    from router.commands.score import ask_score, print_score

    answer = ask_score(url, key, given["model"], given["prompt"], given["messages"], given["token_ids"])
    print_score(answer, as_json)


@main.command(short_help="What would be with other pods, or under another policy.")
@click.argument("recording", metavar="RECORDING")
@click.option("--pods", type=click.IntRange(1, 512), help="So many pods; default: as recorded.")
@click.option("--policy", help="Who picks the pod, as scoring.policy; default: as recorded.")
@click.option("--kv-scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Of each pod's cache.")
@click.option("--profile", type=OneOf(["8b", "32b", "70b"]), help="Pods of this speed; default: as recorded.")
@click.option("--advise", metavar="TARGET", help="How many pods keep it? Like ttft_p90=2s: time to first token.")
@click.option(
    "--arrivals",
    type=OneOf(["auto", "recorded", "after-answers"]),
    default="auto",
    show_default=True,
    help="Who continues a prompt comes by the clock, or as long after its answer as it did.",
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def plan(recording: str, as_json: bool, **given: Any) -> None:
    """What would be with other pods, or under another policy: recorded requests again, in virtual time.

    RECORDING is the file of `record.path`, or requests in the format of Mooncake's traces.

    \b
    Example: warmroute plan requests.jsonl --pods 6
             warmroute plan requests.jsonl --kv-scale 0.5 --advise ttft_p90=2s
    """
    from router.commands.plan import WhatIf, parse_goal
    from router.commands.plan import plan as answer

    target = None if given["advise"] is None else parse_goal(given["advise"])
    waits = {"auto": None, "recorded": False, "after-answers": True}[given["arrivals"]]
    question = WhatIf(given["pods"], given["policy"], given["kv_scale"], given["profile"], target, waits)
    answer(recording, question, as_json)


@main.command(short_help="Bring prompts to a gateway before anybody asks for them.")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--url", default=_URL, envvar="WARMROUTE_URL", show_default=True, help="Its operators' plane.")
@click.option("--model", help="Model of prompts that name none; may be left out if the gateway serves one only.")
@click.option(
    "--prefill", default=0, type=click.IntRange(0, 1000), help="So many pods compute each prompt, while idle."
)
@click.option("--delimiter", help="Between the prompts of a text; without: a text is one prompt.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 256), help="Prompts at a time.")
@click.option("--key", help="Operator key, sent as a bearer token.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def warmup(files: tuple[str, ...], url: str, prefill: int, parallel: int, as_json: bool, **given: str | None) -> None:
    """Bring prompts to a gateway before anybody asks for them: its prefix store has their tokens then, and pods their
    blocks. FILE is a text, a .json of a system prompt and chunks, a .jsonl of requests, or env:NAME. Exit code 1 if
    one of them is not warm.

    \b
    Example: warmroute warmup system-prompts.txt --delimiter '---' --prefill 2
    """
    from router.commands.warmup import print_summary, warm

    summary = warm(url, given["key"], given["model"], prefill, parallel, files, given["delimiter"])
    print_summary(summary, as_json)
    sys.exit(1 if summary.problems else 0)


@main.command(short_help="Look for what is wrong with a fleet.")
@click.option("--config", "path", envvar="WARMROUTE_CONFIG", help="YAML or JSON file, as for serve.")
@click.option("--pod", "pods", multiple=True, help="name=…,address=http://…[,events=tcp://…,replay=tcp://…].")
@click.option("--model", "models", multiple=True, help="name=…,tokenizer=FOLDER.")
@click.option(
    "--wait",
    "wait_s",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="Seconds to wait for events.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(path: str | None, pods: tuple[str, ...], models: tuple[str, ...], wait_s: float, as_json: bool) -> None:
    """Look for what is wrong with a fleet: exit code 1 and a plain sentence for each thing.

    \b
    Example: warmroute check --config warmroute.yaml
             warmroute check --pod name=pod-0,address=http://127.0.0.1:8001
    """
    from router.commands.check import check_fleet

    logging.basicConfig(handlers=[logging.NullHandler()])  # what would be logged is among what is found
    sys.exit(1 if check_fleet(_config(path, pods, models, {}), wait_s, as_json) else 0)


@main.command(short_help="Compare cache-aware routing with round-robin: no GPU.")
@click.option("--pods", default=4, show_default=True, type=click.IntRange(2, 16), help="Simulated pods.")
@click.option("--keep", is_flag=True, help="Leave fleet and gateway running until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port of the gateway with --keep; 0: any free one. Without: 8080, or any if that is taken.",
)
@click.option("--seed", default=1, show_default=True, help="Of the workload.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def demo(pods: int, keep: bool, port: int | None, seed: int, as_json: bool) -> None:
    """Compare cache-aware routing with round-robin on a simulated fleet: no GPU, about a minute.

    Then, in virtual time, agents that overfill the pods' caches, sent on at once and held.

    \b
    Example: warmroute demo --keep
    """
    from router.commands.demo.run import run_demo

    if keep and as_json:
        raise click.UsageError("--json ends when all is measured, and --keep does not")
    run_demo(pods, keep, port, seed, as_json)


@main.command(short_help="Measure the same work on two sides, as ratios.")
@click.argument("mode", type=OneOf(["full", "single", "batch", "concurrent", "cache", "replay"]))
@click.argument("file", required=False)
@click.option("--url", help="Any OpenAI endpoint; without: simulated pods and a gateway.")
@click.option("--against", multiple=True, help="Endpoints to compare with, asked in turn.")
@click.option("--model", help="Model; may be left out if one only is served.")
@click.option("--key", help="API key, sent as a bearer token.")
@click.option("--pods", default=4, show_default=True, type=click.IntRange(2, 16), help="Simulated pods.")
@click.option("--seed", default=1, show_default=True, help="Of the work.")
@click.option("--requests", default=200, show_default=True, type=click.IntRange(1), help="Of FILE, from its begin.")
@click.option(
    "--seconds",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0, 86_400),
    help="In which FILE is replayed; 0: as recorded.",
)
@click.option("--json", "json_file", help="Write all figures to this file.")
@click.option("--html", "html_file", help="Write a report with plots to this file.")
def bench(**given: Any) -> None:
    """Measure the same work on two sides; every figure is a ratio of both.

    Sides: pods in turn and the gateway (simulated pods); else --url against
    --against; else --url against itself with nothing to reuse. FILE, of replay,
    is a trace as Mooncake's. Exit code 1 if a request failed.

    \b
    Example: warmroute bench full --html report.html
             warmroute bench cache --url http://127.0.0.1:8080
    """
    from router.commands.bench.run import BenchOptions, run_bench

    sys.exit(1 if run_bench(BenchOptions(**given)) else 0)


@main.command(short_help="Compile the hot path: half the CPU for each request.")
@click.option("--remove", is_flag=True, help="Be pure Python again.")
def native(remove: bool) -> None:
    """Compile the hot path where it is installed: half the CPU for each request, in some minutes.

    \b
    Example: pip install 'warmroute[native]' && warmroute native
    """
    from router.native import MODULES, compile_all, remove_all, root

    if remove:
        remove_all(root())
        return
    compile_all(root())
    click.echo(f"compiled: {len(MODULES)} modules in {root()}")


@main.command(
    short_help="Run one pod that behaves like vLLM.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run one pod that behaves like vLLM: for trying, tests and benchmarks.

    \b
    Example: warmroute simulate --port 8001 --model-path DIR
    """
    os.execve(sys.executable, command_of("simulator", *arguments), environment_of_ours())


@main.command(short_help="Print what makes a shell complete our commands.")
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete our commands and options.

    \b
    Example: source <(warmroute completion bash)
             warmroute completion fish > ~/.config/fish/completions/warmroute.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None  # one of the three
    click.echo(made(main, {}, "warmroute", "_WARMROUTE_COMPLETE").source())
