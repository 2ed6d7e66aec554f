"""Looks names up in Python source without importing it: what `torch.optim.Adam` is costs no import of torch."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True, eq=False)
class Module:
    """The top level of one source file: what each name is bound to, and the modules it takes `*` from."""

    name: str
    is_package: bool
    bindings: dict[str, ast.stmt]
    stars: tuple[str, ...]

    def absolute(self, node: ast.ImportFrom) -> str:
        """Returns the absolute name of the module that `from ... import` names."""
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join(parts + ([node.module] if node.module else []))


@dataclass(frozen=True, eq=False)
class Found:
    """A class or function, or an assigned expression, and the module that holds it."""

    module: Module
    node: Definition | ast.expr

    @property
    def dotted(self) -> str:
        """Where it is defined, however it was reached."""
        return f"{self.module.name}.{getattr(self.node, 'name', '')}"


@cache
def load(name: str) -> Module | None:
    """Parses the module called `name`; None where there is none or its source is not Python."""
    path = _locate(name)
    if path is None or path.suffix != ".py":
        return None
    module = Module(name, path.stem == "__init__", {}, ())
    stars = []
    for statement in _top_level(ast.parse(path.read_bytes()).body):
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            stars.append(module.absolute(statement))
        for bound in _bound_names(statement):
            module.bindings.setdefault(bound, statement)
    return Module(name, module.is_package, module.bindings, tuple(stars))


def _locate(name: str) -> Path | None:
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)  # a top-level name: nothing is imported to find it
    except ValueError:  # __main__ and its like
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _top_level(statement.body)
            for handler in getattr(statement, "handlers", ()):
                yield from _top_level(handler.body)
            yield from _top_level(getattr(statement, "orelse", ()))


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            yield statement.name
        case ast.Import() | ast.ImportFrom():
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            yield name


def lookup(module_name: str, name: str, seen: frozenset[str] = frozenset()) -> Found | Module | None:
    """Follows `name` from a module through imports, `*` and assignments to what it is; None where it is lost."""
    module, here = load(module_name), f"{module_name}.{name}"
    if module is None or here in seen:
        return None
    seen |= {here}
    statement = module.bindings.get(name)
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            return Found(module, statement)
        case ast.Import():
            return _follow_import(statement, name)
        case ast.ImportFrom():
            original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
            source = module.absolute(statement)
            return lookup(source, original, seen) or load(f"{source}.{original}")
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return follow(module, value, seen) or Found(module, value)
    for star in module.stars:
        if found := lookup(star, name, seen):
            return found
    return load(here) if module.is_package else None


def _follow_import(statement: ast.Import, name: str) -> Module | None:
    for alias in statement.names:
        if (alias.asname or alias.name.partition(".")[0]) == name:
            return load(alias.name if alias.asname else name)
    return None


def follow(module: Module, expression: ast.expr, seen: frozenset[str] = frozenset()) -> Found | Module | None:
    """Follows a plain or dotted name that is written in `module`."""
    match expression:
        case ast.Name(id=name):
            return lookup(module.name, name, seen)
        case ast.Attribute(value=value, attr=attribute):
            owner = follow(module, value, seen)
            return lookup(owner.name, attribute, seen) if isinstance(owner, Module) else None
    return None


def public_names(module_name: str) -> list[str]:
    """Returns the dotted public names that a module binds or takes from others, for a hint."""
    module = load(module_name)
    if module is None:
        return []
    names = [name for name, node in module.bindings.items() if isinstance(node, ast.ClassDef | ast.ImportFrom)]
    for star in module.stars:
        names += [name.rpartition(".")[2] for name in public_names(star)]
    return [f"{module_name}.{name}" for name in names if not name.startswith("_")]


def sibling_modules(name: str) -> list[str]:
    """Returns the dotted names of the modules beside the one called `name`, for a hint."""
    parent = name.rpartition(".")[0]
    path = _locate(parent) if parent else None
    if path is None or path.stem != "__init__":
        return []
    found = (entry.stem if entry.suffix == ".py" else entry.name for entry in sorted(path.parent.iterdir()))
    return [f"{parent}.{stem}" for stem in found if stem.isidentifier() and not stem.startswith("_")]
