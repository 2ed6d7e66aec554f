"""The arguments of a class or function and what they take, from source alone: `torch.optim.Adam` costs no torch."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.machinery import PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

Definition = ast.ClassDef | ast.FunctionDef
Bindings = dict[str, Definition | ast.expr | str]
"""The top level of a source file: what each name is, or the dotted name that it is imported from."""

ANYTHING = "anything"
KINDS = {type(None): "null", bool: "true/false", int: "int", float: "float", str: "str", list: "list", dict: "section"}
ANNOTATIONS = (
    {"None": "null", "bool": "true/false", "int": "int", "float": "float", "str": "str"}
    | dict.fromkeys(("list", "List", "tuple", "Tuple", "Sequence", "Iterable"), "list")
    | dict.fromkeys(("dict", "Dict", "Mapping"), "section")
)
"""How values and annotations are called in messages."""

PLAIN_BASES = {"object", "ABC", "Generic", "Protocol"}
"""Bases that cannot be followed in source and take no arguments."""


@dataclass(frozen=True, eq=False)
class Found:
    """A class, a function or an assigned expression, and the module that holds it."""

    module: str
    node: Definition | ast.expr


@dataclass(frozen=True)
class Argument:
    """One argument: its default as it is written (None: required), and what it expects in place of a wrong value."""

    default: str | None
    expected: Callable[[Any], str | None] = field(default=lambda value: None, repr=False)


@dataclass(frozen=True)
class Signature:
    """What can be given by name to what `name` names, and whether there may be more that cannot be known."""

    name: str
    arguments: dict[str, Argument]
    is_open: bool = False


@cache
def signature_of(dotted: str) -> Signature | None:
    """Returns the signature of a dotted name; None where that names no class or function."""
    found = _lookup(dotted)
    signature = _signature(found) if found else None
    return replace(signature, name=dotted) if signature else None


def public_names(module: str) -> list[str]:
    """Returns the dotted public names that a module defines or takes from others, for a hint."""
    bindings = _load(module)
    names = [name for name, bound in bindings.items() if isinstance(bound, ast.ClassDef | str)]
    stars = [name[1:] for name in bindings if name.startswith("*")]
    names += [name.rpartition(".")[2] for star in stars for name in public_names(star)]
    return [f"{module}.{name}" for name in names if name[0].isalpha()]


@cache
def _load(module: str) -> Bindings:
    """Parses a module; `from x import *` is bound as `*x`."""
    path = _locate(module)
    if path is None or path.suffix != ".py":
        return {}
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    pairs = [pair for node in _statements(ast.parse(path.read_bytes())) for pair in _bindings(node, package)]
    return dict(reversed(pairs))  # of several, as under `if` and `else`, the first


def _locate(name: str) -> Path | None:
    top, *rest = name.split(".")
    spec = find_spec(top)  # a top-level name: nothing is imported to find it
    for part in rest:
        folders = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(folders)) if spec and folders else None
    return Path(spec.origin) if spec and spec.origin else None


def _statements(block: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module, also those under `if`, `try` and `with`."""
    for part in ("body", "handlers", "orelse"):
        for statement in getattr(block, part, []):
            yield statement
            if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _statements(statement)


def _bindings(statement: ast.stmt, package: str) -> Iterator[tuple[str, Definition | ast.expr | str]]:
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            yield statement.name, statement
        case ast.Assign(value=value, targets=targets):
            yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
        case ast.ImportFrom(names=names, level=level, module=source):
            origin = resolve_name("." * level + (source or ""), package)
            for alias in names:
                star = alias.name == "*"
                yield f"*{origin}" if star else alias.asname or alias.name, f"{origin}.{alias.name}"


def _lookup(dotted: str, seen: frozenset[str] = frozenset()) -> Found | None:
    """Follows the name in a module through imports, `*` and assignments to what it is; None where it is lost."""
    module, _, name = dotted.rpartition(".")
    bindings = _load(module) if module and dotted not in seen else {}
    seen |= {dotted}
    match bindings.get(name):
        case None:
            found = (_lookup(f"{star[1:]}.{name}", seen) for star in bindings if star.startswith("*"))
            return next((node for node in found if node), None)
        case str() as origin:
            return _lookup(origin, seen)
        case ast.Name(id=other):
            return _lookup(f"{module}.{other}", seen)
        case bound:
            return Found(module, bound)


def _signature(found: Found) -> Signature | None:
    match found.node:
        case ast.FunctionDef() as function:
            return _of_function(found, function)
        case ast.ClassDef(body=body, decorator_list=decorators):
            own = [item for item in body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
            if own:
                return _of_function(found, own[-1])  # the last: those before it are overloads
            return Signature("", {}, is_open=True) if decorators else _inherited(found)  # one may be `dataclass`
    return None


def _inherited(found: Found) -> Signature:
    """The first `__init__` that a base has; open where the base cannot be followed."""
    for name in [ast.unparse(base).partition("[")[0] for base in getattr(found.node, "bases", [])]:
        parent = _lookup(f"{found.module}.{name}")
        signature = (_signature(parent) if parent else None) or Signature("", {}, is_open=name not in PLAIN_BASES)
        if signature.arguments or signature.is_open:
            return signature
    return Signature("", {})


def _of_function(found: Found, function: ast.FunctionDef) -> Signature:
    written = function.args
    positional = [*written.posonlyargs, *written.args]
    defaults = [None] * (len(positional) - len(written.defaults)) + list(written.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(written.kwonlyargs, written.kw_defaults, strict=True)]
    arguments = {}
    for argument, default in pairs[isinstance(found.node, ast.ClassDef) :]:  # without self
        expected = partial(_expected, argument.annotation, found.module)
        arguments[argument.arg] = Argument(ast.unparse(default) if default else None, expected)
    passed, is_open = _passed_on(found, function, written.kwarg.arg) if written.kwarg else ({}, False)
    return Signature("", arguments | passed | arguments, is_open)  # its own first, as calls by position need


def _passed_on(found: Found, function: ast.FunctionDef, kwargs: str) -> tuple[dict[str, Argument], bool]:
    """What reaches other signatures through `**kwargs`; open where no call that takes them can be followed."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    popped = [call.args[0] for call in calls if ast.unparse(call.func) in (f"{kwargs}.pop", f"{kwargs}.get")]
    arguments = {str(name.value): Argument("...") for name in popped if isinstance(name, ast.Constant)}
    receivers = [call for call in calls if any(k.arg is None and ast.unparse(k.value) == kwargs for k in call.keywords)]
    for call in receivers:
        target = ast.unparse(call.func)
        signature = _receiver(found, target)
        if signature is None or signature.is_open:
            return arguments, True
        given = len(call.args) - (target.endswith(".__init__") and target != "super().__init__")  # self
        names = {keyword.arg for keyword in call.keywords}
        arguments |= {name: what for name, what in list(signature.arguments.items())[given:] if name not in names}
    return arguments, not receivers


def _receiver(found: Found, target: str) -> Signature | None:
    if target == "super().__init__":
        return _inherited(found)
    receiver = _lookup(f"{found.module}.{target.removesuffix('.__init__')}")
    return _signature(receiver) if receiver and receiver.node is not found.node else None


def _expected(annotation: ast.expr | None, module: str, value: Any) -> str | None:
    """What a person can write for an annotation, where the value is none of it."""
    kinds, kind = list(dict.fromkeys(_kinds(annotation, module))), KINDS.get(type(value), "")
    accepted = {kind, repr(value), ANYTHING, *(["float"] if kind == "int" else [])}
    return None if not kinds or accepted & set(kinds) else " or ".join(kinds)


def _kinds(annotation: ast.expr | None, module: str) -> list[str]:
    """What can be written for an annotation; nothing for a class such as Tensor."""
    name = ast.unparse(annotation) if annotation else ""
    match annotation:
        case ast.Constant(value=str() as quoted):
            return _kinds(ast.parse(quoted, mode="eval").body, module)
        case ast.BinOp(left=left, right=right):
            return _kinds(left, module) + _kinds(right, module)
        case ast.Subscript(value=origin, slice=inner):
            members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            match ast.unparse(origin).rpartition(".")[2]:
                case "Literal":
                    return [ast.unparse(member) for member in members]
                case "Union" | "Optional" as union:
                    kinds = [kind for member in members for kind in _kinds(member, module)]
                    return kinds + (["null"] if union == "Optional" else [])
                case generic:
                    return [ANNOTATIONS.get(generic, ANYTHING)]
        case ast.Constant() | ast.Name() | ast.Attribute() if name in ANNOTATIONS:
            return [ANNOTATIONS[name]]
        case ast.Name():
            match _lookup(f"{module}.{name}"):
                case Found(node=ast.ClassDef()):
                    return []
                case Found(module=there, node=ast.BinOp() | ast.Subscript() as alias):
                    return _kinds(alias, there)
    return [ANYTHING]
