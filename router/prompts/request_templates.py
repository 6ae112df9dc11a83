"""Chat templates that requests bring: within bounds of memory, too, which a client's program would not keep to itself.

Only filters and methods whose result is bounded before it is made may be used; what is made is counted, whatever
becomes of it. A template that wants more is not rendered here: its prompt is routed by what else is known of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import BlockReference, Context, LoopContext, Macro

from router.prompts.templates import STEPS, ChatEnvironment, StepBudget, TemplateTooLarge, count_loops

_FILTERS = frozenset(
    """
    abs capitalize count d default dictsort first float indent int items join last length list lower map max min reject
    rejectattr replace reverse round select selectattr sort string title tojson trim unique upper
    """.split()
)
_TEXTUAL = frozenset(("capitalize", "indent", "join", "lower", "replace", "string", "title", "tojson", "trim", "upper"))
_METHODS = frozenset(
    """
    capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace isupper
    join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines
    startswith strip swapcase title upper
    """.split()
)
_ITEM_CHARS = 64  # what an item of a list or a dict is counted as
_DATA_CHARS = 16  # of text in a loop's body, for one step
_INDENT_MAX = 16
_PLAIN = (str, int, float, type(None))
_CONCATENATED, _COUNTED = "concatenated ", "made "  # with a blank, so that no template can name it


class RequestEnvironment(ChatEnvironment):
    """The same dialect, less what can't be bounded. All that a rendering makes has room in its `chars_max`."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, clock: Callable[[], Any]) -> None:
        super().__init__(clock)
        own = {name: made for name, made in self.filters.items() if name.endswith(" ")}
        self.filters = {name: _bounded(name, self.filters[name]) for name in _FILTERS} | own
        self.filters |= {_CONCATENATED: _concatenated, _COUNTED: _counted}
        self.finalize = _shown

    def prepare(self, tree: nodes.Template) -> int:
        """A step of a loop counts for as much as its body has."""
        count_loops(tree, lambda loop: sum(map(_weight, loop.body)))
        for found in list(tree.find_all(nodes.Concat)):
            _become(found, nodes.Filter(nodes.List(list(found.nodes)), _CONCATENATED, [], [], None, None))
        for cut in [one for one in tree.find_all(nodes.Getitem) if isinstance(one.arg, nodes.Slice)]:
            _become(cut, nodes.Filter(copy.copy(cut), _COUNTED, [], [], None, None))
        return _weight(tree)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        steps: StepBudget = context.parent[STEPS]
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            if name not in _METHODS:
                raise TemplateTooLarge(f"{name} is not bounded")
            _foresee(steps, name, owner, args, kwargs)
        elif hasattr(function, "__wrapped__"):  # the sandbox's `format`
            raise TemplateTooLarge("format is not bounded")
        elif isinstance(function, Macro | BlockReference | LoopContext):
            steps.take(steps.call_cost)
        return _made(steps, super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and not isinstance(left, int | float):
            raise TemplateTooLarge("format is not bounded")
        return _made(context.parent[STEPS], super().call_binop(context, operator, left, right))


def _become(node: nodes.Node, other: nodes.Node) -> None:
    """In its place, wherever it stands."""
    node.__class__ = other.__class__
    node.__dict__ = {**other.__dict__, "lineno": node.lineno, "environment": node.environment}


def _weight(node: nodes.Node) -> int:
    """Steps that one evaluation may be worth."""
    parts = [node, *node.find_all(nodes.Node)]
    return sum(1 + (len(part.data) // _DATA_CHARS if isinstance(part, nodes.TemplateData) else 0) for part in parts)


def _bounded(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is counted; where it could be much larger than what it is made of, before it is made."""
    passed = getattr(make, "jinja_pass_arg", None)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        steps: StepBudget = context.parent[STEPS]
        if name in _TEXTUAL:
            if name == "join":
                value = list(value)
            _walk(steps, (value, args, kwargs))
            _foresee(steps, name, value, args, kwargs)
        first = () if passed is None else (_argument(context, passed.name),)
        return _made(steps, make(*first, value, *args, **kwargs))

    return bounded


def _argument(context: Context, kind: str) -> Any:
    return {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[kind]


def _foresee(steps: StepBudget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Room for what will be made, where that is not about as long as what there is."""
    given = [*args, *kwargs.values()]
    longest = max((len(one) for one in given if isinstance(one, str)), default=0)
    if name == "replace":
        steps.make((str(value).count(str(args[0])) if args else len(str(value)) + 1) * longest)
    elif name == "join" and isinstance(value, str):
        items = list(given[0]) if given else []
        steps.make(len(value) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
    elif name == "join":
        steps.make(longest * len(value))
    elif name in ("indent", "tojson"):
        width = max([longest, *(one for one in given if isinstance(one, int))], default=0)
        if width > _INDENT_MAX:
            raise TemplateTooLarge("an indentation is too wide")
        steps.make(_INDENT_MAX * str(value).count("\n"))


def _walk(steps: StepBudget, value: Any) -> None:
    """A step for each value within, and room for all texts: what is made of them has each as often as it is there."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        steps.take(1)
        if isinstance(one, str):
            steps.make(len(one))
        elif isinstance(one, dict):
            waiting += one.keys()
            waiting += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif not isinstance(one, _PLAIN) and hasattr(one, "_Namespace__attrs"):
            raise TemplateTooLarge("a namespace is no text")


def _made(steps: StepBudget, value: Any) -> Any:
    if isinstance(value, str):
        steps.make(len(value))
    elif isinstance(value, list | tuple | dict | set):
        steps.make(_ITEM_CHARS * len(value))
    return value


@pass_context
def _counted(context: Context, value: Any) -> Any:
    return _made(context.parent[STEPS], value)


@pass_context
def _concatenated(context: Context, values: list[Any]) -> str:
    _walk(context.parent[STEPS], values)
    return "".join(map(str, values))


@pass_context
def _shown(context: Context, value: Any) -> Any:
    """Of what is put out, also into a variable."""
    if not isinstance(value, int | float):
        _walk(context.parent[STEPS], value)
    return value
