"""`router.prompts.rendering`: text exactly as vLLM makes it, by version; bounded work; errors that name their cause."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.core.cards import Version
from router.errors import ConfigError
from router.prompts.prompt import parse
from router.prompts.rendering import Renderer, RenderError, Rendering, RenderOptions

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}S:{{ m.content }}{% else %}"
    "{% for part in m.content %}P:{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
DUMP = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
USER = {"role": "user", "content": "hi"}


def renderer(folder: Path, template: str = PLAIN, config: object = None, **options: Any) -> Renderer:
    """A renderer of a folder made for it."""
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return Renderer(folder, RenderOptions(**options), clock=lambda: datetime(2026, 7, 26))


def rendered(made: Renderer, *messages: object, **fields: Any) -> Rendering:
    """The rendering of a chat."""
    body = {"model": "m", "messages": list(messages) or [USER], **fields}
    return made.render(parse("/v1/chat/completions", orjson.dumps(body)))


def text(folder: Path, template: str, *messages: object, version: Version | None = None, **fields: Any) -> str:
    """The text of a chat under a template."""
    return rendered(renderer(folder, template, vllm_version=version), *messages, **fields).text


def test_a_chat_and_a_completion(tmp_path: Path) -> None:
    """A chat is rendered and gets no special tokens; a completion's text is as given and gets them."""
    made = renderer(tmp_path)
    assert rendered(made) == Rendering("<user>hi\n<assistant>", False)
    assert rendered(made, add_special_tokens=True, truncate_prompt_tokens=9).truncate_prompt_tokens == 9
    prompt = parse("/v1/completions", b'{"prompt": ["a", "b"]}')
    assert made.render(prompt) == Rendering("a", True)
    assert [one.text for one in made.render_all(prompt)] == ["a", "b"]


def test_what_has_no_text(tmp_path: Path) -> None:
    """Token ids and prompts that were not understood say why."""
    made = renderer(tmp_path)
    for body in (b'{"prompt": [1, 2]}', b'{"prompt_embeds": "x"}'):
        with pytest.raises(RenderError):
            made.render(parse("/v1/completions", body))


def test_the_content_format_follows_the_template(tmp_path: Path) -> None:
    """A loop over contents makes strings into parts; without one parts are joined by line ends."""
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}
    assert text(tmp_path, PARTS, parts, USER) == "<user>P:aP:b<user>P:hi"
    assert text(tmp_path, PLAIN, parts) == "<user>a\nb\n<assistant>"
    forced = renderer(tmp_path, PARTS, content_format="string")
    assert rendered(forced, parts).text == "<user>S:a\nb"


def test_null_contents(tmp_path: Path) -> None:
    """A content of null is an empty string, or no parts."""
    message = {"role": "assistant", "content": None}
    assert text(tmp_path, DUMP, message) == '{"role": "assistant", "content": ""}'
    assert text(tmp_path, PARTS, message) == "<assistant>"


def test_tools_as_the_models_dump_them(tmp_path: Path) -> None:
    """Fields in order, missing ones null; unknown ones kept up to 0.26, dropped later except strict."""
    function = {"parameters": {}, "name": "f", "strict": True, "x": 1}
    template = "{{ tools | tojson }}"
    tools = [{"function": function, "type": "function", "y": 2}]
    old = text(tmp_path, template, version=(0, 26), tools=tools)
    assert old == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {}, '
        '"strict": true, "x": 1}, "y": 2}]'
    )
    new = text(tmp_path, template, version=(0, 27), tools=tools)
    assert new == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {}, "strict": true}}]'
    )
    deferred = [{"type": "function", "function": {"name": "f"}, "defer_loading": True}]
    assert text(tmp_path, template, tools=deferred).endswith(', "defer_loading": true}, "defer_loading": true}]')


def test_tools_that_are_not_to_be_called(tmp_path: Path) -> None:
    """tool_choice none leaves the tools in the prompt, unless the pods exclude them."""
    template = "{{ tools is none }}"
    fields: dict[str, Any] = {"tools": [{"function": {"name": "f"}}], "tool_choice": "none"}
    assert rendered(renderer(tmp_path, template), **fields).text == "False"
    excluding = renderer(tmp_path, template, exclude_tools_when_tool_choice_none=True)
    assert rendered(excluding, **fields).text == "True"


def test_tool_calls_are_put_in_order(tmp_path: Path) -> None:
    """Arguments become an object; the order is that of OpenAI's types, with what they don't know at the end."""
    function = {"strict": True, "name": "f", "arguments": '{"b": 1.0}'}
    call = {"type": "function", "index": 0, "function": function, "id": "c"}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert text(tmp_path, "{{ messages[0].tool_calls | tojson }}", message) == (
        '[{"id": "c", "function": {"arguments": {"b": 1.0}, "name": "f", "strict": true}, "type": "function",'
        ' "index": 0}]'
    )


@pytest.mark.parametrize(
    ("given", "version", "expected"),
    [
        ("", (0, 11), "{}"),
        ("", None, "{}"),
        ("[1]", (0, 28), "[1]"),
        ("[1]", (0, 29), "{}"),
        ("null", (0, 22), "null"),
        ("null", (0, 23), "{}"),
        ("{broken", (0, 29), "{}"),
        ("{broken", (0, 28), None),
        ("", (0, 10), None),
        ('{"a": NaN}', None, '{"a": NaN}'),
    ],
)
def test_arguments_by_version(tmp_path: Path, given: str, version: Version | None, expected: str | None) -> None:
    """What is no object of JSON: refused by old pods, emptied by new ones."""
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": given}}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    if expected is None:
        with pytest.raises(RenderError, match="not JSON"):
            text(tmp_path, template, message, version=version)
    else:
        assert text(tmp_path, template, message, version=version) == expected


def test_empty_tool_calls_by_version(tmp_path: Path) -> None:
    """An empty list is dropped since 0.13."""
    message = {"role": "assistant", "content": "a", "tool_calls": []}
    template = "{{ messages[0].tool_calls is defined }}"
    assert text(tmp_path, template, message, version=(0, 12)) == "True"
    assert text(tmp_path, template, message, version=(0, 13)) == "False"


def test_tool_texts_by_version(tmp_path: Path) -> None:
    """A tool's parts become one string since 0.20, in the parts format too."""
    message = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}, "b"]}
    assert text(tmp_path, PARTS, message, version=(0, 19)) == "<tool>P:aP:b"
    assert text(tmp_path, PARTS, message, version=(0, 20)) == "<tool>S:a\nb"
    assert text(tmp_path, "{{ messages[0].tool_call_id }}", message) == "c"


def test_developers_by_version(tmp_path: Path) -> None:
    """Since 0.23 developers become one system message at the start, if the template does not know the role."""
    talk = [{"role": "system", "content": "s"}, USER, {"role": "developer", "content": "d"}]
    assert text(tmp_path, PLAIN, *talk, version=(0, 22)) == "<system>s\n<user>hi\n<developer>d\n<assistant>"
    assert text(tmp_path, PLAIN, *talk, version=(0, 23)) == "<system>s\n\nd\n<user>hi\n<assistant>"
    knowing = PLAIN + "{# 'developer' #}"
    assert text(tmp_path, knowing, *talk) == "<system>s\n<user>hi\n<developer>d\n<assistant>"
    assert text(tmp_path, PLAIN, talk[2], USER) == "<system>d\n<user>hi\n<assistant>"
    assert text(tmp_path, PARTS, *talk) == "<system>S:s\n\nd<user>P:hi"
    tools = text(tmp_path, DUMP + "{# 'developer' #}", {**talk[2], "tools": []})
    assert tools == '{"role": "developer", "content": "d", "tools": []}'


def test_the_billing_header_by_version(tmp_path: Path) -> None:
    """The changing first line of Claude Code's system text is dropped since 0.32."""
    message = {"role": "system", "content": "x-anthropic-billing-header: cch=1\nbe kind"}
    assert text(tmp_path, PLAIN, message, version=(0, 32)).startswith("<system>be kind\n")
    assert text(tmp_path, PLAIN, message, version=(0, 31)).startswith("<system>x-anthropic")
    assert text(tmp_path, PLAIN, {**message, "role": "user"}).startswith("<user>x-anthropic")


def test_reasoning_by_version(tmp_path: Path) -> None:
    """reasoning is passed under both names, beside a null content too; reasoning_content counts but in 0.16 to 0.21."""
    message = {"role": "assistant", "content": "a", "reasoning": "r"}
    both = '{"role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "r"}'
    assert text(tmp_path, DUMP, message) == both
    assert "reasoning" not in text(tmp_path, DUMP, message, version=(0, 10))
    renamed = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    for version in ((0, 11), (0, 15), (0, 22)):
        assert text(tmp_path, DUMP, renamed, version=version) == both
    for version in ((0, 16), (0, 21)):
        assert "reasoning" not in text(tmp_path, DUMP, renamed, version=version)
    for name in ("reasoning", "reasoning_content"):
        thought = {"role": "assistant", "content": None, name: "r"}
        assert text(tmp_path, DUMP, thought) == both.replace('"a"', '""')


def test_extra_keys_of_parts_by_version(tmp_path: Path) -> None:
    """Kept since 0.26, but those that vLLM's types know; a bare string is a part of its own since 0.18."""
    part = {"cache_control": {"type": "ephemeral"}, "type": "text", "uuid": None, "text": "a"}
    template = "{% for m in messages %}{% for p in m.content %}{{ p | tojson }}{% endfor %}{% endfor %}"
    message = {"role": "user", "content": [part, "b"]}
    plain = '{"type": "text", "text": "a"}{"type": "text", "text": "b"}'
    kept = plain.replace('"a"', '"a", "cache_control": {"type": "ephemeral"}')
    assert text(tmp_path, template, message, version=(0, 26)) == kept
    assert text(tmp_path, template, message, version=(0, 25)) == plain
    assert text(tmp_path, template, message, version=(0, 17)) == plain.replace('{"type": "text", "text": "b"}', '"b"')
    fields: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    last = {"role": "assistant", "content": [part]}
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.cache_control.type }}{{ p.text }}{% endfor %}{% endfor %}"
    )
    assert text(tmp_path, template, last, **fields) == "ephemerala"


def test_empty_texts_of_parts(tmp_path: Path) -> None:
    """They are dropped where texts are joined, and kept where they had been made parts."""
    parts = ["", {"type": "text", "text": ""}, "b"]
    assert text(tmp_path, DUMP, {"role": "user", "content": parts}) == '{"role": "user", "content": "b"}'
    assert text(tmp_path, PARTS, {"role": "user", "content": parts}) == "<user>P:P:P:b"
    assert text(tmp_path, PARTS, {"role": "tool", "content": parts}) == "<tool>S:\n\nb"


def test_null_texts_of_parts(tmp_path: Path) -> None:
    """They are left out."""
    parts = [{"type": "text", "text": None}, {"type": "refusal", "refusal": None}, {"type": "text"}, "b"]
    assert text(tmp_path, PARTS, {"role": "user", "content": parts}) == "<user>P:b"
    assert text(tmp_path, DUMP, {"role": "tool", "content": parts}) == '{"role": "tool", "content": "b"}'


@pytest.mark.parametrize("given", ["false", "OFF", "0", 0, 0.0, "n", False])
def test_flags_as_texts(tmp_path: Path, given: object) -> None:
    """As pydantic reads them."""
    made = renderer(tmp_path)
    assert rendered(made, add_generation_prompt=given).text == "<user>hi\n"
    assert rendered(made, continue_final_message=given).text == "<user>hi\n<assistant>"
    fields = {"continue_final_message": "yes", "add_generation_prompt": given}
    if not given:  # the pod looks at both before it reads them
        assert rendered(made, **fields).text == "<user>hi"


def test_names_and_tasks_are_passed_and_the_rest_is_not(tmp_path: Path) -> None:
    """A template sees the fields that vLLM's models know."""
    message = {**USER, "name": "ann", "task": "t", "cache_control": 1}
    assert text(tmp_path, DUMP, message) == '{"role": "user", "content": "hi", "name": "ann", "task": "t"}'
    assert "task" not in text(tmp_path, DUMP, message, version=(0, 19))


def test_template_variables_by_version(tmp_path: Path) -> None:
    """Up to 0.15 chat_template_kwargs beat the body's own fields, since 0.16 the other way round."""
    template = "{{ add_generation_prompt }} {{ x }}"
    kwargs = {"add_generation_prompt": False, "x": 1}
    assert text(tmp_path, template, version=(0, 15), chat_template_kwargs=kwargs) == "False 1"
    assert text(tmp_path, template, version=(0, 16), chat_template_kwargs=kwargs) == "True 1"
    made = renderer(tmp_path, "{{ x }} {{ y is defined }}", default_template_kwargs={"x": 2, "y": 3})
    assert rendered(made).text == "2 True"
    assert rendered(made, chat_template_kwargs={"x": 5}).text == "5 True"
    assert rendered(made, chat_template_kwargs={"x": None}).text == "2 True"
    with pytest.raises(RenderError, match="tokenize"):
        rendered(made, chat_template_kwargs={"tokenize": True})


def test_reasoning_effort_by_version(tmp_path: Path) -> None:
    """It is a variable since 0.16 and decides on thinking since 0.22, unless the request does."""
    template = "{{ reasoning_effort }} {{ enable_thinking }}"
    assert text(tmp_path, template, version=(0, 15), reasoning_effort="low") == " "
    assert text(tmp_path, template, version=(0, 21), reasoning_effort="low") == "low "
    assert text(tmp_path, template, reasoning_effort="low") == "low True"
    assert text(tmp_path, template, reasoning_effort="none") == "none False"
    kwargs = {"enable_thinking": True}
    assert text(tmp_path, template, reasoning_effort="none", chat_template_kwargs=kwargs) == "none True"
    made = renderer(tmp_path, template, reasoning_effort_map={"low": "none", "high": "max"})
    efforts = {effort: rendered(made, reasoning_effort=effort).text for effort in ("low", "high", "medium")}
    assert efforts == {"low": "none False", "high": "max True", "medium": "medium True"}


@pytest.mark.parametrize(
    ("template", "version", "expected"),
    [
        ("{{ reasoning_effort }} {{ enable_thinking }}", None, "none False"),
        ("{{ reasoning_effort }} {{ enable_thinking }}", (0, 30), " "),
        ("{{ reasoning_effort if reasoning_effort in ['low', 'high'] else 'high' }}", None, "low"),
        ("{{ raise_exception('no') if reasoning_effort == 'none' else reasoning_effort }}", None, "low"),
        ("{{ '' if enable_thinking is undefined or enable_thinking else 'quick' }}", None, "quick"),
    ],
)
def test_disabled_thinking_of_the_messages_api(
    tmp_path: Path, template: str, version: Version | None, expected: str
) -> None:
    """Since 0.31 it is the effort none, or low where the template knows no none; other thinking changes nothing."""
    made = renderer(tmp_path, template, vllm_version=version)
    body = {"model": "m", "max_tokens": 1, "messages": [USER], "thinking": {"type": "disabled"}}
    assert made.render(parse("/v1/messages", orjson.dumps(body))).text == expected
    for thinking in ({"type": "adaptive"}, {"type": "enabled", "budget_tokens": 9}):
        answer = made.render(parse("/v1/messages", orjson.dumps({**body, "thinking": thinking})))
        assert answer.text == rendered(made).text


def test_documents_and_the_generation_prompt(tmp_path: Path) -> None:
    """Documents are a variable; the generation prompt can be left out."""
    template = PLAIN + "{% for d in documents %}{{ d.title }}{% endfor %}"
    fields: dict[str, Any] = {"documents": [{"title": "T"}], "add_generation_prompt": False}
    assert text(tmp_path, template, **fields) == "<user>hi\nT"


def test_a_final_message_to_continue(tmp_path: Path) -> None:
    """The text ends with the last content, trimmed only if the template trims."""
    last = {"role": "assistant", "content": "The answer "}
    fields: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert text(tmp_path, PLAIN, USER, last, **fields) == "<user>hi\n<assistant>The answer "
    trimming = PLAIN.replace("m.content", "m.content | trim")
    assert text(tmp_path, trimming, USER, last, **fields) == "<user>hi\n<assistant>The answer"
    assert text(tmp_path, PARTS, USER, last, **fields) == "<user>P:hi<assistant>P:The answer "


def test_a_final_message_that_cannot_be_continued(tmp_path: Path) -> None:
    """With a generation prompt, without text, or where the template hides it, the pod refuses too."""
    with pytest.raises(RenderError, match="both true"):
        text(tmp_path, PLAIN, continue_final_message=True)
    fields: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(RenderError, match="can't be continued"):
        text(tmp_path, "nothing", **fields)
    with pytest.raises(RenderError, match="no text"):
        text(tmp_path, PARTS, {"role": "assistant", "content": None}, **fields)


def test_a_requests_own_template(tmp_path: Path) -> None:
    """Only where the pods trust it (before 0.11 they all did), compiled once, and its format is its own."""
    fields: dict[str, Any] = {"chat_template": PARTS}
    with pytest.raises(RenderError, match="trust"):
        rendered(renderer(tmp_path), **fields)
    assert rendered(renderer(tmp_path, vllm_version=(0, 10)), **fields).text == "<user>P:hi"
    trusting = renderer(tmp_path, trust_request_chat_template=True, request_templates_max=2)
    assert rendered(trusting, **fields).text == "<user>P:hi"
    assert rendered(trusting, chat_template="").text == "<user>hi\n<assistant>"
    for number in range(5):
        assert rendered(trusting, chat_template=str(number)).text == str(number)
    for broken in ("{% for %}", "{{ x", "x" * 100_000, "{{ " + "(" * 5_000):
        with pytest.raises(RenderError):
            rendered(trusting, chat_template=broken)


def test_special_tokens_are_variables(tmp_path: Path) -> None:
    """Given as strings or objects; an unset one is undefined; older folders have a file of their own."""
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": "<u>", "bos_token": "<old>"}')
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "add_bos_token": True}
    template = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}"
    assert rendered(renderer(tmp_path, template, config)).text == "<s></s><u>False"


def test_where_templates_come_from(tmp_path: Path) -> None:
    """The template file, the tokenizer's configuration, named templates; the option beats them all."""
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert rendered(Renderer(tmp_path)).text == "one"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert rendered(Renderer(tmp_path)).text == "plain"
    assert rendered(Renderer(tmp_path), tools=[{"function": {"name": "f"}}]).text == "tools"
    config.write_text(json.dumps({"chat_template": {"default": "plain"}}))
    assert rendered(Renderer(tmp_path)).text == "plain"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(Renderer(tmp_path)).text == "file"
    assert rendered(Renderer(tmp_path, RenderOptions(chat_template="option"))).text == "option"


def test_a_model_without_template(tmp_path: Path) -> None:
    """A base model serves completions; its chats have no text. So do models that vLLM encodes itself."""
    made = Renderer(tmp_path)
    assert made.render(parse("/v1/completions", b'{"prompt": "a"}')).text == "a"
    with pytest.raises(RenderError, match="no chat template"):
        rendered(made)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    with pytest.raises(RenderError, match="gpt_oss"):
        rendered(renderer(tmp_path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"{% for %}"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": 5}'),
        ("tokenizer_config.json", b'{"chat_template": ["x"]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", b'{"chat_template": "{% endif %}"}'),
    ],
)
def test_a_broken_folder_names_the_file(tmp_path: Path, file: str, content: bytes) -> None:
    """A file that can't be used is the operator's error, in one line with its name."""
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=file) as caught:
        Renderer(tmp_path)
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigError, match="nowhere"):
        Renderer(tmp_path / "nowhere")
