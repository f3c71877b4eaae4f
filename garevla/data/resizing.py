"""How frames become the square images that a model takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

ResizeMode = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Resizing:
    """Size of the images, and how frames get it.

    Args:
        image_size: side of the square result, in pixels.
        resize_mode: ``"shortest"``: the short side becomes ``image_size``, and the center is cut
            out. ``"squash"``: both sides become ``image_size``, whatever the frame's shape.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.

    Raises:
        ValueError: something else.
    """

    image_size: int = 224
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not self.image_size > 0:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        for name, kind in (("resize_mode", ResizeMode), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}"
                )

    @classmethod
    def of(cls, resizing: Resizing | int) -> Resizing:
        """What is given, or the usual way to an image size."""
        return resizing if isinstance(resizing, Resizing) else cls(resizing)

    def as_settings(self) -> dict[str, Any]:
        """Plain values, which the constructor takes by name."""
        return asdict(self)
