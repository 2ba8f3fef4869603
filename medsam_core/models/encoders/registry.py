"""Which image encoders there are. What belongs here: a line for each, with all that is known of it without its code.

Not here: the networks, which lie in one module each beside this one and are imported when one is built (`base`). A run
that builds no model, and the validation of a profile, need only this; nothing here imports torch.

Installed packages add encoders of their own through the entry point group `repvit_medsam.encoders`; each entry point
names an `EncoderSpec`. A model file can only name an encoder that is known here or installed, never code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal

from medsam_core.base.geometry import AREA, BILINEAR, SQUARE, Geometry

Setting = bool | int | float | str
InputKind = Literal["standardised", "min_max"]
"""`standardised`: by the data's mean and deviation per channel; `min_max`: each image by its own range, as MedSAM."""

ENTRY_POINTS = "repvit_medsam.encoders"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One image encoder.

    Attributes:
        name: Its name in profiles and model files.
        builder: `module:attribute` of its `base.Encoder`.
        stride: Model pixels along each side of an embedding cell, or what says it from the values of all settings;
            that raises a ValueError where they contradict each other.
        input_kind: How raw grey values are normalised for it.
        frame: How slices are brought into its square by default, a key of `medsam_core.base.geometry.FRAMES`.
        resampling: How their pixels are resized by default, one of `medsam_core.base.geometry.RESAMPLINGS`.
        settings: Its own settings, with their defaults.
        published_side: Side of the input of its published checkpoints, pixels; None where there are none.
        weights: File name of its weights: published ones must be given, others lie in `medsam_core/weights`.
    """

    name: str
    builder: str
    stride: int | Callable[[Mapping[str, Setting]], int]
    input_kind: InputKind
    frame: str = SQUARE
    resampling: str = BILINEAR
    settings: Mapping[str, Setting] = field(default_factory=dict)
    published_side: int | None = None
    weights: str | None = None

    def stride_with(self, settings: Mapping[str, Setting]) -> int:
        """Return the stride with these settings, and the defaults of those not given.

        Raises:
            ValueError: If the settings contradict each other.
        """
        return self.stride({**self.settings, **settings}) if callable(self.stride) else self.stride

    def geometry(
        self,
        image_side: int,
        frame: str | None = None,
        settings: Mapping[str, Setting] = MappingProxyType({}),
        resampling: str | None = None,
    ) -> Geometry:
        """Return the geometry for an image side in pixels; errors as in `stride_with` and `Geometry.of_stride`."""
        stride = self.stride_with(settings)
        return Geometry.of_stride(image_side, stride, frame or self.frame, resampling or self.resampling)


PLAIN, PYRAMID = "plain", "pyramid"
"""RepViT's necks: the paper's, on the last stage alone, and one that all stages reach (`docs/adr/0023`)."""

_NECK_STRIDES = MappingProxyType({PLAIN: (16,), PYRAMID: (4, 8, 16)})
"""The strides that each neck can have; the first unless another is set."""

_NECKS: Mapping[str, Setting] = MappingProxyType({"neck": PLAIN, "stride": 0})
"""Settings of RepViT; stride 0 is the neck's own."""


def repvit_stride(settings: Mapping[str, Setting]) -> int:
    """Return the stride of RepViT with a neck.

    Raises:
        ValueError: If there is no such neck, or it cannot have the stride asked for.
    """
    neck, stride = str(settings["neck"]), int(settings["stride"])
    if neck not in _NECK_STRIDES:
        raise ValueError(f"neck: expected one of {', '.join(_NECK_STRIDES)}, found {neck!r}")
    possible = _NECK_STRIDES[neck]
    if stride and stride not in possible:
        listed = " or ".join(map(str, possible))
        raise ValueError(f"stride: expected {listed} with neck {neck}, found {stride}; leave it out, or set the neck")
    return stride or possible[0]


def _specs(*specs: EncoderSpec) -> Mapping[str, EncoderSpec]:
    return MappingProxyType({spec.name: spec for spec in specs})


_HERE = "medsam_core.models.encoders"

ENCODERS = _specs(
    EncoderSpec(
        name="repvit_m0_9",
        builder=f"{_HERE}.repvit:M0_9",
        stride=repvit_stride,
        input_kind="standardised",
        settings=_NECKS,
    ),
    EncoderSpec(
        name="repvit_m1_1",
        builder=f"{_HERE}.repvit:M1_1",
        stride=repvit_stride,
        input_kind="standardised",
        settings=_NECKS,
    ),
    EncoderSpec(
        name="stand_in",
        builder=f"{_HERE}.sam_vit:STAND_IN",
        stride=16,
        input_kind="min_max",
        settings={"embed_dim": 192, "depth": 6, "num_heads": 6},
        weights="stand_in_128.safetensors",
    ),
    EncoderSpec(
        name="medsam_vit_b",
        builder=f"{_HERE}.sam_vit:MEDSAM_VIT_B",
        stride=16,
        input_kind="min_max",
        published_side=1024,
        weights="medsam_vit_b.pth",
    ),
    EncoderSpec(
        name="lite_medsam",
        builder=f"{_HERE}.tiny_vit:LITE_MEDSAM",
        stride=4,
        input_kind="min_max",
        resampling=AREA,
        published_side=256,
        weights="lite_medsam.pth",
    ),
)


def encoder_spec(name: str) -> EncoderSpec:
    """Return the encoder of a name.

    Raises:
        ValueError: If there is none, naming those there are, or if an installed one is not an `EncoderSpec`.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    installed = entry_points(group=ENTRY_POINTS)
    if name not in installed.names:
        known = ", ".join([*ENCODERS, *sorted(installed.names)])
        raise ValueError(f"expected one of the encoders {known}, found {name!r}")
    spec = installed[name].load()
    if not isinstance(spec, EncoderSpec) or spec.name != name:
        raise ValueError(f"{installed[name].value}: expected the EncoderSpec of {name!r}, found {spec!r}")
    return spec
