"""The arguments of a class or function, from its source alone."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

from src.config.annotation import Member, members_of
from src.config.source import Found, Module, follow, lookup


@dataclass(frozen=True)
class Argument:
    """One argument: its default as it is written (None: required) and the class whose signature has it."""

    name: str
    default: str | None
    owner: str
    annotation: ast.expr | None = field(repr=False)
    module: Module = field(repr=False)

    @property
    def members(self) -> list[Member]:
        """What may be written for it."""
        return [] if self.annotation is None else members_of(self.annotation, self.module)


@dataclass(frozen=True)
class Signature:
    """Arguments by name.

    Attributes:
        origin: The dotted name of the class or function where it is defined.
        arguments: Those that can be given by name.
        is_open: Whether it takes others too, which cannot be known.
        name: The dotted name by which it was asked for.
    """

    origin: str
    arguments: dict[str, Argument]
    is_open: bool = False
    name: str = ""


@cache
def signature_of(dotted: str) -> Signature | None:
    """Returns the signature of a dotted name; None where that names no class or function."""
    module, _, name = dotted.rpartition(".")
    found = lookup(module, name)
    if not isinstance(found, Found) or isinstance(found.node, ast.expr):
        return None
    return replace(_signature(found), name=dotted)


def _signature(found: Found) -> Signature:
    if isinstance(found.node, ast.FunctionDef):
        return _of_function(found, found.node, None)
    return _of_class(found) or Signature(found.dotted, {})


def _of_class(found: Found) -> Signature | None:
    """The class's own `__init__`, its data fields, or what its bases have; None where that is `object`'s."""
    node = found.node
    assert isinstance(node, ast.ClassDef)
    if init := _method(node, "__init__"):
        return replace(_of_function(found, init, node), origin=found.dotted)
    inherited = _inherited(found)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = {argument.name: argument for argument in _fields(found, node)}
        return Signature(found.dotted, (inherited.arguments if inherited else {}) | fields)
    return replace(inherited, origin=found.dotted) if inherited else None


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name]
    return methods[-1] if methods else None  # the last one: those before it are overloads


def _inherited(found: Found) -> Signature | None:
    assert isinstance(found.node, ast.ClassDef)
    lost = False
    for base in found.node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        parent = follow(found.module, base)
        if isinstance(parent, Found) and isinstance(parent.node, ast.ClassDef):
            if signature := _of_class(parent):
                return signature
        else:
            lost |= ast.unparse(base).rpartition(".")[2] not in {"object", "ABC", "Generic", "Protocol"}
    return Signature(found.dotted, {}, is_open=True) if lost else None


def _fields(found: Found, node: ast.ClassDef) -> Iterator[Argument]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.unparse(item.annotation):
                continue
            default = ast.unparse(item.value) if item.value else None
            yield Argument(item.target.id, default, found.dotted, item.annotation, found.module)


def _of_function(found: Found, function: ast.FunctionDef, owner: ast.ClassDef | None) -> Signature:
    written = function.args
    positional = [*written.posonlyargs, *written.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(written.defaults)) + [*written.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(written.kwonlyargs, written.kw_defaults, strict=True)]
    arguments = {
        argument.arg: Argument(
            argument.arg, ast.unparse(default) if default else None, found.dotted, argument.annotation, found.module
        )
        for argument, default in pairs[1 if owner else 0 :]
    }
    if written.kwarg is None:
        return Signature(found.dotted, arguments)
    passed, is_open = _passed_on(found, function, written.kwarg.arg)
    further = {name: argument for name, argument in passed.items() if name not in arguments}
    return Signature(found.dotted, arguments | further, is_open)


def _passed_on(found: Found, function: ast.FunctionDef, kwargs: str) -> tuple[dict[str, Argument], bool]:
    """Arguments that reach another signature through `**kwargs`; open where no such call can be followed."""
    arguments = {
        name: Argument(name, "...", found.dotted, None, found.module) for name in _taken_by_name(function, kwargs)
    }
    receivers = [call for call in ast.walk(function) if isinstance(call, ast.Call) and _hands_on(call, kwargs)]
    for call in receivers:
        signature = _receiver(found, call)
        if signature is None or signature.is_open:
            return arguments, True
        given = len(call.args) - (ast.unparse(call.func).endswith(".__init__") and not _is_super(call.func))
        free = list(signature.arguments.items())[given:]
        named = {keyword.arg for keyword in call.keywords}
        arguments |= {name: argument for name, argument in free if name not in named}
    return arguments, not receivers


def _taken_by_name(function: ast.FunctionDef, kwargs: str) -> Iterator[str]:
    """The x of `kwargs["x"]`, `kwargs.get("x")` and `kwargs.pop("x")`."""
    for node in ast.walk(function):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key)) if name == kwargs:
                yield key
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="get" | "pop"),
                args=[ast.Constant(value=str() as key), *_],
            ) if name == kwargs:
                yield key


def _hands_on(call: ast.Call, kwargs: str) -> bool:
    return any(
        keyword.arg is None and isinstance(keyword.value, ast.Name) and keyword.value.id == kwargs
        for keyword in call.keywords
    )


def _is_super(function: ast.expr) -> bool:
    return ast.unparse(function).startswith("super(")


def _receiver(found: Found, call: ast.Call) -> Signature | None:
    if _is_super(call.func):
        return _inherited(found) if isinstance(found.node, ast.ClassDef) else None
    target = call.func
    if isinstance(target, ast.Attribute) and target.attr == "__init__":
        target = target.value
    receiver = follow(found.module, target)
    if not isinstance(receiver, Found) or isinstance(receiver.node, ast.expr) or receiver.node is found.node:
        return None
    return _signature(receiver)
