"""Checks a plain configuration: keys, types, `_target_` and its arguments, ranges; every problem at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from src.config.errors import hint, nearest
from src.config.schema import EXTRAS, GROUPS, INJECTED, RULES, TRAINER, TYPED, typed
from src.config.signature import Argument, Signature, public_names, signature_of
from src.config.sources import Provenance, written
from src.config.targets import allowed_targets, is_allowed, not_allowed


def check(cfg: Mapping[str, Any], provenance: Provenance, skip: frozenset[str] = frozenset()) -> list[str]:
    """Returns every problem of a plain configuration; what `skip` names is wrong already, or hangs on what is."""
    return list(_Checker(cfg, provenance, skip).arguments("", cfg, typed(TYPED[""])))


def place(key: str, provenance: Provenance) -> str:
    """Returns 'file:line: ' or 'override: ' of what set a key, a key in it or the section that holds it; else ''."""
    inside = [settings for name, settings in provenance.items() if name.startswith(f"{key}.")]
    own = provenance.get(key, [])
    empty = not own or own[-1].text == "{}"  # filled by what sets a key in it
    settings = inside[-1] if inside and empty else own
    return f"{settings[-1].where}: " if settings else ""


def section_signature(path: str, node: Mapping[str, Any]) -> Signature | None:
    """Returns the keys that a section takes; None where they are not known."""
    if path in TYPED:
        return typed(TYPED[path], path)
    signature = signature_of(TRAINER if path == "trainer" else str(node.get("_target_")))
    if signature is None or path not in EXTRAS:
        return signature
    return replace(signature, arguments=signature.arguments | typed(EXTRAS[path]).arguments)


def known_keys(cfg: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields every dotted key that can be set, for the nearest right name."""
    signature = section_signature(path, cfg)
    for name in signature.arguments if signature else ():
        if name not in INJECTED.get(path, {}):
            yield _join(path, name)
    for name, value in cfg.items():
        if isinstance(value, Mapping):
            yield from known_keys(value, _join(path, name))


def key_hint(cfg: Mapping[str, Any], *names: str) -> str:
    """Returns a hint at the key nearest to the first name that has one, else at those beside the last."""
    known = list(known_keys(cfg))
    for near in filter(None, (nearest(name, known) for name in names)):
        return f"; did you mean {near}?"
    return hint("", [key for key in known if key.rpartition(".")[0] == names[-1].rpartition(".")[0]])


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


@dataclass(frozen=True)
class _Checker:
    cfg: Mapping[str, Any]
    provenance: Provenance
    skip: frozenset[str]

    def at(self, key: str) -> str:
        where = place(key, self.provenance)
        return where if where.lstrip("+").startswith(f"{key}=") else f"{where}{key}: "

    def arguments(self, path: str, node: Mapping[str, Any], signature: Signature) -> Iterator[str]:
        injected = INJECTED.get(path, {})
        for name, value in node.items():
            key, argument = _join(path, name), signature.arguments.get(name)
            if key in self.skip:
                continue
            if argument is None and not signature.is_open:
                owner = "there is no key" if path in TYPED else f"{signature.name} has no argument"
                inside = [known for known in self.provenance if known.startswith(f"{key}.")]
                set_as = inside[0] if len(inside) == 1 else key
                yield f"{self.at(set_as)}{owner} {name}{key_hint(self.cfg, set_as, key)}"
            elif argument is not None and name in injected:
                yield f"{self.at(key)}comes from {injected[name]} and is not set here"
            elif key in TYPED or key in GROUPS:
                yield from self.section(key, value)
            else:
                yield from self.value(key, value, argument)
        for name, argument in signature.arguments.items():
            key = _join(path, name)
            if argument.default is None and name not in node and name not in injected and key not in self.skip:
                choose = f"; choose one by {name}=NAME" if key in GROUPS else ""
                where = place(_join(path, "_target_"), self.provenance) or place(path, self.provenance)
                yield f"{where}{signature.name} needs {key}" if path else f"{key}: missing{choose}"

    def section(self, path: str, node: Any) -> Iterator[str]:
        if not isinstance(node, Mapping):
            how = f"a file of configs/{path}/ is chosen by {path}=NAME, or in a defaults list by override /{path}: NAME"
            keys = f"its keys are {', '.join(known_keys({}, path))}"
            yield f"{self.at(path)}{_shown(node)} is no section; {how if path in GROUPS else keys}"
        elif path == "callbacks":
            for name, callback in node.items():
                yield from self.target(f"callbacks.{name}", callback)
        elif (path in TYPED or path == "trainer") and (signature := section_signature(path, node)):
            yield from self.arguments(path, node, signature)
        elif node or path not in {"scheduler", "logger"}:  # those may be empty
            yield from self.target(path, node)

    def target(self, path: str, node: Any) -> Iterator[str]:
        if not isinstance(node, Mapping) or "_target_" not in node:
            keys = ", ".join(map(str, node)) if isinstance(node, Mapping) and node else "arguments"
            choose = f"no {path} is chosen that takes {keys}; choose one by {path}=NAME"
            yield f"{place(path, self.provenance)}{choose if path in GROUPS else f'{path} needs a _target_'}"
        elif fault := target_fault(str(node["_target_"])):
            yield f"{self.at(f'{path}._target_')}{fault}"
        elif signature := section_signature(path, node):
            arguments = {name: value for name, value in node.items() if name != "_target_"}
            yield from self.arguments(path, arguments, signature)

    def value(self, key: str, value: Any, argument: Argument | None) -> Iterator[str]:
        expected = argument.expected(value) if argument else None
        if value == "???":  # as OmegaConf writes what is missing
            yield f"{self.at(key)}must be given: {key}=..."
        elif expected:
            yield f"{self.at(key)}expected {expected}, got {_shown(value)}"
        elif key in RULES and isinstance(value, int | float) and not RULES[key][1](value):
            yield f"{self.at(key)}must be {RULES[key][0]}, not {value}"
        else:
            yield from self.nested(key, value)

    def nested(self, path: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping) and "_target_" in value:
            yield from self.target(path, value)
        elif isinstance(value, Mapping | list):
            for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield from self.nested(f"{path}.{name}", item)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return f"the text {value!r}" if isinstance(value, str) else written(value)


def target_fault(dotted: str) -> str | None:
    """Returns what is wrong with a `_target_`, from its name and source alone; None where nothing is."""
    if is_allowed(dotted) and signature_of(dotted):
        return None
    modules = [dotted.rpartition(".")[0]] if is_allowed(dotted) else []
    modules += [entry.removesuffix(".") for entry in allowed_targets()]
    near = nearest(dotted, [name for module in modules for name in public_names(module)])
    tip = f"; did you mean {near}?" if near else ""
    return f"{dotted} names no class{tip}" if is_allowed(dotted) else f"{not_allowed(dotted)}{tip}"
