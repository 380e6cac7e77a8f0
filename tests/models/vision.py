"""Image models: global attention, windows with relative bias, decomposed relative positions."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

from .case import (
    BATCH,
    BOTH,
    EAGER_ONLY,
    FFN,
    HEADS,
    HIDDEN,
    LAYERS,
    ModelCase,
    hidden,
    itself,
    normal,
    seeded,
)

PATCH = 4
SIDE = 5 * PATCH  # 25 patches, and a class token where there is one
WINDOW_SIDE = 6 * PATCH  # windows of 3 x 3 patches fill it
WINDOW = 3


def _vit(implementation: str) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=SIDE,
        patch_size=PATCH,
        attn_implementation=implementation,
    )
    return ViTModel(config, add_pooling_layer=False)


def _clip_vision(implementation: str) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        attn_implementation=implementation,
    )
    return CLIPVisionModel(config)


def _windows(**changes: Any) -> dict[str, Any]:
    """Two stages of two layers: every second layer shifts its windows, and so has a window mask."""
    common = {
        "image_size": WINDOW_SIDE,
        "patch_size": PATCH // 2,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": WINDOW,
        "drop_path_rate": 0.0,
    }
    return common | changes


def _swin(implementation: str) -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(**_windows(), attn_implementation=implementation)
    return SwinModel(config, add_pooling_layer=False)


def _swin_v2(implementation: str) -> nn.Module:
    from transformers import Swinv2Config, Swinv2Model

    config = Swinv2Config(**_windows(), attn_implementation=implementation)
    return Swinv2Model(config, add_pooling_layer=False)


def _sam(implementation: str) -> nn.Module:
    from transformers import SamVisionConfig, SamVisionModel

    config = SamVisionConfig(
        hidden_size=HIDDEN,
        output_channels=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        window_size=WINDOW,  # does not divide the 5 patches: SAM pads its windows
        global_attn_indexes=[1],
        mlp_dim=FFN,
        attn_implementation=implementation,
    )
    return SamVisionModel(config)


class _Anything(type):
    """A class whose every attribute is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandIn(ModuleType):
    """A module that holds whatever is imported from it."""

    __path__ = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _TorchvisionStub(MetaPathFinder, Loader):
    """Finds torchvision and all below it, and loads stand-ins."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        found = fullname.split(".")[0] == "torchvision"
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _torchvision_stubbed() -> Generator[None]:
    """timm imports torchvision for its image transforms, which a forward never needs.

    The stub is gone afterwards, so that nobody else takes torchvision to be there.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = _TorchvisionStub()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def timm_model(implementation: str, module: str, name: str, **options: Any) -> nn.Module:
    """`timm.models.module.name(**options)`, which attends by `implementation`."""
    with _torchvision_stubbed():
        family = importlib.import_module(f"timm.models.{module}")
    model = getattr(family, name)(num_classes=11, **options)
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = implementation == "sdpa"
    return model


def _timm_vit(implementation: str) -> nn.Module:
    options = {"embed_dim": HIDDEN, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 1.25}
    return timm_model(
        implementation,
        "vision_transformer",
        "VisionTransformer",
        img_size=SIDE,
        patch_size=PATCH,
        **options,
    )


def _timm_swin(implementation: str) -> nn.Module:
    options = _windows()
    options["img_size"] = options.pop("image_size")
    return timm_model(implementation, "swin_transformer", "SwinTransformer", **options)


def _pixels() -> dict[str, Any]:
    return {"pixel_values": normal(BATCH, 3, SIDE, SIDE)}


def _window_pixels() -> dict[str, Any]:
    return {"pixel_values": normal(BATCH, 3, WINDOW_SIDE, WINDOW_SIDE)}


def _timm_pixels() -> dict[str, Any]:
    return {"x": normal(BATCH, 3, SIDE, SIDE)}


def _timm_window_pixels() -> dict[str, Any]:
    return {"x": normal(BATCH, 3, WINDOW_SIDE, WINDOW_SIDE)}


CASES = (
    ModelCase("vit", seeded(_vit), _pixels, BOTH, LAYERS, hidden),
    ModelCase("clip-vision", seeded(_clip_vision), _pixels, BOTH, LAYERS, hidden),
    ModelCase("swin", seeded(_swin), _window_pixels, BOTH, 4, hidden),
    ModelCase("swin-v2", seeded(_swin_v2), _window_pixels, EAGER_ONLY, 4, hidden),
    ModelCase("sam", seeded(_sam), _pixels, BOTH, LAYERS, hidden),
    ModelCase("timm-vit", seeded(_timm_vit), _timm_pixels, BOTH, LAYERS, itself),
    ModelCase("timm-swin", seeded(_timm_swin), _timm_window_pixels, BOTH, 4, itself),
)
