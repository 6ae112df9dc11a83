"""Chat templates: compiled as Hugging Face's transformers compile them, and kept within bounds.

A template is a program. Model folders are trusted as far as the pods trust them; a request's own template is the
client's program. So loops, calls, `range` and repetition are counted against a budget of steps, and the output is
cut off while it is made. What is not bounded here is the memory that a template takes: see `request_templates`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from router.prompts.messages import Format, Rules

STEPS = "steps "  # with a blank, so that no template can name it
_COUNTED = "counted "
_BITS_MAX = 4_096  # of an integer that a template calculates: nobody counts further in a chat
_DICT_NAMES = frozenset(dir(dict))
_LOOP_NAMES = frozenset(("first", "last", "index", "index0", "length", "previtem", "nextitem"))


class TemplateTooLarge(TemplateError):
    """A template used up its budget of steps or characters."""


class StepBudget:
    """A budget: what one rendering may still do."""

    __slots__ = ("call_cost", "chars_max", "left", "room")

    def __init__(self, steps_max: int, chars_max: int, call_cost: int = 1) -> None:
        """`call_cost`: steps of a call of something that the template itself defines."""
        self.left = steps_max
        self.chars_max = self.room = chars_max
        self.call_cost = call_cost

    def take(self, steps: int) -> None:
        """Raises TemplateTooLarge when less than that is left."""
        self.left -= steps
        if self.left < 0:
            raise TemplateTooLarge("the template works without end")

    def make(self, chars: int) -> None:
        """Raises TemplateTooLarge when less room than that is left for what is made, and need not be put out."""
        self.room -= chars
        if self.room < 0:
            raise TemplateTooLarge("the template makes too much")


class ChatTemplate:
    """One compiled template; raises TemplateError for a source that is none."""

    def __init__(self, source: str, environment: ChatEnvironment, rules: Rules) -> None:
        tree = environment.parse(source)
        self.source = source
        self.content_format: Format = content_format(tree, rules)
        self.knows_developer = '"developer"' in source or "'developer'" in source
        self._call_cost = environment.prepare(tree)
        # A plain dict of globals: a rendering copies it several times faster than Jinja's own chain of maps.
        self._template = Template.from_code(environment, environment.compile(tree), dict(environment.globals))

    def under(self, rules: Rules) -> ChatTemplate:
        """The same template by the rules of another version; it is not compiled again."""
        twin = copy.copy(self)
        twin.content_format = content_format(self._template.environment.parse(self.source), rules)
        return twin

    def render(self, variables: Mapping[str, Any], steps_max: int, chars_max: int) -> str:
        """The text; raises TemplateTooLarge, or anything that the template's own mistakes raise."""
        template = self._template
        context = template.new_context({**variables, STEPS: StepBudget(steps_max, chars_max, self._call_cost)})
        pieces = []
        chars = 0
        for piece in template.root_render_func(context):
            chars += len(piece)
            if chars > chars_max:
                raise TemplateTooLarge(f"the text is longer than {chars_max} characters")
            pieces.append(piece)
        return "".join(pieces)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, with its filters and globals, and with our budget."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters[_COUNTED] = _counted
        del self.globals["lipsum"]  # random text, as long as one likes
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: clock().strftime(format)

    def prepare(self, tree: nodes.Template) -> int:
        """Have it counted what a template does; returns what a call of its own parts costs."""
        count_loops(tree, lambda loop: 1)
        return 1

    def getattr(self, obj: Any, attribute: str) -> Any:
        # Same result as the sandbox's for plain dicts, without an exception raised and caught for each key.
        if type(obj) is dict and attribute not in _DICT_NAMES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute in _LOOP_NAMES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and type(argument) is str and argument not in _DICT_NAMES:
            if argument in obj:
                return obj[argument]
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        context.parent[STEPS].take(1)
        if isinstance(function, LoopContext) and args:  # `loop(children)` of a recursive loop
            args = (_counted(context, args[0], context.parent[STEPS].call_cost), *args[1:])
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            too_much = not isinstance(right, int) or _bits(left) * abs(right) > _BITS_MAX
        elif isinstance(left, int) and isinstance(right, int):
            too_much = _bits(left) + _bits(right) > _BITS_MAX
        else:
            too_much = _repeated(left, right) > context.parent[STEPS].chars_max
        if too_much:
            raise TemplateTooLarge("a number or a repetition is too large")
        return super().call_binop(context, operator, left, right)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _repeated(left: object, right: object) -> int:
    """The length of `left * right` when one of them is a sequence, else 0."""
    if isinstance(left, int):
        left, right = right, left
    return len(left) * right if isinstance(left, str | list | tuple) and isinstance(right, int) else 0


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what an assistant said; it renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


@pass_context
def _counted(context: Context, iterable: Any, weight: int = 1) -> Any:
    """What a loop goes over, its length taken from the budget at once, or step by step where it has none."""
    steps: StepBudget = context.parent[STEPS]
    try:
        steps.take(weight * len(iterable))
    except TypeError:
        return _step_by_step(iterable, steps, weight)
    return iterable


def _step_by_step(iterable: Iterable[Any], steps: StepBudget, weight: int) -> Iterator[Any]:
    for value in iterable:
        steps.take(weight)
        yield value


def count_loops(tree: nodes.Template, weight: Callable[[nodes.For], int]) -> None:
    """Make every `for` of the template go through `_counted`; `weight`: the steps of one round."""
    for loop in tree.find_all(nodes.For):
        weighed: list[nodes.Expr] = [nodes.Const(weight(loop))]
        loop.iter = nodes.Filter(loop.iter, _COUNTED, weighed, [], None, None, lineno=loop.lineno)


class _Unclear(Exception):
    """vLLM's search stops at an assignment or a loop to more than one name, and takes "string"."""


def content_format(tree: nodes.Template, rules: Rules) -> Format:
    """How the template wants contents: "openai" (lists of parts) when it loops over one, else "string"."""
    try:
        return "openai" if _loops_over_content(tree, rules) else "string"
    except _Unclear:
        return "string"


def _loops_over_content(tree: nodes.Template, rules: Rules) -> bool:
    lists = _aliases(tree, "messages", rules)
    loops = list(tree.find_all(nodes.For))
    items = [_name(loop.target) for loop in loops if any(_reads(loop.iter, name) for name in lists)]
    in_macros = _macro_loops(tree, items) if rules.content_loop_by_macro else {}
    for loop in loops:
        if any(_reads(loop.iter, item, "content") for item in items):
            return bool(_name(loop.target))
        if isinstance(loop.iter, nodes.Name):
            parameters = in_macros.get(id(loop))
            by_name = rules.content_loop_by_name and parameters is None and loop.iter.name == "content"
            if by_name or loop.iter.name in (parameters or ()):
                return bool(_name(loop.target))
    return False


def _aliases(tree: nodes.Template, name: str, rules: Rules) -> list[str]:
    """`name`, and every name to which it (or a slice or filter of it) is assigned anywhere; `ns.x` in a namespace."""
    found = [name]
    assignments = list(tree.find_all(nodes.Assign))
    named = _named_with_namespaces if rules.content_loop_by_namespace else _named_plainly
    for alias in found:
        for assignment in assignments:
            found += [new for new in named(assignment, alias) if new not in found]
    return found


def _named_plainly(assignment: nodes.Assign, alias: str) -> list[str]:
    return [_name(assignment.target)] if _reads(assignment.node, alias) else []


def _named_with_namespaces(assignment: nodes.Assign, alias: str) -> list[str]:
    """What an assignment names as `alias` is: also what it sets in a namespace, or makes one with."""
    target, value = assignment.target, assignment.node
    if isinstance(target, nodes.NSRef):
        return [f"{target.name}.{target.attr}"] if _reads(value, alias) else []
    if not isinstance(target, nodes.Name):
        return []
    names = [target.name] if _reads(value, alias) else []
    if isinstance(value, nodes.Call) and isinstance(value.node, nodes.Name) and value.node.name == "namespace":
        names += [f"{target.name}.{pair.key}" for pair in value.kwargs if _reads(pair.value, alias)]
    return names


def _macro_loops(tree: nodes.Template, items: list[str]) -> dict[int, set[str]]:
    """Of each loop (by id) inside a macro: the macro's parameters that some call gives a message's content."""
    calls = [call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)]
    result: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        given: set[str] = set()
        for call in calls:
            if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
                pairs = [*zip(names, call.args, strict=False), *((pair.key, pair.value) for pair in call.kwargs)]
                given.update(
                    name
                    for name, value in pairs
                    if name in names and any(_reads(value, item, "content") for item in items)
                )
        for loop in macro.find_all(nodes.For):
            result[id(loop)] = given
    return result


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is this the variable `name` (or its item `key`), perhaps filtered, tested or sliced?"""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _reads(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, name, key)
    if key is None:
        return node is not None and _reads_plainly(node, name)
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == key and _reads_plainly(node.node, name)
    return isinstance(node, nodes.Getattr) and node.attr == key and _reads_plainly(node.node, name)


def _reads_plainly(node: nodes.Node, name: str) -> bool:
    if isinstance(node, nodes.Getattr):
        owner, _, attribute = name.rpartition(".")
        return bool(owner) and node.attr == attribute and _reads_plainly(node.node, owner)
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _Unclear
    return target.name
