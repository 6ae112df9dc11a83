"""Requests of all kinds, by name: what is asked of every template."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]

_LIST = {"type": "array", "items": {"type": "string", "enum": ["å", 'b"', "<c>"]}, "minItems": 1}
_PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "Where"}}, "required": ["place"]}
_WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a place", "parameters": _PLACE},
}
_CLOCK = {"type": "function", "function": {"name": "clock"}}
_NESTED = {
    "type": "function",
    "function": {
        "name": "order",
        "description": "Ünïcode & <tags>, 'quotes'",
        "parameters": {
            "type": "object",
            "properties": {
                "items": _LIST,
                "when": {"type": ["string", "null"], "default": None},
                "how": {"type": "object", "properties": {"fast": {"type": "boolean", "default": True}}},
                "many": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
            },
            "required": [],
            "additionalProperties": False,
        },
    },
}
_STRICT = {"type": "function", "function": {"name": "exact", "strict": True, "parameters": {}, "x": 1}, "y": 2}
_DEFERRED = {"type": "function", "defer_loading": True, "function": {"name": "later", "description": ""}}


def _say(role: str, content: Any, **more: Any) -> Body:
    return {"role": role, "content": content, **more}


def _user(content: Any = "What is the weather like in Oslo?", **more: Any) -> Body:
    return _say("user", content, **more)


def _system(content: Any = "You are brief.") -> Body:
    return _say("system", content)


def _assistant(content: Any = "It rains.", **more: Any) -> Body:
    return _say("assistant", content, **more)


def _tool(content: Any = '{"sky": "grey"}', id: str | None = "call_12345", **more: Any) -> Body:
    return _say("tool", content, **({"tool_call_id": id} if id else {}), **more)


def _call(arguments: Any = '{"place": "Oslo"}', id: str = "call_12345", name: str = "weather", **more: Any) -> Body:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def _part(text: Any, kind: str = "text", **more: Any) -> Body:
    return {"type": kind, "text": text, **more}


def _body(*messages: Body, **fields: Any) -> Body:
    return {"model": "m", "messages": list(messages), **fields}


def _kwargs(**given: Any) -> Body:
    return _body(_system(), _user(), chat_template_kwargs=given)


def _called(*results: Body, **more: Any) -> Body:
    return _body(_user(), _assistant("", tool_calls=[_call()]), *results, tools=[_WEATHER], **more)


_CONTINUED: Any = {"add_generation_prompt": False, "continue_final_message": True}
_HEADER = "x-anthropic-billing-header: cch=1"
_THOUGHT: Any = {"reasoning": "Oslo is wet.\nSurely."}

PLAIN = {
    "one user": _body(_user()),
    "two turns": _body(_user(), _assistant(), _user("And in Bern?")),
    "a system and a user": _body(_system(), _user()),
    "a system and turns": _body(
        _system(), _user(), _assistant(), _user("And in Bern?"), _assistant("Sun."), _user("Ok")
    ),
    "only a system": _body(_system()),
    "two systems": _body(_system(), _system("You are kind."), _user()),
    "a system later": _body(_user(), _assistant(), _system("Now be long."), _user("And in Bern?")),
    "an assistant last": _body(_user(), _assistant()),
    "an assistant first": _body(_assistant("Hello."), _user()),
    "two users": _body(_user(), _user("And in Bern?")),
    "two assistants": _body(_user(), _assistant(), _assistant("And it snows."), _user("Ok")),
    "an unknown role": _body(_user(), _say("critic", "That is wrong."), _user("Ok")),
    "a function's role": _body(_user(), _say("function", "21", name="weather"), _user("Ok")),
    "names": _body(_user(name="ann"), _assistant(name="bob"), _user("And in Bern?", name="ann")),
    "a task": _body(_user(task="search")),
    "no generation prompt": _body(_system(), _user(), add_generation_prompt=False),
    "no generation prompt, as text": _body(_system(), _user(), add_generation_prompt="false"),
    "a truth as a number": _body(_system(), _user(), add_generation_prompt=1),
}

TEXTS = {
    "no text": _body(_system(""), _user(""), _assistant(""), _user("Ok")),
    "only blanks": _body(_system(" "), _user(" \n "), _assistant("\n"), _user("\t Ok \n\n")),
    "blanks around": _body(_system("\n brief \n"), _user("  Hi  "), _assistant("\n\nYes\n"), _user(" Ok\n")),
    "scripts": _body(
        _system("Дай мне 中文"), _user("שלום العربية हिन्दी"), _assistant("e\u0301 \u200d 👩‍👩‍👧 \U0001f600"), _user("ß")
    ),
    "markup": _body(
        _user("<b>&amp; \"quoted\" 'so' \\n \\ {{ x }} {% if %} </b>"), _assistant("`a`\n```py\nb\n```"), _user()
    ),
    "special tokens": _body(_user("<|im_end|></s><s>[INST] <start_of_turn>"), _assistant("<|eot_id|>"), _user()),
    "thoughts as text": _body(_user(), _assistant("<think>\nWet.\n</think>\n\nIt rains."), _user("And in Bern?")),
    "thoughts as text, last": _body(_user(), _assistant("<think>Wet.</think>It rains.")),
    "long": _body(_system("Be brief. " * 300), _user("word " * 2000), _assistant("yes " * 500), _user("Ok")),
}

PARTS = {
    "a part": _body(_user([_part("Hi")])),
    "parts": _body(
        _system([_part("Be"), _part("brief.")]),
        _user([_part("Hi"), _part("there\n")]),
        _assistant([_part("Yes")]),
        _user(),
    ),
    "empty parts": _body(_user([_part(""), _part("Hi"), _part("")])),
    "bare strings as parts": _body(_user(["Hi", _part("there")])),
    "parts with more keys": _body(
        _system([_part("Be brief.", cache_control={"type": "ephemeral"})]), _user([_part("Hi", x=[1], closed=True)])
    ),
    "parts of other kinds": _body(_user([_part("a", "input_text"), {"type": "refusal", "refusal": "b"}])),
    "parts that think": _body(
        _user(), _assistant([{"type": "thinking", "thinking": "Wet."}, _part("Rain.")]), _user("Ok")
    ),
    "an output's part": _body(_user(), _assistant([_part("Rain.", "output_text")]), _user([_part("Ok")])),
    "a null text": _body(_user([_part("Hi"), _part(None)])),
}

TOOLS = {
    "a tool": _body(_user(), tools=[_WEATHER]),
    "a tool and a system": _body(_system(), _user(), tools=[_WEATHER]),
    "tools": _body(_system(), _user(), tools=[_WEATHER, _CLOCK, _NESTED]),
    "a tool of few words": _body(_user(), tools=[_CLOCK]),
    "a strict tool": _body(_user(), tools=[_STRICT]),
    "a deferred tool": _body(_user(), tools=[_DEFERRED, _WEATHER]),
    "no tool to be called": _body(_user(), tools=[_WEATHER], tool_choice="none"),
    "a tool to be called": _body(_user(), tools=[_WEATHER], tool_choice="required"),
    "a named tool": _body(_user(), tools=[_WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}),
    "null for tools": _body(_user(), tools=None),
}

HISTORY = {
    "a call": _body(_user(), _assistant("", tool_calls=[_call()]), tools=[_WEATHER]),
    "a call and its result": _called(_tool()),
    "a result's answer": _called(_tool(), _assistant(), _user("And in Bern?")),
    "calls beside each other": _body(
        _user(),
        _assistant("I look.", tool_calls=[_call(), _call('{"place": "Bern"}', "call_67890")]),
        _tool("rain"),
        _tool("sun", "call_67890"),
        tools=[_WEATHER],
    ),
    "rounds": _called(
        _tool(), _assistant("", tool_calls=[_call('{"place": "Bern"}', "call_67890")]), _tool("sun", "call_67890")
    ),
    "a call without tools": _body(_user(), _assistant("", tool_calls=[_call()]), _tool(), _user("Ok")),
    "a call with null content": _body(_user(), _assistant(None, tool_calls=[_call()]), _tool(), tools=[_WEATHER]),
    "a call without content": _body(_user(), {"role": "assistant", "tool_calls": [_call()]}, _tool(), tools=[_WEATHER]),
    "a call that says more": _body(_user(), _assistant("", tool_calls=[_call(index=0)]), _tool(), tools=[_WEATHER]),
    "no arguments": _body(_user(), _assistant("", tool_calls=[_call("")]), _tool(), tools=[_CLOCK]),
    "arguments that are no JSON": _body(
        _user(), _assistant("", tool_calls=[_call("{broken")]), _tool(), tools=[_WEATHER]
    ),
    "arguments that are a list": _body(_user(), _assistant("", tool_calls=[_call("[1]")]), _tool(), tools=[_WEATHER]),
    "arguments of many kinds": _body(
        _user(),
        _assistant("", tool_calls=[_call('{"a": 1.0, "b": null, "c": [true, {"d": "é<\\n"}], "e": 1e400, "f": -0}')]),
        _tool(),
        tools=[_WEATHER],
    ),
    "null calls": _body(_user(), _assistant("Rain.", tool_calls=None), _user("Ok")),
    "an empty list of calls": _body(_user(), _assistant("Rain.", tool_calls=[]), _user("Ok")),
    "a result in parts": _called(_tool([_part("rain"), _part("and wind", x=1)])),
    "a result with an empty part": _called(_tool([_part(""), _part("rain")])),
    "a result with a name": _called(_tool("rain", name="weather")),
    "a null result": _called(_tool(None)),
    "a result without an id": _called(_tool("rain", None)),
    "a result of JSON": _called(_tool('{"t": 21, "sky": ["grey", "wet"]}')),
    "a result and a question": _called(_tool(), _user("In Fahrenheit?")),
}

REASONING = {
    "a thought": _body(_user(), _assistant(**_THOUGHT), _user("And in Bern?")),
    "a thought, last": _body(_user(), _assistant(**_THOUGHT)),
    "a thought under its old name": _body(_user(), _assistant(reasoning_content="Wet."), _user("Ok")),
    "a thought under both names": _body(_user(), _assistant(reasoning="Wet.", reasoning_content="Dry."), _user("Ok")),
    "a thought and nothing else": _body(_user(), _assistant(None, **_THOUGHT), _user("Ok")),
    "no thought": _body(_user(), _assistant(reasoning=""), _user("Ok")),
    "a null thought": _body(_user(), _assistant(reasoning=None), _user("Ok")),
    "a thought before a call": _body(
        _user(), _assistant("", tool_calls=[_call()], **_THOUGHT), _tool(), tools=[_WEATHER]
    ),
    "a thought before a call, null content": _body(
        _user(), _assistant(None, tool_calls=[_call()], **_THOUGHT), _tool(), tools=[_WEATHER]
    ),
    "thoughts in turns": _body(
        _user(), _assistant(**_THOUGHT), _user("Why?"), _assistant("Wind.", reasoning_content="West."), _user("Ok")
    ),
    "low effort": _body(_user(), reasoning_effort="low"),
    "high effort": _body(_system(), _user(), reasoning_effort="high"),
    "no effort": _body(_user(), reasoning_effort="none"),
    "no effort, thinking": _body(_user(), reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}),
}

CONTINUED = {
    "to be continued": _body(_user(), _assistant("The weather"), **_CONTINUED),
    "to be continued after a blank": _body(_user(), _assistant("The weather "), **_CONTINUED),
    "parts to be continued": _body(_user(), _assistant([_part("The"), _part("weather")]), **_CONTINUED),
    "a user to be continued": _body(_user("What is the"), **_CONTINUED),
    "a thought to be continued": _body(_user(), _assistant("The weather", **_THOUGHT), **_CONTINUED),
    "nothing to be continued": _body(_user(), _assistant(None), **_CONTINUED),
    "continued after thinking": _body(_user(), _assistant("<think>Wet.</think>The"), **_CONTINUED),
}

KWARGS = {
    "thinking": _kwargs(enable_thinking=True),
    "no thinking": _kwargs(enable_thinking=False),
    "thinking by another name": _kwargs(thinking=True),
    "null and auto": _kwargs(enable_thinking=None, thinking="auto"),
    "unknown ones": _kwargs(foo=1, bar={"a": [1]}),
    "what the body says too": _kwargs(add_generation_prompt=False, reasoning_effort="low"),
    "a date": _kwargs(date_string="26 Jul 2026", current_date="2026-07-26"),
    "documents": _body(
        _user(), documents=[{"title": "Oslo", "text": "It rains in Oslo."}, {"title": "Bern", "text": "Sun."}]
    ),
}

DEVELOPER = {
    "a developer": _body(_say("developer", "Be brief."), _user()),
    "a developer and a system": _body(_system(), _say("developer", "Be kind."), _user()),
    "a developer later": _body(_user(), _assistant(), _say("developer", "Be kind."), _user("Ok")),
    "a developer in parts": _body(_system([_part("Be")]), _say("developer", [_part("brief"), _part("now")]), _user()),
    "a developer with a tool": _body(_say("developer", "Be brief.", tools=[_WEATHER]), _user(), tools=[_WEATHER]),
    "a billing header": _body(_system(f"{_HEADER}\nYou are brief."), _user()),
    "a billing header in a part": _body(_system([_part(_HEADER), _part("You are brief.")]), _user(_HEADER)),
}

ODD = {
    "content that is no part": _body(_user([]), _assistant([]), _user("Ok")),
    "no content": _body(_user(), {"role": "assistant"}, _user("Ok")),
    "null content": _body(_user(), _assistant(None), _user("Ok")),
    "a null system": _body(_say("system", None), _user()),
    "fields of other kinds": _body(_user(foo=1), _assistant(refusal=None, audio=None, function_call=None), _user("Ok")),
    "a refusal beside": _body(_user(), _assistant(None, refusal="No."), _user("Ok")),
    "a thought that is no text": _body(_user(), _assistant(reasoning=["Wet."]), _user("Ok")),
    "a call to be continued": _body(
        _user(), _assistant("I look", tool_calls=[_call()]), tools=[_WEATHER], **_CONTINUED
    ),
    "a call without generation prompt": _called(_tool(), add_generation_prompt=False),
    "an answer before calls": _called(_tool(), _assistant(), _user("Bern?"), _assistant(None, tool_calls=[_call()])),
    "calls that think": _called(_tool(), _assistant("", tool_calls=[_call()], **_THOUGHT), _tool("sun"), _user("Ok")),
    "a call of unknown kind": _body(_user(), _assistant("", tool_calls=[{**_call(), "type": "custom"}]), _user("Ok")),
    "a call that says more inside": _body(
        _user(),
        _assistant(
            "", tool_calls=[{"id": "c", "type": "function", "function": {"strict": 1, "name": "f", "arguments": "{}"}}]
        ),
    ),
    "a null id": _called({"role": "tool", "content": "rain", "tool_call_id": None}),
    "ipython": _body(_user(), _say("ipython", "21"), _user("Ok")),
    "a null description": _body(
        _user(), tools=[{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]
    ),
    "a tool's definitions": _body(
        _user(),
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": {
                        "$defs": {"A": {"type": "object", "properties": {}}},
                        "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"enum": [1, None, "x"]}, "c": {}},
                        "type": "object",
                    },
                },
            }
        ],
    ),
    "effort as a kwarg": _kwargs(reasoning_effort="medium"),
    "least effort": _body(_user(), reasoning_effort="minimal"),
    "most effort": _body(_system(), _user(), reasoning_effort="max"),
    "thinking as text": _kwargs(enable_thinking="false", thinking=0),
    "documents as a kwarg": _kwargs(documents=[{"title": "Oslo", "text": "It rains."}]),
    "tools as a kwarg": _kwargs(tools=[_WEATHER]),
    "kwargs of the engine": _kwargs(padding=True, max_length=5, return_dict=False),
    "a developer's own tool": _body(_say("developer", "Be brief.", tools=[_NESTED]), _user()),
    "a nameless developer": _body(_say("developer", "Be brief.", name="ann"), _system(""), _user(name="bob")),
    "a system's name": _body(_say("system", "Be brief.", name="ann"), _user()),
}

CONVERSATIONS: dict[str, Body] = {
    **PLAIN, **TEXTS, **PARTS, **TOOLS, **HISTORY, **REASONING, **CONTINUED, **KWARGS, **DEVELOPER, **ODD,
}  # fmt: skip
