"""A generated data set for demonstrations and tests."""

from garevla.data.synthetic.dataset import (
    ANNOTATION_DIR,
    PSEUDO_CAPTION_FILE,
    VIDEO_DIR,
    SyntheticConfig,
    animate,
    draw_descriptions,
    frame_captions,
    generate_dataset,
)

__all__ = [
    "ANNOTATION_DIR",
    "PSEUDO_CAPTION_FILE",
    "VIDEO_DIR",
    "SyntheticConfig",
    "animate",
    "draw_descriptions",
    "frame_captions",
    "generate_dataset",
]
