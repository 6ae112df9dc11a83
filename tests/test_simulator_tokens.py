"""Tokens, templates and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.ask import Body, Refused, parse, parse_json
from simulator.events import parse_version
from simulator.model import ForcedOutputs, Model
from simulator.template import CHATML, ChatTemplate, TemplateError, load_template
from simulator.tokens import Speller, Vocabulary

VECTORS = Path(__file__).parent / "vectors"
UNKNOWN_IDS = ("documents", "truncate_prompt_tokens")
"""Notes of requests whose true ids vLLM 0.10.1 did not report (`/tokenize` takes neither)."""


def model_of(name: str, **options: Any) -> Model:
    """The model of a recorded set."""
    meta = json.loads((VECTORS / name / "meta.json").read_text("utf-8"))
    version = parse_version(meta["vllm_version"])
    return Model.load(VECTORS / name / "tokenizer", meta["model"], 2048, version, "x", meta["lora"], **options)


@pytest.fixture(scope="module")
def model() -> Model:
    """The newest recorded model."""
    return model_of("vllm-0.32.0")


@pytest.mark.parametrize(
    "name", ["vllm-0.32.0", "vllm-0.28.0", "vllm-0.20.2", "vllm-0.11.2.post2", "vllm-0.10.1.1.post2"]
)
def test_prompts_have_the_ids_that_vllm_reported(name: str) -> None:
    """Every answered request of every set: rendering, special tokens, truncation, tools, all of it."""
    model = model_of(name)
    compared = 0
    for line in (VECTORS / name / "requests.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if not row["path"].endswith("completions") or row["status"] != 200:
            continue
        if model.version < (0, 11) and row["note"] in UNKNOWN_IDS:
            continue
        ask = parse(row["body"], row["path"].endswith("chat/completions"), model, {})
        expected = row.get("prompt_token_ids_reported") or [prompt["token_ids"] for prompt in row["prompts"]]
        assert ask.prompts == expected, (row["i"], row["note"])
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("name", ["vllm-0.32.0", "vllm-0.20.2"])
def test_refusals_have_the_status_that_vllm_gave(name: str) -> None:
    """404 for an unknown model, 400 for the rest of what the recorded server refused, with its kind of error."""
    model = model_of(name)
    refused = 0
    for line in (VECTORS / name / "requests.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["status"] == 200 or row["headers"]:
            continue
        raw = row["body"].encode() if isinstance(row["body"], str) else json.dumps(row["body"]).encode()
        with pytest.raises(Refused) as caught:
            parse(parse_json(raw), row["path"].endswith("chat/completions"), model, {})
        error, recorded = caught.value.body["error"], row["response"]["error"]
        assert (caught.value.status, error["code"]) == (row["status"], recorded["code"])
        assert error["type"].replace(" ", "") in (recorded["type"].replace(" ", ""), "BadRequestError")
        refused += 1
    assert refused >= 9


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": "many"},
        {"n": 0},
        {"n": 1_000},
        {"prompt": ["a", ""]},
        {"prompt": [1, -1]},
        {"prompt": None},
        {"cache_salt": 7},
        {"max_tokens": 4_000},
        {"stream_options": "yes"},
        {"vllm_xargs": [1]},
    ],
)
def test_bad_values_are_refused_with_400(model: Model, change: Body) -> None:
    """Wrong types and sizes are the client's fault."""
    with pytest.raises(Refused) as caught:
        parse({"prompt": "hello", **change}, False, model, {})
    assert caught.value.status == 400


def test_an_answer_depends_on_the_prompt_alone(model: Model) -> None:
    """Same prompt, same words; another prompt or sibling, others; all decode to plain text."""
    prompt = list(range(40))
    first, reason = model.output(prompt, 0, 12)
    assert (len(first), reason) == (12, "length")
    assert model.output(prompt, 0, 12) == (first, "length")
    assert model.output(prompt, 1, 12)[0] != first
    assert model.output(prompt[:-1], 0, 12)[0] != first
    text = model.vocabulary.decode(first)
    assert text.isascii() and len(text.split()) == 12
    unlimited, reason = model.output(prompt, 0, None)
    assert reason == "stop" and 32 <= len(unlimited) <= 160


def test_forced_outputs_are_used_in_order(tmp_path: Path) -> None:
    """The answers of a file, in its order, the last again and again; other prompts are not concerned."""
    file = tmp_path / "forced.jsonl"
    rows = [{"prompt_token_ids": [1, 2], "output_token_ids": output} for output in ([5, 6, 7], [8])]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    model = model_of("vllm-0.32.0", forced=ForcedOutputs.read(file))
    answers = [model.output([1, 2], 0, 3) for _ in range(3)]
    assert answers == [([5, 6, 7], "length"), ([8], "stop"), ([8], "stop")]
    assert len(model.output([1, 2, 3], 0, 4)[0]) == 4
    file.write_text('{"prompt_token_ids": [1]}\n', "utf-8")
    with pytest.raises(ValueError, match="line 1"):
        ForcedOutputs.read(file)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "find"}}])
def test_a_forced_tool_is_called_with_arguments_of_its_schema(model: Model, choice: object) -> None:
    """The output is the JSON of the required arguments; a tool that is not offered is refused."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
        "required": ["city", "unit", "days"],
    }
    tool = {"type": "function", "function": {"name": "find", "parameters": schema}}
    body: Body = {"messages": [{"role": "user", "content": "weather?"}], "tools": [tool], "tool_choice": choice}
    ask = parse(body, True, model, {})
    assert ask.tool == "find"
    arguments = json.loads(model.vocabulary.decode(ask.choices[0].output))
    assert arguments == {"city": "value", "unit": "C", "days": 1}
    with pytest.raises(Refused):
        parse({**body, "tools": [], "tool_choice": {"type": "function", "function": {"name": "find"}}}, True, model, {})


def test_a_folder_without_template_gets_chatml(tmp_path: Path) -> None:
    """Plain ChatML, with the generation prompt unless it is not wanted."""
    template = load_template(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    assert template.render({"messages": messages}) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render({"messages": messages, "add_generation_prompt": False}).endswith("<|im_end|>\n")


def test_template_errors_are_named() -> None:
    """A template that does not compile, and one that refuses the messages."""
    with pytest.raises(TemplateError, match="bad chat template"):
        ChatTemplate("{% if %}", {})
    with pytest.raises(TemplateError, match="no users"):
        ChatTemplate("{{ raise_exception('no users') }}", {}).render({"messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(TemplateError, match="division"):
        ChatTemplate("{{ 1 / 0 }}", {}).render({"messages": [{"role": "user", "content": "x"}]})
    assert "generation" not in ChatTemplate(CHATML, {}).render({"messages": [{"role": "user", "content": "x"}]})


def test_streamed_text_never_breaks_a_character(model: Model) -> None:
    """The pieces of a text beyond ASCII add up to it, without replacement characters on the way."""
    vocabulary = model.vocabulary
    text = "Straße 漢字 🦊 naïve"
    tokens = vocabulary.encode(text, False)
    speller = Speller(vocabulary)
    pieces = [speller.add(token, number == len(tokens)) for number, token in enumerate(tokens, 1)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_bad_model_folder_is_named(tmp_path: Path) -> None:
    """No tokenizer.json, and one that is none."""
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        Vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="no tokenizer"):
        Vocabulary(tmp_path)
