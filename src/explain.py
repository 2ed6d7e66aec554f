"""Says who set a value: ``python -m src.explain KEY [key=value ...]``."""

from src.config import ConfigError, compose
from src.config.cli import Usage, run_entry
from src.config.compose import explain

USAGE = Usage(
    arguments="KEY [KEY ...] [key=value ...]",
    examples=("optimizer.lr", "optimizer experiment=mnist_mlp", "trainer.max_epochs trainer.max_epochs=3"),
)


def main(arguments: list[str]) -> str:
    """Prints the value of a key or section, the file and line or override that set it, and what it replaced.

    Raises:
        ConfigError: No key is asked for, there is none of that name, or the configuration is wrong.
    """
    keys = [argument for argument in arguments if "=" not in argument and not argument.startswith("~")]
    if not keys:
        raise ConfigError("which key? python -m src.explain KEY [key=value ...], for example optimizer.lr")
    composed = compose([argument for argument in arguments if argument not in keys])
    answer = "\n".join(explain(composed, key) for key in keys)
    print(answer)
    return answer


if __name__ == "__main__":
    run_entry(main, USAGE)
