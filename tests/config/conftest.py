"""A copy of the shipped configs/ that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from src.config import ConfigError, compose
from src.config.sources import CONFIG_DIR

Problems = Callable[..., list[str]]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs", ignore=shutil.ignore_patterns("local")))


@pytest.fixture
def problems(configs: Path) -> Problems:
    """The problems of overrides, with the given text as configs/experiment/mine.yaml."""

    def find(*overrides: str, experiment: str | None = None) -> list[str]:
        if experiment is not None:
            (configs / "experiment/mine.yaml").write_text(experiment, encoding="utf-8")
            overrides = ("experiment=mine", *overrides)
        with pytest.raises(ConfigError) as caught:
            compose(overrides, configs)
        return list(caught.value.problems)

    return find
