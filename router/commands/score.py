"""`warmroute score`: ask a gateway who would serve a prompt, and show its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx

_TIMEOUT_S = 30.0
_WIDTH_ELSEWHERE = 160  # columns, where stdout is no terminal that has a width of its own
_SHOWN_S = 5e-5  # of a price
_SHOWN_CHARS_MAX = 300  # of an answer that is no answer of ours

ScoreAnswer = dict[str, Any]


def ask_score(
    url: str, key: str | None, model: str | None, prompt: str | None, messages: str | None, token_ids: str | None
) -> ScoreAnswer:
    """The answer of POST /score. Exactly one of `prompt` (a text), `messages` and `token_ids` (JSON files) is given.

    Raises click.ClickException: one plain line.
    """
    body = _body(prompt, messages, token_ids)
    if model is not None:
        body["model"] = model
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=base_of(url), headers=headers, timeout=_TIMEOUT_S) as client:
            if "model" not in body:
                body["model"] = only_model(client)
            return read_answer(client.post("/score", json=body))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise unasked(url, error) from error


def base_of(url: str) -> str:
    """Where a gateway or an endpoint is; OpenAI's clients call it by its `/v1`."""
    return url.rstrip("/").removesuffix("/v1")


def unasked(url: str, error: Exception) -> click.ClickException:
    """A gateway that can't be asked, in one line, with what may help."""
    if not url.startswith(("http://", "https://")):
        hint = "an address is like http://127.0.0.1:8080"
    elif isinstance(error, httpx.ConnectError):
        hint = "does the gateway run there? --url says where it is"
    else:
        hint = type(error).__name__
    return click.ClickException(f"{url} can't be asked: {error or type(error).__name__} ({hint})")


def print_score(answer: ScoreAnswer, as_json: bool) -> None:
    """The answer as a table, or as it came."""
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    pods: list[ScoreAnswer] = answer["pods"]
    ranked = any(pod.get("rank") for pod in pods)
    table = Table(box=box.SIMPLE, title=_title(answer), title_justify="left")
    table.add_column("pod", overflow="fold")
    if ranked:
        table.add_column("rank", justify="right")
    for name in ("score", "price", "matched tokens", "blocks by tier", "state", "requests", "prefill tokens"):
        table.add_column(name, justify="left" if name in ("blocks by tier", "state") else "right")
    for pod in sorted(pods, key=lambda pod: -pod["score"]):
        picked = pod["pod"] == answer["pick"] and pod.get("rank") == answer.get("rank")
        table.add_row(*_row(pod, picked, ranked), style="bold" if picked else None)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_ELSEWHERE
    console.print(table)
    console.print(f"pick: {answer['pick']}: {answer['reason']} (prefix store: {answer['cache']})", soft_wrap=True)
    for line in _prices(answer, ranked):
        console.print(line, soft_wrap=True)
    timing = ", ".join(f"{stage} {us} µs" for stage, us in answer["timing_us"].items())
    console.print(f"timing: {timing}", soft_wrap=True)


def _title(answer: ScoreAnswer) -> str:
    size = answer["block_size"]
    blocks = f", {answer['blocks']} blocks of {size}" if size else ""
    return f"{answer['model']}: {answer['tokens']} tokens{blocks}"


def _row(pod: ScoreAnswer, picked: bool, ranked: bool) -> list[str]:
    tiers = ", ".join(f"{tier} {blocks}" for tier, blocks in pod["matched_by_tier"].items())
    row = [f"{'→' if picked else ' '} {pod['pod']}"]
    if ranked:
        row.append(str(pod["rank"]))
    load = pod["load"]
    return [
        *row,
        f"{pod['score']:.3f}",
        f"{pod['price']:.4f}",
        str(pod["matched_tokens"]),
        tiers or "-",
        pod["state"],
        str(load["requests"]),
        str(load["prefill_tokens"]),
    ]


_PARTS = {
    "wait": "until its prefill can start",
    "prefill": "to compute {tokens} that it doesn't hold",
    "fleet": "as that work is the fleet's",
    "eviction": "as what it gives up may be asked for again",
    "slow_start": "as it is new or was away",
}


def _prices(answer: ScoreAnswer, ranked: bool) -> Iterator[str]:
    """What the prices of the pick and the next one are made of: seconds, and the lowest is picked."""
    pods: list[ScoreAnswer] = answer["pods"]
    if "price_parts" not in pods[0]:
        yield f"price: by the policy {answer['policy']}; the lowest is picked"
        return
    picked = [pod for pod in pods if pod["pod"] == answer["pick"] and pod.get("rank") == answer.get("rank")]
    others = sorted((pod for pod in pods if pod not in picked), key=lambda pod: float(pod["price"]))
    for pod in (*picked, *others[:1]):
        count = answer["tokens"] - pod["matched_tokens"]
        uncached = f"{count} token{'s' if count != 1 else ''}"
        parts = [
            f"{seconds:.4f} s {_PARTS.get(name, name).format(tokens=uncached)}"
            for name, seconds in pod["price_parts"].items()
            if abs(seconds) >= _SHOWN_S
        ]
        name = f"{pod['pod']} rank {pod['rank']}" if ranked else pod["pod"]
        yield f"price of {name}: {pod['price']:.4f} s = {' + '.join(parts) or 'nothing to wait for or compute'}"
    if others and float(others[0]["price"]) <= float(picked[0]["price"]) * 1.1 + 0.001:
        yield "prices within 10% are alike: among such, who gives up least, then the longest match, the fewest requests"


def _body(prompt: str | None, messages: str | None, token_ids: str | None) -> ScoreAnswer:
    given = [value for value in (prompt, messages, token_ids) if value is not None]
    if len(given) != 1:
        raise click.ClickException("Give exactly one of --prompt, --messages, --token-ids.")
    if prompt is not None:
        return {"prompt": prompt}
    if token_ids is not None:
        return {"token_ids": _list(token_ids)}
    assert messages is not None
    content = _file(messages)
    if isinstance(content, dict) and "messages" in content:
        return content  # a whole chat body
    return {"messages": _list(messages)}


def _list(path: str) -> list[Any]:
    content = _file(path)
    if not isinstance(content, list):
        raise click.ClickException(f"{path}: not a JSON list")
    return content


def _file(path: str) -> object:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise click.ClickException(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} is not JSON: {error}") from error


def check_model(client: httpx.Client, model: str) -> str:
    """The same, if it is served; where models are not told, it may be."""
    answer = client.get("/v1/models")
    if not answer.is_success:
        return model
    names = [str(each["id"]) for each in read_answer(answer)["data"]]
    if model not in names:
        raise click.ClickException(f"The model {model} is not served there, but {', '.join(names) or 'none'}.")
    return model


def only_model(client: httpx.Client) -> str:
    """The base model that the gateway serves, if there is only one."""
    models = read_answer(client.get("/v1/models"))["data"]
    names = [model["id"] for model in models if not model.get("parent")]
    if len(names) != 1:
        known = f"serves {len(names)} models: {', '.join(names)}" if names else "knows no model yet"
        raise click.ClickException(f"The gateway {known}. Say which one: --model NAME.")
    return str(names[0])


def read_answer(response: httpx.Response) -> ScoreAnswer:
    """The JSON object of a successful answer; the message of an error."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    said = answer.get("error") if isinstance(answer, dict) else None
    message = said.get("message") if isinstance(said, dict) else response.text[:_SHOWN_CHARS_MAX]
    hint = "" if isinstance(said, dict) else " (is that a warmroute? --url says where it is)"
    raise click.ClickException(f"The gateway answers {response.status_code}: {message}{hint}")
