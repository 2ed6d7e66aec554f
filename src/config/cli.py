"""The command line that all entries share: overrides, the flags that only print, and one boundary for errors."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from src.config.errors import ConfigError
from src.config.files import CONFIG_DIR, ConfigFolder

EXAMPLES = (
    "",
    "experiment=mnist_mlp optimizer.lr=3e-3 trainer.max_epochs=20",
    "data=fashion_mnist data.root=/data/sets model=mlp 'model.net.hidden_sizes=[256,128]'",
    "--cfg job trainer=cpu",
)
_DASHED = re.compile(r"--?([A-Za-z_][\w.]*=.*)", re.DOTALL)
_FLAG_VALUES = {"--cfg", "-c", "--info", "-i", "--package", "-p"}


@dataclass(frozen=True)
class Usage:
    """What `--help` says of one entry.

    Attributes:
        arguments: What follows `python -m src.<entry>`.
        examples: Command lines, without `python -m src.<entry>`.
        bare: Whether words without `=` are arguments too.
    """

    arguments: str = "[experiment=NAME] [GROUP=NAME ...] [key=value ...]"
    examples: tuple[str, ...] = EXAMPLES
    bare: bool = False


TRAIN = Usage()


def run_entry(main: Callable[[list[str]], object], usage: Usage = TRAIN) -> None:
    """Runs an entry's `main` on the overrides of the command line.

    A person's mistake ends in one short message and exit code 2; `HYDRA_FULL_ERROR=1` shows where it was raised.
    """
    try:
        main(parse_command_line(sys.argv[1:], _module_name(), usage))
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        print(message(error), file=sys.stderr)
        sys.exit(2)


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else "src.train"


def message(error: ConfigError) -> str:
    """Returns what an entry prints for a person's mistake: one line, or one for each of several problems."""
    if len(error.problems) == 1:
        return f"error: {error}"
    return "\n".join([f"error: {len(error.problems)} problems:", *(f"  {problem}" for problem in error.problems)])


def parse_command_line(argv: Sequence[str], prog: str = "src.train", usage: Usage = TRAIN) -> list[str]:
    """Returns the overrides of a command line; `--a.b=c`, as W&B sweeps write it, is the override a.b=c.

    Raises:
        ConfigError: A flag that is not known, or that asks for several runs.
        SystemExit: A flag asked to print something, which has been done.
    """
    flags, overrides = _parser(prog).parse_known_args([_without_dashes(word) for word in argv])
    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"{word}: there is no such flag; a setting is written key=value, --help lists the flags")
        if not usage.bare and "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: a setting is written key=value{_group_of(word)}")
    if flags.help:
        print(help_text(prog, usage))
        sys.exit(0)
    if flags.multirun:
        raise ConfigError(
            "--multirun: several runs need a process each, which python -m src.sweep will give them; "
            f"by hand: for seed in 0 1 2; do python -m {prog} seed=$seed; done"
        )
    if printing := list(_hydra_flags(flags)):
        _print_by_hydra(printing, overrides, prog)
    return overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(prog: str) -> _Parser:
    parser = _Parser(prog=f"python -m {prog}", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")  # what happens anyway
    return parser


def _without_dashes(word: str) -> str:
    match = _DASHED.fullmatch(word)
    return word if match is None or word.partition("=")[0] in _FLAG_VALUES else match[1]


def _group_of(word: str) -> str:
    folder = ConfigFolder()
    return "".join(f"; did you mean {group}={word}?" for group in folder.groups() if word in folder.options(group))


def _hydra_flags(flags: argparse.Namespace) -> Iterator[str]:
    for name in ("cfg", "package", "info"):
        if (value := getattr(flags, name)) is not None:
            yield from (f"--{name}", value)
    for name in ("resolve", "hydra-help", "version", "shell-completion"):
        if getattr(flags, name.replace("-", "_")):
            yield f"--{name}"


def _print_by_hydra(flags: list[str], overrides: list[str], prog: str) -> NoReturn:
    """Hands over to Hydra, which prints and runs nothing."""
    import hydra

    from src.config.compose import PRIMARY

    if "--cfg" not in flags and {"--package", "--resolve"} & set(flags):
        raise ConfigError("--package and --resolve belong to --cfg")
    words = overrides if "--shell-completion" in flags else _for_hydra(overrides, check="--cfg" in flags)
    sys.argv = [f"python -m {prog}", *flags, *words]
    hydra.main(config_path=str(CONFIG_DIR), config_name=PRIMARY, version_base="1.3")(_nothing)()
    sys.exit(0)


def _for_hydra(overrides: list[str], check: bool) -> list[str]:
    """Returns overrides so that Hydra takes what a run takes, checked first; its own settings stay as they are."""
    from src.config.compose import PRIMARY, choice_lines, compose
    from src.config.overrides import parse_override

    settings_of_hydra = [word for word in overrides if word.lstrip("+~").startswith("hydra")]
    ours = [word for word in overrides if word not in settings_of_hydra]
    if check:
        compose(ours)
    folder, parsed = ConfigFolder(), [parse_override(word) for word in ours]
    groups, entries = folder.groups(), {entry.group: entry for entry in folder.defaults(PRIMARY)}
    choices = choice_lines({override.key: override for override in parsed if override.key in groups}, entries)
    return [*choices, *(o.forced for o in parsed if o.key not in groups), *settings_of_hydra]


def _nothing(_: Any) -> None:
    """Stands for the task where Hydra only prints."""


def help_text(prog: str, usage: Usage = TRAIN) -> str:
    """Returns the usage, the groups with their choices, the experiments, and examples."""
    folder = ConfigFolder()
    groups = [group for group in folder.groups() if group not in {"experiment", "local"}]
    width = max(map(len, [*groups, *folder.options("experiment")]))
    lines = [
        f"usage: python -m {prog} {usage.arguments}",
        "",
        "experiments:",
        *(f"  {name:<{width}}  {folder.about(f'experiment/{name}')}" for name in folder.options("experiment")),
        "",
        "groups:",
        *(f"  {group:<{width}}  {', '.join(folder.options(group))}" for group in groups),
        "",
        "flags:",
        "  --cfg job [--resolve]  print the composed configuration and stop",
        "  --info, --hydra-help   print what Hydra knows of it and stop",
        "  --help                 print this and stop",
        "",
        "python -m src.explain KEY [key=value ...] says who set a value. Keys are those of --cfg job and every further",
        "argument of the class that a _target_ names, or of Lightning's Trainer under trainer.",
        "",
        "examples:",
        *(f"  python -m {prog} {example}".rstrip() for example in usage.examples),
    ]
    return "\n".join(lines)
