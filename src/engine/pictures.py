"""Pictures of samples: what the model saw, and where it looked."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from src.engine.plan import Plan
from src.engine.run import Run
from src.tracking.figures import log_figure

SMALLEST = 128  # pixels of the shorter side of a picture
SHOWN = 16  # images of a training batch

Pictures = NDArray[np.uint8]


def pictures(x_BCHW: Tensor, facts: Mapping[str, Any]) -> Pictures:
    """Returns normalised images as RGB ``[B, H, W, 3]``; each pixel of a small one becomes a square of pixels."""
    mean_C11, std_C11 = (torch.tensor(facts[name], device=x_BCHW.device).view(-1, 1, 1) for name in ("mean", "std"))
    x_BCHW = ((x_BCHW.float() * std_C11 + mean_C11) * 255).round().clamp(0, 255).expand(-1, 3, -1, -1)
    scale = -(-SMALLEST // min(x_BCHW.shape[2:]))
    x_BCHW = x_BCHW.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return np.asarray(x_BCHW.permute(0, 2, 3, 1).byte().cpu())


def grad_cam(net: nn.Module, x_BCHW: Tensor, class_B: Tensor) -> Tensor:
    """Where a net sees a class, as Grad-CAM says (Selvaraju et al. 2017, equations 1 and 2).

    The last feature map's channels, each weighted by the mean gradient of the class's logit, are added; negative sums
    are 0.

    Args:
        net: It names the layer of its last feature map in ``feature_map``.
        x_BCHW: Its input.
        class_B: The class of each image.

    Returns:
        ``[B, h, w]``, as large as the feature map.
    """
    # A copy, which is in single precision, not compiled, and takes hooks and modes along when it is gone.
    net = deepcopy(net).to(x_BCHW.device, torch.float32).eval().requires_grad_(False)
    maps: list[Tensor] = []

    def start_here(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        maps.append(output.detach().requires_grad_())
        return maps[0]

    net.get_submodule(str(net.feature_map)).register_forward_hook(start_here)
    with torch.enable_grad():
        score = net(x_BCHW.float()).gather(1, class_B[:, None]).sum()
        (gradient_BCHW,) = torch.autograd.grad(score, maps)
    return (gradient_BCHW.mean((2, 3), keepdim=True) * maps[0]).sum(1).relu().detach()


def heat_maps(heat_BHW: Tensor, shown_BHWC: Pictures) -> Pictures:
    """Lays maps, each by its own maximum, over pictures."""
    from matplotlib import colormaps

    heat_BHW = heat_BHW / heat_BHW.amax((1, 2), keepdim=True).clamp(min=1e-12)
    heat_BHW = nn.functional.interpolate(heat_BHW[:, None], shown_BHWC.shape[1:3], mode="bilinear")[:, 0]
    colours_BHWC = colormaps["turbo"](heat_BHW.cpu().numpy())[..., :3]
    return np.asarray(0.5 * shown_BHWC + 0.5 * 255 * colours_BHWC, dtype=np.uint8)


def save_worst(worst: list[dict[str, Any]], trainer: Trainer, plan: Plan, run: Run) -> Pictures:
    """Writes the pictures of the worst samples, notes in each entry where they are, and returns them."""
    data, net, device = plan.datamodule, plan.module.net, trainer.strategy.root_device
    batch = data.splits["test"][torch.tensor([entry["index"] for entry in worst])].to(device)
    x_BCHW = data.on_after_batch_transfer(batch, 0).x
    shown = {"": pictures(x_BCHW, data.facts)}
    # Under FSDP this process has a part of the net only, and the others do not come here.
    if hasattr(net, "feature_map") and not isinstance(net, FSDPModule):
        class_B = torch.tensor([data.facts["class_names"].index(entry["predicted"]) for entry in worst], device=device)
        shown["-gradcam"] = heat_maps(grad_cam(net, x_BCHW, class_B), shown[""])
    (run.folder / "results/worst").mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(worst):
        for key, kind in (("image", ""), ("explanation", "-gradcam")):
            entry[key] = f"results/worst/{number:02d}{kind}.png" if kind in shown else None
            if kind in shown:
                Image.fromarray(shown[kind][number]).save(run.folder / entry[key])
    return shown[""]


class TrainingBatch(Callback):
    """Draws some images of a new run's first training batch, augmented as the net will see them.

    Args:
        run: Where to.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the batch the way it will be taken, and leaves the random generators as they were."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not self.run.owner or self.run.resumed is not None or "mean" not in data.facts:
            return
        from src.tracking import plots

        with isolate_rng():
            positions = next(iter(data.train_dataloader().sampler))
            batch = data.on_before_batch_transfer(data.splits["train"][positions], 0)
            batch = trainer.strategy.batch_to_device(batch)
        shown = pictures(batch.x[:SHOWN], data.facts)
        figure = plots.training_batch(shown, [data.facts["class_names"][label] for label in batch.y[:SHOWN].tolist()])
        plots.save_png(figure, self.run.folder / "plots" / "training_batch.png")
        log_figure(trainer.loggers, "plots/training_batch", figure, trainer.global_step)
