"""What may be written in YAML for an annotation that was read from source and never evaluated."""

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from src.config.source import Found, Module, follow

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Member:
    """One alternative of an annotation: its name for messages, and whether it takes a value."""

    text: str
    accepts: Test


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


PLAIN = {
    "int": Member("int", _is_int),
    "float": Member("float", lambda value: _is_int(value) or isinstance(value, float)),
    "bool": Member("true/false", lambda value: isinstance(value, bool)),
    "str": Member("str", lambda value: isinstance(value, str)),
    "None": Member("null", lambda value: value is None),
}
ANYTHING = Member("anything", lambda value: True)
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "set", "Set", "frozenset"}
TUPLES = {"tuple", "Tuple"}
DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
WRAPPERS = {"Annotated", "Final", "ClassVar", "Required", "NotRequired"}


def fits(members: Iterable[Member], value: Any) -> bool:
    """Whether a value is one of the alternatives; an annotation of classes alone is left to the class itself."""
    members = list(members)
    return not members or any(member.accepts(value) for member in members)


def members_of(annotation: ast.expr | None, module: Module) -> list[Member]:
    """Returns what a person can write for an annotation.

    A class such as Tensor cannot be written and adds nothing; what cannot be followed in the source is `ANYTHING`.
    """
    match annotation:
        case ast.Constant(value=None):
            return [PLAIN["None"]]
        case ast.Constant(value=str() as quoted):
            return members_of(ast.parse(quoted, mode="eval").body, module)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return members_of(left, module) + members_of(right, module)
        case ast.Subscript(value=origin, slice=ast.Tuple(elts=arguments)):
            return _generic(_last_name(origin), arguments, module)
        case ast.Subscript(value=origin, slice=argument):
            return _generic(_last_name(origin), [argument], module)
        case ast.Name() | ast.Attribute():
            return _named(annotation, module)
    return [ANYTHING]


def _last_name(expression: ast.expr) -> str:
    return ast.unparse(expression).rpartition(".")[2]


def _generic(origin: str, arguments: list[ast.expr], module: Module) -> list[Member]:
    inner = [] if origin == "Literal" else [members_of(argument, module) for argument in arguments]
    if origin == "Literal":
        return [_literal(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
    if origin in {"Union", "Optional"}:
        none = [PLAIN["None"]] if origin == "Optional" else []
        return [member for alternatives in inner for member in alternatives] + none
    if origin in WRAPPERS:
        return inner[0]
    if origin in LISTS:
        return [_list_of(inner[0])]
    if origin in TUPLES:
        open_ended = isinstance(arguments[-1], ast.Constant) and arguments[-1].value is Ellipsis
        return [_list_of(inner[0]) if open_ended else _tuple_of(inner)]
    if origin in DICTS:
        return [_dict_of(inner[1])]
    return [] if origin in {"Callable", "type", "Type"} else [ANYTHING]


def _literal(choice: Any) -> Member:
    return Member(str(choice), lambda value: value == choice and type(value) is type(choice))


def _names(members: Iterable[Member]) -> str:
    return " | ".join(dict.fromkeys(member.text for member in members))


def _list_of(items: list[Member]) -> Member:
    text = f"list[{_names(items)}]" if items else "list"
    return Member(text, lambda value: isinstance(value, list) and all(fits(items, item) for item in value))


def _tuple_of(items: list[list[Member]]) -> Member:
    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) == len(items) and all(map(fits, items, value))

    return Member(f"[{', '.join(_names(item) or '...' for item in items)}]", accepts)


def _dict_of(values: list[Member]) -> Member:
    def accepts(value: Any) -> bool:
        return isinstance(value, Mapping) and all(fits(values, item) for item in value.values())

    return Member("section", accepts)


def _named(name: ast.Name | ast.Attribute, module: Module) -> list[Member]:
    last = _last_name(name)
    if isinstance(name, ast.Name) and last in PLAIN:
        return [PLAIN[last]]
    if last in LISTS | TUPLES:
        return [_list_of([])]
    if last in DICTS:
        return [_dict_of([])]
    if last in {"Any", "object"}:
        return [ANYTHING]
    match follow(module, name):
        case Found(node=ast.ClassDef() as found):
            return [ANYTHING] if _written_by_name(found) else []
        case Found(module=there, node=ast.expr() as alias):
            return members_of(alias, there) if not isinstance(alias, ast.Call) else [ANYTHING]
    return [ANYTHING]


def _written_by_name(node: ast.ClassDef) -> bool:
    """Members of an enumeration and typed dictionaries are written as text or as a section."""
    return any(_last_name(base).endswith(("Enum", "Dict")) for base in node.bases)


def describe(members: Iterable[Member]) -> str:
    """Returns the alternatives in words, for a message."""
    *others, last = dict.fromkeys(member.text for member in members)
    return f"{', '.join(others)} or {last}" if others else last
