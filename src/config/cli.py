"""The command line that all entries share: overrides, the flags that only print, and one boundary for errors."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import yaml

from src.config.errors import ConfigError
from src.config.sources import CONFIG_DIR, PRIMARY, ConfigFolder

_PRINTING = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc"}


@dataclass(frozen=True)
class Usage:
    """What `--help` says of one entry, after `python -m src.<entry>`."""

    arguments: str = "[experiment=NAME] [GROUP=NAME ...] [key=value ...] | resume=last|RUN_DIR [key=value ...]"
    examples: tuple[str, ...] = (
        "",
        "experiment=mnist_mlp optimizer.lr=3e-3 trainer.max_epochs=20",
        "data=fashion_mnist data.root=/data/sets model=mlp 'model.net.hidden_sizes=[256,128]'",
        "resume=last",
        "--cfg job trainer=cpu",
    )


TRAIN = Usage()


def run_entry(main: Callable[[list[str]], object], usage: Usage | None = TRAIN) -> None:
    """Runs `main` on the command line's overrides; a mistake ends in a message; HYDRA_FULL_ERROR=1 shows where.

    Without a usage `main` gets the words as they are, and reads flags of its own.
    """
    spec, code = sys.modules["__main__"].__spec__, 0
    try:
        words = sys.argv[1:]
        main(words if usage is None else parse_command_line(words, spec.name if spec else "src.train", usage))
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        print(message(error), file=sys.stderr)
        code = 2
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    leave(code)


def leave(code: int) -> None:
    """Ends the process with this exit code, unless it is 0; one of several always, and without unwinding.

    Threads of gloo outlive their process group; they were seen to abort a process that had done all its work (SIGABRT).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def message(error: ConfigError) -> str:
    """Returns what an entry prints for a person's mistake: one line, or one for each of several problems."""
    if len(error.problems) == 1:
        return f"error: {error}"
    return "\n".join([f"error: {len(error.problems)} problems:", *(f"  {problem}" for problem in error.problems)])


def parse_command_line(argv: Sequence[str], prog: str = "src.train", usage: Usage = TRAIN) -> list[str]:
    """Returns the overrides, also of `--a.b=c` as W&B sweeps write it; a flag that prints ends the program."""
    split = (part for word in argv for part in (word.split("=", 1) if word.startswith("--cfg=") else [word]))
    words = [re.sub(r"^--?([A-Za-z_][\w.]*=)", r"\1", word) for word in split]
    if {"--help", "-h"} & set(words):
        print(help_text(prog, usage))
        sys.exit(0)
    if {"--multirun", "-m"} & set(words):
        words = [word for word in words if word not in ("--multirun", "-m")]
        if prog not in ("src.train", "src.sweep"):
            raise ConfigError(f"--multirun: is for python -m src.train; {prog} runs once")
        if prog == "src.train":  # several runs need a process each
            os.execv(sys.executable, [sys.executable, "-m", "src.sweep", *words])
    if _PRINTING & set(words):
        _print(words, prog)
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"{word}: there is no such flag; a setting is written key=value, --help lists the flags")
    return words


def _print(words: list[str], prog: str) -> NoReturn:
    """Prints the configuration that a run would have, or hands over to Hydra, which prints and runs nothing."""
    from src.config.resume import compose_run

    overrides = [word for word in words if "=" in word or word.startswith("~")]
    if [word for word in words if word not in (*overrides, "--resolve")] in (["--cfg", "job"], ["-c", "job"]):
        print(yaml.safe_dump(compose_run(overrides).cfg, sort_keys=False, allow_unicode=True), end="")
    else:
        import hydra

        sys.argv = [f"python -m {prog}", *words]
        hydra.main(config_path=str(CONFIG_DIR), config_name=PRIMARY, version_base="1.3")(lambda _: None)()
    sys.exit(0)


def help_text(prog: str, usage: Usage = TRAIN) -> str:
    """Returns the usage, the groups with their choices, the experiments, and examples."""
    folder = ConfigFolder()
    groups = [group for group in folder.groups() if group not in {"experiment", "local"}]
    width = max(map(len, [*groups, *folder.options("experiment")]))
    lines = [f"usage: python -m {prog} {usage.arguments}", "", "experiments:"]
    for name in folder.options("experiment"):
        comments = re.findall(r"^# *([^@\s].*)", folder.text(f"experiment/{name}"), re.MULTILINE)
        lines.append(f"  {name:<{width}}  {next(iter(comments), '')}")
    lines += ["", "sweeps, for python -m src.sweep:", f"  {', '.join(folder.options('sweep'))}"]
    lines += ["", "groups:", *(f"  {group:<{width}}  {', '.join(folder.options(group))}" for group in groups)]
    lines += ["", FLAGS, "", "examples:", *(f"  python -m {prog} {example}".rstrip() for example in usage.examples)]
    return "\n".join(lines)


FLAGS = """flags:
  --cfg job [--resolve]  print the composed configuration and stop
  --info, --hydra-help   print what Hydra knows of it and stop
  --help                 print this and stop

python -m src.explain KEY [key=value ...] says who set a value. Keys are those of --cfg job and every further
argument of the class that a _target_ names, or of Lightning's Trainer under trainer."""
