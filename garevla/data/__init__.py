"""Video and caption data: reading, checking, batching, and a synthetic data set.

Names are imported on first use, so that ``import garevla.data`` needs nothing but torch.
"""

from garevla.utils.lazy import names_of

_MODULE_OF = {
    "Sampling": "garevla.data.frame_sampling",
    "frame_indices": "garevla.data.frame_sampling",
    "VideoError": "garevla.data.video_errors",
    "read_frames": "garevla.data.video",
    "AnnotationError": "garevla.data.splits",
    "Caption": "garevla.data.splits",
    "RetrievalSplit": "garevla.data.splits",
    "Annotations": "garevla.data.splits",
    "Clip": "garevla.data.splits",
    "TimeRange": "garevla.data.frame_sampling",
    "Layout": "garevla.data.layouts",
    "layout": "garevla.data.layouts",
    "register_layout": "garevla.data.layouts",
    "load_msrvtt": "garevla.data.layouts.msrvtt",
    "BadVideo": "garevla.data.check",
    "BadVideosError": "garevla.data.check",
    "CheckReport": "garevla.data.check",
    "check_split": "garevla.data.check",
    "check_videos": "garevla.data.check",
    "load_split": "garevla.data.check",
    "FrameCacheError": "garevla.data.cached_frames",
    "FrameCache": "garevla.data.frame_cache",
    "CacheConfig": "garevla.data.cache_settings",
    "CachingReport": "garevla.data.caching",
    "cache_frames": "garevla.data.caching",
    "PseudoCaptionError": "garevla.data.pseudo_captions",
    "PseudoCaptions": "garevla.data.pseudo_captions",
    "CaptionConfig": "garevla.data.captioning",
    "CaptioningError": "garevla.data.captioning",
    "caption_videos": "garevla.data.captioning",
    "Batch": "garevla.data.dataset",
    "VideoDataset": "garevla.data.dataset",
    "VideoTextDataset": "garevla.data.dataset",
    "collate_pairs": "garevla.data.dataset",
    "VideoTransform": "garevla.data.dataset",
    "Resizing": "garevla.data.resizing",
    "UniqueVideoBatchSampler": "garevla.data.sampler",
    "SyntheticConfig": "garevla.data.synthetic",
    "generate_dataset": "garevla.data.synthetic",
}

__getattr__, __dir__, __all__ = names_of(__name__, _MODULE_OF)
