"""Downloads and checks a data set, so that nothing later needs the network: ``python -m src.prepare data=NAME``."""

from src.config import build, compose
from src.config.cli import Usage, run_entry

USAGE = Usage(
    "data=NAME [key=value ...]",
    ("data=mnist", "data=fashion_mnist data.root=/data/sets", "data=image_folder data.root=/data/photos"),
)


def main(overrides: list[str]) -> None:
    """Prepares the data set of a configuration and prints what is there."""
    cfg = compose(overrides).cfg

    from src.data.base import DataModule  # after composition: a mistake is reported before torch is imported

    datamodule = build(cfg["data"], DataModule, seed=cfg["seed"])
    datamodule.download()
    datamodule.prepare_data()
    datamodule.setup()
    facts = datamodule.facts
    print(f"{facts['name']}: {', '.join(f'{part} {count}' for part, count in facts['num_samples'].items())} samples")
    if classes := facts.get("class_names"):
        print(f"{len(classes)} classes: {', '.join(classes)}")
    for name, unit in zip(facts.get("target_names", ()), facts.get("target_units", ()), strict=True):
        print(f"target {name}{f' in {unit}' if unit else ''}")
    if card := facts.get("card"):
        print(card)
    if datamodule.bad_files:
        print(f"bad files, left out: {len(datamodule.bad_files)}")
    print(f"ready in {datamodule.folder or 'an installed package'}")


if __name__ == "__main__":
    run_entry(main, USAGE)
