"""What figures were made of, without which they mean little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from garevla.evaluation.metrics import TieRule
from garevla.evaluation.streaming import VideoToText

if TYPE_CHECKING:
    from garevla.data.splits import Caption

_VIDEO_TO_TEXT = {
    "caption_sets": "best caption of each video, among videos",
    "sentences": "best caption, among all single captions",
}


@dataclass(frozen=True)
class Protocol:
    """Which queries were ranked among which candidates, and how.

    Attributes:
        layout, split: of the data set.
        num_videos, num_captions: candidates and queries of text-to-video retrieval.
        captions_per_video: fewest and most.
        ties: as :func:`garevla.evaluation.rank_of_targets`.
        video_to_text: as :func:`garevla.evaluation.streaming_counts`.
        near_duplicates: the list of them, or None.
    """

    layout: str
    split: str
    num_videos: int
    num_captions: int
    captions_per_video: tuple[int, int]
    ties: TieRule = "average"
    video_to_text: VideoToText = "caption_sets"
    near_duplicates: str | None = None

    @classmethod
    def of(
        cls, captions: Sequence[Caption], video_ids: Sequence[str], **attributes: Any
    ) -> Protocol:
        """The protocol of a split's captions and videos."""
        counts = Counter(caption.video_id for caption in captions)
        per_video = [counts[video_id] for video_id in video_ids]
        return cls(
            num_videos=len(video_ids),
            num_captions=len(captions),
            captions_per_video=(min(per_video), max(per_video)),
            **attributes,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it by name, ready for JSON."""
        return {**asdict(self), "captions_per_video": list(self.captions_per_video)}

    def __str__(self) -> str:
        fewest, most = self.captions_per_video
        per_video = str(fewest) if fewest == most else f"{fewest} to {most}"
        return (
            f"{self.layout}, split {self.split}: {self.num_videos} videos, {self.num_captions} "
            f"captions, {per_video} per video; ties: {self.ties}; "
            f"video to text: {_VIDEO_TO_TEXT[self.video_to_text]}; "
            f"near-duplicates: {self.near_duplicates or 'none'}"
        )
