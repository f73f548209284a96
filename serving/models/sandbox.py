"""The sandbox that chat templates run in: Jinja's immutable one, with bounds on time and memory.

Jinja's sandbox keeps a template from the process, but lets it loop for ever and make strings of any size. Here every
render has a `Meter`. When a template is compiled, what can take long or make something large is turned into calls of
the meter: loops and macros (`tick`), `+ * ** % ~`, slices, literals of lists and dicts, and what is printed. Filters
and methods of strings, lists and dicts ask it too, and those with no use in a chat template are not there.

Nothing is computed when a template is compiled: `{{ 'x' * 10**10 }}` is refused in its render, and only there.
"""
# ruff: noqa: N802 - visitors are named after the nodes that they visit

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence, Set
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from serving.models.meter import ELEMENT, MAX_BITS, MAX_VALUE, MAX_WIDTH, TOO_MUCH, BoundReached, Meter


class _Context(Context):
    meter: Meter

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        context = super().derived(locals)
        assert isinstance(context, _Context)
        context.meter = self.meter
        return context


_SHORT = 8  # terms of a sum, apart from constants
_FEW = 100  # comparisons, each of which takes milliseconds at worst


class _Metered(NodeTransformer):
    """Puts the meter into a parsed template."""

    def __init__(self, template: nodes.Template) -> None:
        self._wary = sum(1 for _ in template.find_all((nodes.Compare, nodes.Test))) > _FEW

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _meter("passing", [node], node) if self._wary else node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        return _meter("passing", [node], node) if self._wary else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._begin(node)
        if isinstance(node.test, nodes.Expr):
            node.test = _meter("passing", [node.test], node)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._begin(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._begin(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._begin(node)

    def _begin(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        size = 0
        for part in node.find_all((nodes.TemplateData, nodes.Const)):
            text = part.data if isinstance(part, nodes.TemplateData) else part.value  # type: ignore[attr-defined]
            size += len(text) if isinstance(text, str) else 0
        self.generic_visit(node)
        tick = _meter("tick", [nodes.Const(size)], node)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """What is printed is counted there. Short sums, which most templates are made of, need no more than that."""
        node.nodes = [self._sum(child) if self._is_short(child) else self.visit(child) for child in node.nodes]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        if self._is_short(node):
            return _meter("made", [self._sum(node)], node)
        return _meter("add", [self.visit(term) for term in _terms(node)], node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        if self._is_short(node):
            return _meter("made", [self._sum(node)], node)
        return _meter("concat", [self.visit(term) for term in node.nodes], node)

    def _is_short(self, node: nodes.Node) -> bool:
        """Few enough terms that the largest they can be does no harm."""
        return isinstance(node, nodes.Add | nodes.Concat) and (
            sum(not isinstance(term, nodes.Const) for term in _terms(node)) <= _SHORT
        )

    def _sum(self, node: nodes.Expr) -> nodes.Expr:
        """A sum as it was, with its terms metered."""
        terms: list[nodes.Expr] = [self.visit(term) for term in _terms(node)]
        if isinstance(node, nodes.Concat):
            return nodes.Concat(terms, lineno=node.lineno)
        total, *others = terms
        for term in others:
            total = nodes.Add(total, term, lineno=node.lineno)
        return total

    def visit_Mul(self, node: nodes.Mul) -> nodes.Node:
        return _meter("mul", [self.visit(node.left), self.visit(node.right)], node)

    def visit_Pow(self, node: nodes.Pow) -> nodes.Node:
        return _meter("pow", [self.visit(node.left), self.visit(node.right)], node)

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:
        return _meter("mod", [self.visit(node.left), self.visit(node.right)], node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None) for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _meter("cut", [node.node, *bounds], node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def _literal(self, node: nodes.Expr, parts: Sequence[nodes.Expr]) -> nodes.Node:
        plain = all(isinstance(part, nodes.Const) for part in parts)
        self.generic_visit(node)
        return node if plain else _meter("made", [node], node)

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise jinja2.TemplateSyntaxError("a prompt is not escaped", node.lineno)


def _terms(node: nodes.Expr) -> list[nodes.Expr]:
    """What a chain of `+`, or a `~`, puts together."""
    if isinstance(node, nodes.Concat):
        return node.nodes
    terms: list[nodes.Expr] = []
    while isinstance(node, nodes.Add):
        terms.append(node.right)
        node = node.left
    return [node, *reversed(terms)]


def _meter(name: str, arguments: list[nodes.Expr], node: nodes.Node) -> nodes.Call:
    """A call that `_Generator` writes as the meter's own: no template can write an EnvironmentAttribute itself."""
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=node.lineno)


class _Generator(CodeGenerator):
    def visit_Call(self, node: nodes.Call, frame: Any, forward_caller: bool = False) -> None:
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"context.meter.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible  # Jinja would compute it now
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        given_out = frame.buffer is None and frame.block is None  # and counted by who renders
        self.write("str(" if given_out else "context.meter.text(")


class _Namespace(Namespace):
    """Does not print what it holds: it can hold itself, and others twice."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a `Meter` for every render; see `render`."""

    context_class = _Context
    code_generator_class = _Generator

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"], self.globals["cycler"]
        self.filters = {
            name: filter_ if name in _LIGHT else _bounded(name, filter_)
            for name, filter_ in (self.filters | {"tojson": _tojson}).items()
            if name not in _ABSENT
        }

    def _generate(self, source: nodes.Template, *names: Any, **options: Any) -> str:
        return super()._generate(_Metered(source).visit(source), *names, **options)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in the base
        assert isinstance(__context, _Context)
        meter = __context.meter
        meter.tick()
        if isinstance(__obj, Macro):
            if __obj.catch_varargs or __obj.catch_kwargs:
                meter.weight((args, kwargs))  # they become a tuple and a dict of the template's
            return super().call(__context, __obj, *args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, BuiltinMethodType | MethodType) and not isinstance(owner, type | ModuleType):
            name = __obj.__name__
            if name == "join":
                args = (list(meter.ticking(args[0])), *args[1:])  # it is read twice
            _check_method(meter, owner, name, args, kwargs)
            result = super().call(__context, __obj, *args, **kwargs)
            return meter.made(result, weigh=False) if isinstance(owner, str) or name == "copy" else result
        result = super().call(__context, __obj, *args, **kwargs)
        return meter.made(result) if __obj is dict or isinstance(owner, type) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As the base class does it, with bounds; called whenever a template gets hold of `str.format`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        if isinstance(value.__self__, Markup):
            raise BoundReached("it formats escaped text")
        form, mapped = value.__self__, value.__name__ == "format_map"

        def bounded(*args: Any, **kwargs: Any) -> str:
            if len(form) > MAX_VALUE // ELEMENT:
                raise BoundReached(TOO_MUCH)
            if mapped:
                (kwargs,), args = args, ()
            return _Formatter(self).vformat(form, args, kwargs)

        return bounded

    def render(self, template: jinja2.Template, seconds: float, variables: dict[str, Any]) -> Iterator[str]:
        """The pieces of what `template` prints. Raises `BoundReached`, and whatever the template does."""
        context = template.new_context(variables)
        assert isinstance(context, _Context)
        context.meter = Meter(seconds)
        return template.root_render_func(context)


class _Formatter(SandboxedFormatter):
    """`str.format` with a bound on what it makes."""

    def __init__(self, env: jinja2.Environment) -> None:
        super().__init__(env)
        self._made = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        if re.search(r"\d{4}", format_spec):
            raise BoundReached("it pads too far")
        text: str = super().format_field(value, format_spec)
        self._made += len(text) + ELEMENT  # a field takes its time
        if self._made > MAX_VALUE:
            raise BoundReached(TOO_MUCH)
        return text


# Methods of builtin values. Those that are not here make much of little, or bytes, or change what they belong to.

_SAME_SIZE = {
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rstrip", "startswith",
    "strip", "swapcase", "title", "upper",
}  # fmt: skip
_METHODS: dict[type, Set[str]] = {
    str: _SAME_SIZE
    | {"center", "expandtabs", "join", "ljust", "replace", "rjust", "rsplit", "split", "splitlines", "zfill"},
    dict: {"copy", "get", "items", "keys", "values"},
    list: {"copy", "count", "index"},
    tuple: {"count", "index"},
    int: {"bit_length"},
    float: {"is_integer"},
    LoopContext: {"cycle", "changed"},
}


def _check_method(meter: Meter, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises `BoundReached` where calling this method of a value would make too much."""
    names = _METHODS.get(str if isinstance(owner, str) else type(owner))
    if names is None or name not in names:
        raise BoundReached(f"it calls {name} of a {type(owner).__name__}, which has no use in a prompt")
    if not isinstance(owner, str) or name in _SAME_SIZE:
        return
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args else kwargs.get("sep")
        pieces = owner.count(separator) if isinstance(separator, str) and separator else len(owner) // 2
        meter.expect(len(owner) + pieces * ELEMENT // 2)
    elif name == "replace":
        meter.expect(_replaced(owner, *args))
    elif name == "join":
        meter.expect(meter.weight(args[0]) + len(args[0]) * len(owner))
    else:  # tabs or the text itself are padded
        width = args[0] if args else kwargs.get("tabsize", 8)
        meter.expect(len(owner) + width * (owner.count("\t") if name == "expandtabs" else 1))


def _replaced(text: str, old: str, new: str, count: int | None = None) -> int:
    """The most that `replace` can give."""
    places = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    return len(text) + places * len(new)


# Filters.

_ABSENT = {"batch", "center", "pprint", "random", "slice", "striptags", "urlize", "wordwrap", "xmlattr"}
_LIGHT = {"abs", "attr", "count", "d", "default", "first", "float", "items", "last", "length"}
_PASSED: dict[str, Callable[[Context], Any]] = {
    "context": lambda context: context,
    "eval_context": lambda context: context.eval_ctx,
    "environment": lambda context: context.environment,
}


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that asks the meter before and pays after."""
    check = _CHECKS.get(name)
    wants = getattr(filter_, "jinja_pass_arg", None)
    passed = _PASSED[wants.name] if wants is not None else None

    @pass_context
    def call(context: _Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = context.meter
        meter.tick()
        if check is not None:
            value = check(meter, value, *args, **kwargs)
        result = filter_(value, *args, **kwargs) if passed is None else filter_(passed(context), value, *args, **kwargs)
        # What comes one by one may be one large thing many times.
        return meter.made(result, weigh=type(value) is not str and isinstance(value, Iterator))

    return call


def _check_items(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    """For filters that compute something of every item."""
    return meter.ticking(value) if value else value


def _check_replace(meter: Meter, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = str(value)
    meter.expect(_replaced(text, str(old), str(new), count))
    return text


def _check_join(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> list[Any]:
    values = list(meter.ticking(value))
    meter.expect(meter.weight(values) + len(values) * len(str(d)))
    return values


def _check_indent(meter: Meter, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(value)
    meter.expect(len(text) + (text.count("\n") + 1) * (ELEMENT + (width if isinstance(width, int) else len(width))))
    return text


def _check_format(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    meter.formatted(str(value), kwargs or args)
    return value


@pass_context
def _tojson(  # noqa: PLR0917 - as transformers has it
    context: _Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: without Jinja's escapes for HTML. With `indent` counted as it is made."""
    if separators is not None and sum(map(len, separators)) > 8:
        raise BoundReached("it pads too far")
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    if (indent if isinstance(indent, int) else len(indent)) > 64:
        raise BoundReached("it pads too far")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces, size = [], 0
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_VALUE:
            raise BoundReached(TOO_MUCH)
    return "".join(pieces)


def _check_list(meter: Meter, value: Any) -> Any:
    meter.expect(ELEMENT * len(value) if isinstance(value, str) else 0)
    return meter.ticking(value) if isinstance(value, Iterator) else value


def _check_slow(meter: Meter, value: Any) -> Any:
    """For filters that take Python's time for each character, or write up to twelve for it."""
    meter.expect(12 * meter.weight(value))
    return value


def _check_int(meter: Meter, value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > MAX_BITS // 4:
        raise BoundReached("it computes too large a number")
    return value


def _check_round(meter: Meter, value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > MAX_WIDTH:
        raise BoundReached("it computes too large a number")
    return value


def _check_sum(meter: Meter, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise BoundReached("it adds up what are not numbers")
    return value


_CHECKS: dict[str, Callable[..., Any]] = {
    "e": _check_slow,
    "escape": _check_slow,
    "forceescape": _check_slow,
    "format": _check_format,
    "indent": _check_indent,
    "int": _check_int,
    "join": _check_join,
    "list": _check_list,
    "map": _check_items,
    "reject": _check_items,
    "rejectattr": _check_items,
    "replace": _check_replace,
    "round": _check_round,
    "select": _check_items,
    "selectattr": _check_items,
    "sum": _check_sum,
    "title": _check_slow,
    "urlencode": _check_slow,
}
