"""Templates that requests bring: real ones render as those of model folders do, and none takes the memory of all."""

from __future__ import annotations

import tracemalloc
from datetime import datetime
from pathlib import Path

import pytest
from jinja2 import TemplateError

from router.prompts.messages import rules_of
from router.prompts.request_templates import RequestEnvironment
from router.prompts.templates import ChatEnvironment, ChatTemplate, TemplateTooLarge

VECTORS = Path(__file__).parent / "vectors"
TEMPLATES = sorted(VECTORS.rglob("*.jinja"))
STEPS, CHARS = 200_000, 8 << 20
MEMORY_MAX = 8 * CHARS  # lists and dicts weigh more than their texts
CHAT = [
    {"role": "system", "content": "Be kind.\nAnd short."},
    {"role": "user", "content": "Hello {there}, 100% of you"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


def clock() -> datetime:
    return datetime(2026, 5, 1)


def render(source: str, environment: ChatEnvironment, **variables: object) -> str:
    return ChatTemplate(source, environment, rules_of(None)).render({"messages": CHAT, **variables}, STEPS, CHARS)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: str(file.relative_to(VECTORS)))
def test_real_templates_render_alike(file: Path) -> None:
    """What a model's folder may have, a request may bring."""
    given = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", "tools": None}
    source = file.read_text()
    try:
        expected = render(source, ChatEnvironment(clock), **given)
    except TemplateError as error:
        with pytest.raises(type(error)):
            render(source, RequestEnvironment(clock), **given)
    else:
        assert render(source, RequestEnvironment(clock), **given) == expected


def test_the_dialect() -> None:
    """Slices, concatenations, macros, namespaces, captured blocks, methods: as ever."""
    source = (
        "{% macro said(m) %}[{{ m.role ~ ': ' + m['content'] | trim }}]{% endmacro %}"
        "{% set ns = namespace(n=0, last='') %}{% set rest = messages[1:] %}"
        "{% for m in rest %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.content[:3] %}{{ said(m) }}{% endfor %}"
        "{% set shown %}{{ ns.n }}{{ ns.last }}{% endset %}{{ shown.upper() }}"
        "{{ messages | map(attribute='role') | join(',') }}{{ ('a,b'.split(',') | tojson).replace('a', 'c') }}"
        "{{ messages[0].content | indent(2) }}{{ 7 % 2 }}{{ strftime_now('%Y') }}"
    )
    assert render(source, RequestEnvironment(clock)) == render(source, ChatEnvironment(clock))


BOMBS = {
    "a width": "{{ 'x' | center(300000000) }}",
    "a format": "{{ '%300000000d' | format(1) }}",
    "a format by the operator": "{{ '%300000000d' % 1 }}",
    "a format by the method": "{{ '{:300000000}'.format(1) }}",
    "zeros": "{{ 'x'.zfill(300000000) }}",
    "a method by its name": "{% set f = 'x'.ljust %}{{ f(300000000) }}",
    "a map": "{{ ['x'] | map('center', 300000000) | list }}",
    "tabs": "{{ '\t'.expandtabs(300000000) }}",
    "indentation": "{{ 'x\n' * 100000 | indent(100000) }}",
    "dumped": "{{ [1] | tojson(indent=300000000) }}",
    "doubled": "{% set n = namespace(a='x' * 1000000) %}{% for i in range(12) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "added": "{% set n = namespace(a='x' * 1000000) %}{% for i in range(12) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "captured": "{% set n = namespace(a='x' * 1000000) %}{% for i in range(12) %}"
    "{% set m %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = m %}{% endfor %}",
    "joined": "{{ ('x' * 1000000).join(range(1000) | map('string') | list) }}",
    "joined by the filter": "{{ range(1000) | join('x' * 1000000) }}",
    "replaced": "{{ ('x' * 10000).replace('x', 'y' * 100000) }}",
    "replaced by the filter": "{{ ('x' * 10000) | replace('x', 'y' * 100000) }}",
    "nested": "{% set n = namespace(a=['x']) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "nested, dumped": "{% set n = namespace(a=['x']) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
    "{{ n.a | tojson | length }}",
    "cut": "{% set s = 'x' * 4000000 %}{% set n = namespace(a=[]) %}{% for i in range(1000) %}"
    "{% set n.a = [n.a, s[1:]] %}{% endfor %}",
    "split": "{% set s = 'xy,' * 1000000 %}{{ s.split(',') | length }}",
    "literal": "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% set n.a = [n.a, "
    + str(list(range(10000)))
    + "] %}{% endfor %}",
    "called": "{% macro m(a) %}{{ m([a, " + str(list(range(2000))) + "]) }}{% endmacro %}{{ m(1) }}",
    "summed": "{{ range(99999) | map('list') | sum(start=[]) }}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_template_has_so_much_memory_and_no_more(kind: str) -> None:
    """It is refused before it has taken it."""
    source = BOMBS[kind]
    tracemalloc.start()
    try:
        with pytest.raises((TemplateTooLarge, TemplateError, RecursionError)):
            render(source, RequestEnvironment(clock))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
