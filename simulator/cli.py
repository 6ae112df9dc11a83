"""`warmroute simulate`, also `python -m simulator`: one simulated vLLM pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import zmq

from simulator.engine import Limits
from simulator.events import Dialect, EventFormat, HashKind, parse_version
from simulator.faults import Faults, change
from simulator.model import ForcedOutputs, Model
from simulator.pace import Pace
from simulator.pod import Settings
from simulator.publisher import BUFFER_STEPS
from simulator.reuse import Kind, Reuse
from simulator.server import serve

_HELP = """Run one pod that behaves like vLLM: OpenAI API, block cache, KV events with replay, /metrics, /tokenize.

\b
Example: warmroute simulate --port 8001 --events-port 5557 \\
             --replay-port 5558 --model-path models/tiny-qwen

When it can be reached the pod prints one line of JSON with its addresses (port
0: any free one). All options, and faults: --help-all.
"""

_MORE = """\b
Faults, by --fault NAME=VALUE at start, or at run time by POST /simulator/fault
with a JSON object:
  drop, duplicate, reorder  share of event frames (0 to 1), drawn from `seed`
  silent                    true: no event frames (their numbers and replay go on)
  no_replay                 true: replay requests are not answered
  slow                      multiplies the time of every step
  die_after_chunks          cut a stream's connection after so many chunks
  fail_after_chunks         tell an error in a stream after so many chunks, and end it as if it was whole
  refuse                    "close": cut connections before any byte; "503": answer 503
  hang                      true: requests for tokens are never answered
  tokens                    what is served has other tokens than /tokenize tells:
                            bos, swapped, system, tools …
At run time also: {"restart": true} (seq back to 0, cache empty, new hashes,
streams cut) and {"clear": true}.

\b
GET /simulator/state tells the truth about load, pool and seq; POST
{"token_ids": [...], "lora", "salt"} to it adds cached_tokens, what a request
with that prompt would read from the cache now.
"""

_USUAL = frozenset(
    {
        "host", "port", "events_port", "replay_port", "model_path", "served_model_name", "vllm_version", "block_size",
        "num_blocks", "data_parallel_size", "prefill_tokens_per_s", "time_scale", "faults", "help_all",
    }
)  # fmt: skip
"""Options on the first screen."""


class OneScreen(click.Command):
    """A command with many options: `--help` shows the usual ones, `--help-all` the rest; what is wrong is one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra.setdefault("prog_name", "warmroute simulate")
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _plainly():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _plainly():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [p for p in self.get_params(ctx) if _is_whole(ctx) or p.name in _USUAL or "--help" in p.opts]
        with formatter.section("Options"):
            formatter.write_dl([record for p in shown if (record := p.get_help_record(ctx)) is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if _is_whole(ctx):
            super().format_epilog(ctx, formatter)


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        hint = " (see warmroute simulate --help)" if isinstance(error, click.UsageError) else ""
        click.echo(f"warmroute simulate: {' '.join(error.format_message().split())}{hint}", err=True)
        raise click.exceptions.Exit(error.exit_code) from None


def _is_whole(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(__name__))


def _show_all(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.meta[__name__] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _fault(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--fault")
    words: dict[str, object] = {"true": True, "false": False, "null": None}
    if value in words:
        return name, words[value]
    if name in ("refuse", "tokens"):
        return name, value
    try:
        return name, float(value) if "." in value or "e" in value else int(value)
    except ValueError:
        return name, value


def _group(text: str) -> tuple[Kind, int]:
    kind, _, window = text.partition(":")
    if kind == "mamba" and not window:
        return "mamba", 0
    if kind == "sliding_window" and window.isdigit() and int(window) > 1:
        return "sliding_window", int(window)
    raise click.BadParameter(f"{text!r} is neither mamba nor sliding_window:TOKENS", param_hint="--group")


@click.command(
    name="simulate",
    cls=OneScreen,
    help=_HELP,
    epilog=_MORE,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8_000, show_default=True)
@click.option("--events-port", type=click.IntRange(0, 65_535), default=0, help="PUB of rank 0; 0: any.")
@click.option("--events-endpoint", default="", help="As vLLM's endpoint, e.g. tcp://router:5557: connected to.")
@click.option("--replay-port", type=click.IntRange(0, 65_535), default=0, help="Replay of rank 0; 0: any.")
@click.option("--topic", default=None, help="Default: kv@HOST:PORT@MODEL.")
@click.option(
    "--model-path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="With tokenizer.json, maybe tokenizer_config.json, chat_template.jinja.",
)
@click.option("--served-model-name", default=None, help="Default: the folder's name.")
@click.option("--lora", "loras", multiple=True, help="Name of a LoRA adapter; may be repeated.")
@click.option("--vllm-version", default="0.32.0", show_default=True, help="Whose wire formats to speak.")
@click.option("--event-format", type=click.Choice(["array", "map"]), default=None, help="Default: the version's.")
@click.option(
    "--event-hashes", type=click.Choice(["int", "signed", "bytes"]), default=None, help="Default: the version's."
)
@click.option("--hash-seed", default=None, help="Pods of equal seed make equal hashes. Default: random.")
@click.option("--block-size", type=click.IntRange(1, 4_096), default=16, show_default=True)
@click.option("--num-blocks", type=click.IntRange(2), default=2_048, show_default=True, help="One is the null block.")
@click.option(
    "--max-model-len", type=click.IntRange(2), default=None, help="Default: what the cache holds, up to 32768."
)
@click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), default=2_048, show_default=True)
@click.option(
    "--data-parallel-size",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Ranks; the feeds of rank r are at the given ports + r.",
)
@click.option("--prefill-tokens-per-s", type=float, default=8_000.0, show_default=True, help="On uncached tokens.")
@click.option(
    "--attention-tokens",
    type=float,
    default=0.0,
    show_default=True,
    help="Position at which a token costs twice as much as the first; 0: all cost the same.",
)
@click.option("--step-base-s", type=float, default=0.008, show_default=True, help="Of every engine step.")
@click.option("--step-sequence-s", type=float, default=0.0002, show_default=True, help="More per sequence in it.")
@click.option("--time-scale", type=float, default=1.0, show_default=True, help="0.1: ten times faster.")
@click.option(
    "--buffer-steps",
    type=click.IntRange(1),
    default=BUFFER_STEPS,
    show_default=True,
    help="Event batches kept for replay.",
)
@click.option(
    "--forced-outputs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help='JSON lines {"prompt_token_ids": […], "output_token_ids": […]}.',
)
@click.option(
    "--data-parallel-start-rank", type=click.IntRange(0), default=0, show_default=True, help="Number of its first rank."
)
@click.option(
    "--drafter", type=click.Choice(["ngram", "eagle"]), default=None, help="eagle: also EAGLE-3 and MTP; by version."
)
@click.option("--lookahead-tokens", type=click.IntRange(0, 64), default=None, help="Behind a block, in its hash.")
@click.option("--drop-units", type=click.IntRange(0), default=None, help="Found, and computed again.")
@click.option("--reuse-unit", type=click.IntRange(1), default=1, show_default=True, help="Blocks reused together.")
@click.option("--recompute-tokens", type=click.IntRange(1), default=1, show_default=True, help="At a prompt's end.")
@click.option("--prefix-caching/--no-prefix-caching", default=True, show_default=True)
@click.option("--group", "groups", multiple=True, help="Beside full attention: mamba, or sliding_window:TOKENS.")
@click.option(
    "--sliding-window", type=click.IntRange(2), default=None, help="Tokens that every layer looks back: no full one."
)
@click.option("--offload-blocks", type=click.IntRange(0), default=0, help="Kept below its own cache; 0: no such tier.")
@click.option("--self-describing-kv-events", "describes_offload", is_flag=True, help="Of that tier, as in vLLM.")
@click.option("--api-key", "api_keys", multiple=True, help="Asked for under /v1; may be repeated.")
@click.option("--dev-mode", is_flag=True, help="As VLLM_SERVER_DEV_MODE=1: /sleep, /wake_up, /pause, /resume.")
@click.option("--enable-scale-out", "scale_out", is_flag=True, help="Allow /v1/…/render, as vLLM >= 0.30 needs it.")
@click.option("--fault", "faults", multiple=True, metavar="NAME=VALUE", help="A fault; may be repeated.")
@click.option(
    "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help="Show all options."
)
def simulate(
    host: str, port: int, events_port: int, events_endpoint: str, replay_port: int, topic: str | None, model_path: Path,
    served_model_name: str | None, loras: tuple[str, ...], vllm_version: str, event_format: EventFormat | None,
    event_hashes: HashKind | None, hash_seed: str | None, block_size: int, num_blocks: int,
    max_model_len: int | None, max_num_seqs: int, max_num_batched_tokens: int, data_parallel_size: int,
    prefill_tokens_per_s: float, attention_tokens: float, step_base_s: float, step_sequence_s: float,
    time_scale: float, buffer_steps: int, forced_outputs: Path | None, data_parallel_start_rank: int,
    drafter: str | None, lookahead_tokens: int | None, drop_units: int | None, reuse_unit: int, recompute_tokens: int,
    prefix_caching: bool, groups: tuple[str, ...], sliding_window: int | None, offload_blocks: int,
    describes_offload: bool, api_keys: tuple[str, ...], dev_mode: bool, scale_out: bool, faults: tuple[str, ...],
) -> None:  # fmt: skip
    """Checks what was given and serves until a signal."""
    if events_endpoint and not re.fullmatch(r"tcp://.+:[1-9][0-9]{0,4}", events_endpoint):
        raise click.BadParameter("should be like tcp://router:5557", param_hint="--events-endpoint")
    name = served_model_name or model_path.resolve().name
    capacity = (num_blocks - 1) * block_size
    try:
        version = parse_version(vllm_version)
        forced = ForcedOutputs.read(forced_outputs) if forced_outputs else None
        context = _context_tokens(max_model_len, capacity)
        model = Model.load(model_path, name, context, version, vllm_version.removeprefix("v"), loras, forced)
        usual = Reuse.of(drafter, version)
        reuse = Reuse(
            usual.drop if drop_units is None else drop_units, recompute_tokens, reuse_unit,
            usual.ahead if lookahead_tokens is None else lookahead_tokens, usual.drafter, prefix_caching,
            sliding_window or 0,
        )  # fmt: skip
        settings = Settings(
            dialect=Dialect.of(version).but(event_format, event_hashes),
            limits=Limits(
                block_size,
                num_blocks,
                max_num_seqs,
                max_num_batched_tokens,
                reuse,
                tuple(_group(group) for group in groups),
                offload_blocks,
                describes_offload,
            ),
            pace=Pace(prefill_tokens_per_s, attention_tokens, step_base_s, step_sequence_s, time_scale),
            faults=change(Faults(), dict(_fault(text) for text in faults)),
            ranks=data_parallel_size,
            host=host,
            events_port=events_port,
            events_endpoint=events_endpoint,
            replay_port=replay_port,
            topic=f"kv@{host}:{port}@{name}" if topic is None else topic,
            buffer_steps=buffer_steps,
            hash_seed=hash_seed,
            first_rank=data_parallel_start_rank,
            api_keys=frozenset(api_keys),
            development=dev_mode,
            scale_out=scale_out,
        )
        serve(model, settings, port, click.echo)
    except (ValueError, OSError, zmq.ZMQError) as error:
        raise click.ClickException(str(error)) from error


CONTEXT_TOKENS_DEFAULT = 32_768


def _context_tokens(asked: int | None, capacity: int) -> int:
    if asked is not None and asked > capacity:
        raise ValueError(f"--max-model-len {asked} does not fit into the cache of {capacity} tokens")
    return min(capacity, CONTEXT_TOKENS_DEFAULT) if asked is None else asked
