"""`router.prompts.templates`: transformers' Jinja dialect, vLLM's search for the content format, and the bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError

from router.prompts.messages import Format, rules_of
from router.prompts.templates import ChatEnvironment, ChatTemplate, TemplateTooLarge

NEWEST = rules_of(None)


def environment() -> ChatEnvironment:
    """An environment whose clock stands still."""
    return ChatEnvironment(lambda: datetime(2026, 7, 26, 5))


def render(source: str, **variables: Any) -> str:
    """The text of a template under small bounds."""
    return ChatTemplate(source, environment(), NEWEST).render(variables, 10_000, 100_000)


def test_the_dialect_of_transformers() -> None:
    """Blocks are trimmed, loops have break and continue, JSON is not escaped for HTML."""
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=1) }}") == '{\n "a": 2,\n "b": 1\n}'
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2026"
    assert render("{% generation %}{% set x = 1 %}a{{ x }}{% endgeneration %}{{ x }}") == "a1"
    with pytest.raises(TemplateError, match="no way"):
        render("{{ raise_exception('no way') }}")


def test_dicts_behave_as_in_the_sandbox() -> None:
    """Items, methods, missing keys and both ways to write them."""
    thing = {"a": 1, "items": 2, "list": [1]}
    assert render("{{ d.a }}{{ d['a'] }}{{ d['items'] }}{{ d.get('a') }}", d=thing) == "1121"
    assert render("{{ d.b is defined }}{{ d['b'] is defined }}{{ d.b }}", d=thing) == "FalseFalse"
    assert render("{% for key, value in d.items() %}{{ key }}{% endfor %}", d=thing) == "aitemslist"
    for source in ("{{ d.b.c }}", "{{ d.update({}) }}", "{{ d.list.append(1) }}", "{{ ''.__class__.mro() }}"):
        with pytest.raises(TemplateError):
            render(source, d=thing)
    assert thing == {"a": 1, "items": 2, "list": [1]}


def test_loops_know_where_they_are() -> None:
    """The loop variable works, also over generators and with a condition."""
    source = "{% for x in xs if x %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}"
    assert render(source, xs=[1, 0, 2]) == "0TrueFalse2 1FalseTrue2 "
    assert render("{% for x in xs | map('upper') %}{{ loop.index }}{{ x }}{% endfor %}", xs=["a", "b"]) == "1A2B"
    tree = [{"n": "a", "kids": [{"n": "b", "kids": []}]}]
    assert render("{% for x in t recursive %}{{ x.n }}{{ loop(x.kids) }}{% endfor %}", t=tree) == "ab"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% endfor %}",
        "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% for i in range(999) | map('string') %}{% for j in range(999) | map('string') %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(99) recursive %}{{ loop(range(99)) }}{% endfor %}",
        "{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 2 ** -9999 }}",
    ],
)
def test_a_template_without_end_is_stopped(source: str) -> None:
    """Loops, calls, recursion, repetition and output run into their bounds."""
    with pytest.raises(TemplateTooLarge):
        render(source)


def test_ordinary_arithmetic_is_left_alone() -> None:
    """Only what is too large is refused."""
    assert render("{{ 3 * 4 }} {{ 'ab' * 2 }} {{ 2 * [1] }} {{ 2 ** 10 }} {{ 1.5 * 2 }}") == "12 abab [1, 1] 1024 3.0"


def test_bounds_are_of_one_rendering() -> None:
    """A template that stays below them may be rendered for ever."""
    template = ChatTemplate("{% for i in range(90) %}x{% endfor %}", environment(), NEWEST)
    for _ in range(5):
        assert template.render({}, 100, 100) == "x" * 90
    with pytest.raises(TemplateTooLarge):
        template.render({}, 100, 89)
    with pytest.raises(TemplateTooLarge):
        template.render({}, 89, 100)


LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
CONTENTS = "{% for c in m.content %}{% endfor %}"
NAMESPACE = "{% set ns = namespace(rest=messages) %}"
SET_NAMESPACE = "{% set ns = namespace() %}{% set ns.rest = messages[1:] %}"


@pytest.mark.parametrize(
    ("source", "version", "expected"),
    [
        ("", None, "string"),
        (LOOP % "{{ m.content }}", None, "string"),
        (LOOP % "{% for c in m.content %}{% endfor %}", None, "openai"),
        (LOOP % "{% for c in m['content'] %}{% endfor %}", None, "openai"),
        (LOOP % "{% for c in m.content | list %}{% endfor %}", None, "openai"),
        (LOOP % "{% for c in m.content[1:] %}{% endfor %}", None, "openai"),
        (LOOP % "{% for c in m.tool_calls %}{% endfor %}", None, "string"),
        ("{% set x = messages[1:] %}{% for m in x %}{% for c in m.content %}{% endfor %}{% endfor %}", None, "openai"),
        (LOOP % "{% set content = m.content %}{% for c in content %}{% endfor %}", (0, 21), "string"),
        (LOOP % "{% set content = m.content %}{% for c in content %}{% endfor %}", (0, 22), "openai"),
        ("{% macro r(content) %}{% for c in content %}{% endfor %}{% endmacro %}", (0, 29), "openai"),
        ("{% macro r(content) %}{% for c in content %}{% endfor %}{% endmacro %}", (0, 30), "string"),
        (
            "{% macro r(a, b) %}{% for c in b %}{% endfor %}{% endmacro %}" + LOOP % "{{ r(1, m.content) }}",
            (0, 29),
            "string",
        ),
        (
            "{% macro r(a, b) %}{% for c in b %}{% endfor %}{% endmacro %}" + LOOP % "{{ r(1, m.content) }}",
            None,
            "openai",
        ),
        (
            "{% macro r(a, b) %}{% for c in b %}{% endfor %}{% endmacro %}" + LOOP % "{{ r(b=m.content) }}",
            None,
            "openai",
        ),
        (NAMESPACE + LOOP.replace("messages", "ns.rest") % CONTENTS, None, "openai"),
        (NAMESPACE + LOOP.replace("messages", "ns.rest") % CONTENTS, (0, 32), "string"),
        (SET_NAMESPACE + LOOP.replace("messages", "ns.rest | list") % CONTENTS, None, "openai"),
        (SET_NAMESPACE + LOOP % CONTENTS, (0, 32), "string"),
        (SET_NAMESPACE + "{% set x = ns.rest %}" + LOOP.replace("messages", "x") % CONTENTS, None, "openai"),
        (SET_NAMESPACE + LOOP.replace("messages", "ns.other") % CONTENTS, None, "string"),
        ("{% set a, b = messages %}" + LOOP % CONTENTS, (0, 32), "string"),
        ("{% set a, b = messages %}" + LOOP % CONTENTS, None, "openai"),
        ("{% for a, b in messages %}{% for c in a.content %}{% endfor %}{% endfor %}", None, "string"),
    ],
)
def test_the_content_format(source: str, version: tuple[int, int] | None, expected: Format) -> None:
    """The search of each version of vLLM, its blind spots included."""
    assert ChatTemplate(source, environment(), rules_of(version)).content_format == expected
