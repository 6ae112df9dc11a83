"""The `warmroute` command. Heavy parts are imported by the command that needs them: `--help` is quick."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from router.errors import RouterError


class Plain(click.Group):
    """A group whose expected failures are one plain line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RouterError as error:
            click.echo(f"warmroute: {error.message}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


@click.group(cls=Plain, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmroute")
def main() -> None:
    """A KV-cache-aware router in front of a fleet of vLLM pods.

    \b
    Example: warmroute demo
    """


@main.command()
@click.option("--config", "path", type=click.Path(dir_okay=False), help="YAML or JSON file.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port of the data plane.")
@click.option("--ops-port", type=int, help="Port of the operators' endpoints.")
@click.option("--pod", "pods", multiple=True, help="name=…,address=http://…[,events=tcp://…,replay=tcp://…].")
@click.option("--model", "models", multiple=True, help="name=…,tokenizer=FOLDER.")
@click.option("--policy", help="predicted-ttft, weighted, round-robin or least-load.")
@click.option("--workers", type=int, help="Processes that serve, each on a core of its own.")
@click.option("--restore", type=click.Path(dir_okay=False), help="A snapshot to begin with.")
@click.option("--log-level", help="debug, info, warning or error.")
def serve(path: str | None, pods: tuple[str, ...], models: tuple[str, ...], **given: object) -> None:
    """Run the gateway.

    \b
    Example: warmroute serve --port 8080 \\
        --pod name=pod-0,address=http://127.0.0.1:8001,events=tcp://127.0.0.1:5557,replay=tcp://127.0.0.1:5558 \\
        --model name=tiny-qwen,tokenizer=/models/tiny-qwen
    """
    from router.config.reading import load, parse_model, parse_pod

    flags = {
        "gateway.host": given["host"],
        "gateway.port": given["port"],
        "gateway.ops_port": given["ops_port"],
        "gateway.workers": given["workers"],
        "gateway.log_level": given["log_level"],
        "state.restore": given["restore"],
        "scoring.policy": given["policy"],
        "discovery.static": [parse_pod(text) for text in pods] or None,
        "models": [parse_model(text) for text in models] or None,
    }
    config = load(path, os.environ, flags)
    _log(config.gateway.log_level)
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
    _log(control.config.gateway.log_level, f"[worker {control.worker.number}] ")
    control.serve(run)
    _exit()


def _exit() -> None:
    """All is answered; a thread may still be at a text that nobody waits for, and Python would wait for it."""
    logging.shutdown()
    os._exit(0)


def _log(level: str, who: str = "") -> None:
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


@main.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The gateway.")
@click.option("--model", help="Model; may be left out if the gateway serves one only.")
@click.option("--prompt", help="A prompt's text.")
@click.option("--messages", type=click.Path(exists=True, dir_okay=False), help="JSON file: a list, or a chat body.")
@click.option("--token-ids", type=click.Path(exists=True, dir_okay=False), help="JSON file: a list of token ids.")
@click.option("--key", help="API key, sent as a bearer token.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
def score(url: str, as_json: bool, key: str | None, **given: str | None) -> None:
    """Ask who would serve a prompt, and why.

    \b
    Example: warmroute score --url http://127.0.0.1:8080 --prompt 'Once upon a time'
    """
    from router.commands.score import ask_score, print_score

    answer = ask_score(url, key, given["model"], given["prompt"], given["messages"], given["token_ids"])
    print_score(answer, as_json)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The gateway (its operators' plane).")
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


@main.command()
@click.option("--config", "path", type=click.Path(dir_okay=False), help="YAML or JSON file, as for serve.")
@click.option("--wait", "wait_s", default=3.0, show_default=True, help="Seconds to wait for events.")
def check(path: str | None, wait_s: float) -> None:
    """Look for what is wrong with a fleet: exit code 1 and a plain sentence for each thing.

    \b
    Example: warmroute check --config warmroute.yaml
    """
    from router.commands.check import check_fleet
    from router.config.reading import load

    sys.exit(1 if check_fleet(load(path, os.environ, {}), wait_s) else 0)


@main.command()
@click.option("--pods", default=4, show_default=True, type=click.IntRange(2, 16), help="Simulated pods.")
@click.option("--keep", is_flag=True, help="Leave fleet and gateway running until Ctrl-C.")
@click.option("--port", default=0, help="Port of the gateway with --keep; 0: any free one.")
@click.option("--seed", default=1, show_default=True, help="Of the workload.")
def demo(pods: int, keep: bool, port: int, seed: int) -> None:
    """Compare cache-aware routing with round-robin on a simulated fleet: no GPU, under a minute.

    \b
    Example: warmroute demo --keep
    """
    from router.commands.demo.run import run_demo

    run_demo(pods, keep, port, seed)


@main.command()
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


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run one simulated vLLM pod (see `warmroute simulate --help`).

    \b
    Example: warmroute simulate --port 8001 --model-path DIR
    """
    os.execv(sys.executable, [sys.executable, "-m", "simulator", *arguments])
