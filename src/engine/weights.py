"""Where a run's weights start: drawn at random, or from a published file, another run, a file of one's own."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from src.config import ConfigError
from src.config.errors import hint
from src.engine.checkpoint import is_checkpoint, read_plain
from src.modules.optimization import head_of

SHOWN = 3
"""Names of tensors in a message."""


def warm_start(net: nn.Module, node: Mapping[str, Any]) -> None:
    """Copies the weights that ``model.weights`` asks for into a new net, and prints what it copied.

    The head, the net's last layer, stays as it was drawn where the file's has another shape; all else must fit.

    Args:
        net: The net.
        node: The section ``model``: ``weights`` is a run folder, a checkpoint, a state dict or a name of torchvision's.

    Raises:
        ConfigError: The weights cannot be had or do not fit; or ``unfreeze_epoch`` is set and nothing is frozen.
    """
    if node["unfreeze_epoch"] is not None and node["freeze"] is None:
        raise ConfigError(
            f"model.unfreeze_epoch={node['unfreeze_epoch']}: nothing is frozen; add model.freeze=backbone"
        )
    if (source := node["weights"]) is None:
        return
    given, own, head = find_weights(net, source), net.state_dict(), head_of(net)
    head_name = next(name for name, module in net.named_modules() if module is head)
    head_keys = {key for key in own if key.rpartition(".")[0] == head_name}
    fits = {key for key in own if key in given and given[key].shape == own[key].shape}
    swapped = sorted(head_keys - fits)
    # The count of batches serves a momentum that nobody uses; files of before 2018 lack it.
    lacking = [key for key in own if key not in fits | head_keys and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    if lacking or unexpected:
        raise ConfigError(f"model.weights={source}: not of this {type(net).__name__}{_misfit(own, given, lacking)}")
    net.load_state_dict({key: given[key] for key in fits if not (swapped and key in head_keys)}, strict=False)
    shapes = ", ".join(_shapes(own, given, key) for key in swapped[:SHOWN])
    what = f"; the head is new: {shapes}" if swapped else ", head included"
    rank_zero_only(print)(f"weights from {source}{what}", flush=True)


def find_weights(net: nn.Module, source: str) -> Mapping[str, Tensor]:
    """Reads tensors by the names of the net's own parameters.

    Raises:
        ConfigError: There is nothing of that name, or it cannot be fetched or read.
    """
    published = published_weights(net)
    path = Path(source).expanduser()
    if source in published:
        content = download(source, published[source])
    elif path.exists():
        content = read_plain(path / "checkpoints" / "best.ckpt" if path.is_dir() else path)
    else:
        tip = hint(source, published, f"torchvision publishes for {type(net).__name__}")
        raise ConfigError(f"model.weights={source}: there is no such file or run folder{tip}")
    translate = getattr(net, "import_weights", None)
    named = content if isinstance(content, Mapping) else {}
    if is_checkpoint(content):
        state = {key.removeprefix("net."): value for key, value in content["state_dict"].items() if key[:4] == "net."}
    elif translate is not None and not named.keys() & net.state_dict().keys():
        try:
            state = translate(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"model.weights={source}: no file that {type(net).__name__} knows: {error!r}") from error
    else:
        state = named.get("state_dict", named)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"model.weights={source}: holds no tensors by name")
    return state


def published_weights(net: nn.Module) -> Mapping[str, Any]:
    """What torchvision publishes for a net, by name; nothing for one that does not say how torchvision calls it."""
    from torchvision.models import get_model_weights  # type: ignore[import-untyped]

    name = getattr(net, "published_as", None)
    members: Mapping[str, Any] = get_model_weights(name).__members__ if name else {}
    return members


def download(name: str, weights: Any) -> Any:
    """Fetches published weights, which torch.hub keeps in ``$TORCH_HOME/hub/checkpoints``, one process at a time.

    Raises:
        ConfigError: That failed; it says how to do without a network.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(weights.url).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            return weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"model.weights={name}: {weights.url} could not be had: {error}\n"
            f"    without a network, put the file at {path} or name another by model.weights=PATH"
        ) from error


def _shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], key: str) -> str:
    there = list(given[key].shape) if key in given else "missing"
    return f"{key} {list(own[key].shape)}, in the file {there}"


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], lacking: list[str]) -> str:
    parts = {
        "missing": [key for key in lacking if key not in given],
        "unexpected": [key for key in given if key not in own],
        "other shapes": [_shapes(own, given, key) for key in lacking if key in given],
    }
    lines = []
    for what, names in parts.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += [f"\n    {what}: {', '.join(names[:SHOWN])}{more}"] if names else []
    return "".join(lines)
