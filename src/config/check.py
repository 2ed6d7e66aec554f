"""Checks a plain configuration: keys, types, `_target_` and its arguments, ranges; every problem at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from src.config.annotation import describe, fits
from src.config.errors import hint, nearest
from src.config.files import Provenance
from src.config.schema import EXTRAS, GROUPS, INJECTED, REQUIRED, RULES, SECTIONS, TRAINER, Config
from src.config.signature import Argument, Signature, signature_of
from src.config.source import public_names, sibling_modules
from src.config.targets import allowed_targets, is_allowed, is_listed, not_allowed

MISSING_VALUE = "???"


def check(cfg: Mapping[str, Any], provenance: Provenance, ignore: frozenset[str] = frozenset()) -> list[str]:
    """Returns every problem of a composed or stored configuration; an empty list where it is right.

    Args:
        cfg: Plain containers, interpolations resolved.
        provenance: Where each key was set, for the messages; keys that are not in it are named alone.
        ignore: Dotted keys that are known to be wrong already.
    """
    checker = _Checker(provenance, ignore, known_keys(cfg))
    return list(dict.fromkeys(checker.whole(cfg)))


def place(key: str, provenance: Provenance) -> str:
    """Returns 'file:line: ' or 'override: ' of what set a key, a key in it or the section that holds it; else ''."""
    inside = [settings for name, settings in provenance.items() if name.startswith(f"{key}.")]
    own = provenance.get(key, [])
    empty = not own or own[-1].text == "{}"  # filled by what sets a key in it
    settings = inside[-1] if inside and empty else own
    return f"{settings[-1].where}: " if settings else ""


def section_signature(path: str, node: Mapping[str, Any]) -> Signature | None:
    """Returns the arguments that a section takes; None where it has no known set of keys."""
    section = SECTIONS.get(path) or EXTRAS.get(path)
    if path == "":
        return _of_dataclass(Config)
    if path == "trainer":
        return signature_of(TRAINER)
    if "_target_" in node:
        return _with_extras(path, signature_of(str(node["_target_"])))
    return _of_dataclass(section) if section is not None and path != "scheduler" else None


def _of_dataclass(section: type) -> Signature:
    signature = signature_of(f"{section.__module__}.{section.__qualname__}")
    assert signature is not None
    return signature


def _with_extras(path: str, signature: Signature | None) -> Signature | None:
    if signature is None or path not in {"optimizer", "scheduler"}:
        return signature
    extras = _of_dataclass(EXTRAS["scheduler"]).arguments if path == "scheduler" else {}
    return replace(signature, arguments=signature.arguments | extras)


def known_keys(cfg: Mapping[str, Any]) -> list[str]:
    """Every dotted key that can be set, for the nearest right name."""
    return [f"{path}.{name}" if path else name for path, node in _sections("", cfg) for name in _names(path, node)]


def _sections(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, node
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _sections(f"{path}.{name}" if path else name, value)


def _names(path: str, node: Mapping[str, Any]) -> list[str]:
    signature = section_signature(path, node)
    names = [name for name in signature.arguments if name not in INJECTED.get(path, {})] if signature else []
    return names + (["param_groups"] if path == "optimizer" else [])


@dataclass(frozen=True)
class _Checker:
    provenance: Provenance
    ignore: frozenset[str]
    known: list[str] = field(repr=False)

    def at(self, key: str) -> str:
        where = place(key, self.provenance)
        return where if where.lstrip("+").startswith(f"{key}=") else f"{where}{key}: "

    def whole(self, cfg: Mapping[str, Any]) -> Iterator[str]:
        for name in REQUIRED:
            if name not in cfg and name not in self.ignore:
                yield f"{name}: missing" + (f"; choose one by {name}=NAME" if name in GROUPS else "")
        for name, value in cfg.items():
            if name in self.ignore and not (isinstance(value, Mapping) and "_target_" in value):
                continue
            if name in GROUPS or name in SECTIONS:
                yield from self.section(name, value)
            else:
                yield from self.value("", name, value, _of_dataclass(Config))

    def section(self, path: str, node: Any) -> Iterator[str]:
        scalars = [setting for setting in self.provenance.get(path, []) if not setting.text.startswith("{")]
        if scalars or not isinstance(node, Mapping):
            shown = scalars[-1].text if scalars else _shown(node)
            yield f"{self.at(path)}{shown} is no section; {_how_to_fill(path)}"
        elif path == "callbacks":
            for name, callback in node.items():
                yield from self.target(f"callbacks.{name}", callback)
        elif path == "trainer" or path in SECTIONS or (path in EXTRAS and path != "scheduler"):
            signature = section_signature(path, node)
            assert signature is not None
            yield from self.arguments(path, node, signature, "")
        elif path in {"scheduler", "logger"} and not node:
            return
        else:
            yield from self.target(path, node)

    def target(self, path: str, node: Any) -> Iterator[str]:
        if not isinstance(node, Mapping) or "_target_" not in node:
            yield f"{place(path, self.provenance)}{_no_target(path, node)}"
            return
        if f"{path}._target_" in self.ignore:
            return
        name = str(node["_target_"])
        fault = target_fault(name)
        if fault is not None:
            yield f"{self.at(f'{path}._target_')}{fault}"
            return
        signature = section_signature(path, node)
        assert signature is not None
        yield from self.arguments(path, node, signature)

    def arguments(
        self, path: str, node: Mapping[str, Any], signature: Signature, target: str = "_target_"
    ) -> Iterator[str]:
        injected = INJECTED.get(path, {})
        unchosen = path.partition(".")[0] in self.ignore  # another file was meant, with other arguments
        for name, value in node.items():
            key = f"{path}.{name}"
            if key in self.ignore or name == target or (unchosen and name not in signature.arguments):
                continue
            if name in injected and name in signature.arguments:
                yield f"{self.at(key)}comes from {injected[name]} and is not set here"
            elif key in EXTRAS:
                yield from self.section(key, value)
            else:
                yield from self.value(path, name, value, signature)
        needed = {name for name, argument in signature.arguments.items() if argument.default is None}
        for name in sorted(needed - node.keys() - injected.keys()):
            if not unchosen and f"{path}.{name}" not in self.ignore:
                where = place(f"{path}._target_", self.provenance) or place(path, self.provenance)
                yield f"{where}{signature.name} needs {path}.{name}"

    def value(self, path: str, name: str, value: Any, signature: Signature) -> Iterator[str]:
        key = f"{path}.{name}" if path else name
        argument = signature.arguments.get(name)
        if argument is None and not signature.is_open:
            yield self.unknown(path, key, signature)
        elif value == MISSING_VALUE:
            yield f"{self.at(key)}must be given: {key}=..."
        elif argument is not None and not fits(argument.members, value):
            yield f"{self.at(key)}{_mismatch(argument, value)}"
        elif key in RULES and isinstance(value, int | float) and not RULES[key][0](value):
            yield f"{self.at(key)}must be {RULES[key][1]}, not {value}"
        else:
            yield from self.nested(key, value)

    def nested(self, path: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping) and "_target_" in value:
            yield from self.target(path, value)
        elif isinstance(value, Mapping | list):
            for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield from self.nested(f"{path}.{name}", item)

    def unknown(self, path: str, key: str, signature: Signature) -> str:
        inside = [name for name in self.provenance if name.startswith(f"{key}.")]
        written = inside[0] if len(inside) == 1 else key
        ours = signature.name.startswith("src.config.schema.")
        owner = "there is no key" if ours else f"{signature.name} has no argument"
        beside = [name for name in self.known if name.rpartition(".")[0] == path]
        near = nearest(written, self.known) or nearest(key, self.known)
        tip = f"; did you mean {near}?" if near else hint(written, beside)
        return f"{self.at(written)}{owner} {key.rpartition('.')[2]}{tip}"


def _how_to_fill(path: str) -> str:
    if path in GROUPS:
        return f"a file of configs/{path}/ is chosen by {path}=NAME, or in a defaults list by override /{path}: NAME"
    signature = section_signature(path, {})
    return f"its keys are {', '.join(f'{path}.{name}' for name in signature.arguments)}" if signature else "key: value"


def _no_target(path: str, node: Any) -> str:
    if path not in GROUPS:
        return f"{path} needs a _target_"
    keys = ", ".join(map(str, node)) if isinstance(node, Mapping) else ""
    return f"no {path} is chosen that takes {keys or 'arguments'}; choose one by {path}=NAME"


def _mismatch(argument: Argument, value: Any) -> str:
    message = f"expected {describe(argument.members)}, got {_shown(value)}"
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return message
        return f"{message}; without quotes {value.strip()} is a number" if number == number else message
    if isinstance(value, float) and value.is_integer():
        return f"{message}; did you mean {int(value)}?"
    return message


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case Mapping():
            return "a section"
    return f"{value}"


def _target_hint(dotted: str) -> str:
    packages = [entry.removesuffix(".") for entry in allowed_targets()]
    near = nearest(dotted, [name for package in packages for name in public_names(package)])
    return f"; did you mean {near}?" if near else ""


def target_fault(dotted: str) -> str | None:
    """Returns what is wrong with a `_target_`, from its name and source alone; None where nothing is."""
    if not is_allowed(dotted):
        return f"{not_allowed(dotted)}{_target_hint(dotted)}"
    signature = signature_of(dotted)
    if signature is None:
        module = dotted.rpartition(".")[0]
        choices = public_names(module)
        near = nearest(dotted, choices) if choices else nearest(module, sibling_modules(module))
        return f"{dotted} names no class{f'; did you mean {near}?' if near else _target_hint(dotted)}"
    if not is_listed(dotted) and not is_allowed(signature.origin):
        return f"{dotted} is {signature.origin}; {not_allowed(signature.origin)}"
    return None
