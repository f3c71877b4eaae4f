"""A model as a search model of ``mteb``, for its retrieval and reranking tasks of texts and videos.

Scores are those of text-video pairs, not products of two embeddings, so that the protocol is mteb's
``SearchProtocol`` (``index``, then ``search``) and not its encoders'. Written for mteb 2.26.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling, frame_indices
from garevla.evaluation.retrieval import encode_texts
from garevla.evaluation.tiles import score_matrix
from garevla.utils.modes import evaluation_mode
from garevla.utils.slices import slices_of

if TYPE_CHECKING:
    from garevla.training.model import RetrievalModel


class SearchModel:
    """Ranks texts by videos or videos by texts, as ``mteb.evaluate`` asks.

    Args:
        model: as :func:`garevla.training.load_model` returns it.
        sampling: frames that are taken of a video; of a run, ``config.data.frame_sampling``.
        name: under which mteb files the results, ``organization/name``.

    Raises:
        ImportError: mteb is not installed.
    """

    def __init__(
        self,
        model: RetrievalModel,
        sampling: Sampling = DEFAULT_SAMPLING,
        *,
        name: str = "garevla/model",
    ) -> None:
        from mteb.models import ModelMeta

        self.model = model
        self.sampling = sampling
        self.transform = model.encoder.video_transform()
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": name, "modalities": ["text", "video"], "framework": ["PyTorch"]}
        )
        self._corpus: Any = None

    def index(self, corpus: Any, *, encode_kwargs: dict[str, Any], **other: Any) -> None:
        """Encode what is searched.

        Args:
            corpus: a data set with the columns ``id`` and ``video`` (torchcodec decoders) or
                ``text``.
            encode_kwargs: ``batch_size``.
            other: what mteb says of the task.

        Raises:
            ValueError: a data set with both columns or none.
        """
        self._corpus = list(corpus["id"]), *self._encode(corpus, encode_kwargs)

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        encode_kwargs: dict[str, Any],
        top_ranked: dict[str, list[str]] | None = None,
        **other: Any,
    ) -> dict[str, dict[str, float]]:
        """Score what was indexed for each query.

        Args:
            queries: a data set as the corpus, of the other kind.
            top_k: most results of a query.
            encode_kwargs, other: as :meth:`index`.
            top_ranked: where a task reranks, the candidates of each query.

        Returns:
            Scores of the best candidates by their ids, by the queries' ids.

        Raises:
            RuntimeError: nothing was indexed.
            ValueError: queries of the corpus's own kind, or as :meth:`index`.
        """
        if self._corpus is None:
            raise RuntimeError("search() needs index() before it")
        corpus_ids, *candidates = self._corpus
        scores = self._scores(self._encode(queries, encode_kwargs), candidates)
        position = {document: index for index, document in enumerate(corpus_ids)}
        results = {}
        for query, row in zip(queries["id"], scores, strict=True):
            ids = corpus_ids
            if top_ranked is not None:
                ids = [document for document in top_ranked[query] if document in position]
                row = row[[position[document] for document in ids]]
            best, order = row.sort(descending=True, stable=True)
            found = zip(order[:top_k].tolist(), best[:top_k].tolist(), strict=True)
            results[query] = {ids[index]: score for index, score in found}
        return results

    def _scores(self, queries: list[Any], candidates: list[Any]) -> Tensor:
        """(queries, candidates); texts are one tensor, videos two."""
        if len(queries) == len(candidates):
            raise ValueError("queries must be texts where the corpus has videos, and the reverse")
        (texts,), (frames, mask) = sorted((queries, candidates), key=len)
        with evaluation_mode(self.model):
            scores = score_matrix(texts, frames, self.model.similarity, mask)
        return scores if len(queries) == 1 else scores.T

    def _encode(self, items: Any, encode_kwargs: dict[str, Any]) -> list[Any]:
        columns = {"text", "video"} & set(items.column_names)
        if len(columns) != 1:
            raise ValueError(f"a column 'text' or 'video' is needed, found {items.column_names}")
        batch_size = encode_kwargs.get("batch_size", 32)
        if columns == {"text"}:
            return [encode_texts(self.model, list(items["text"]), text_batch_size=batch_size)]
        parts = list(self._encode_videos(items, batch_size))
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    @torch.no_grad()
    def _encode_videos(self, items: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Frame features (b, F, D) and frame mask (b, F) of each batch."""
        device = self.model.encoder.logit_scale.device
        with evaluation_mode(self.model):
            for batch in slices_of(len(items), batch_size):
                frames = [self._frames(items[i]["video"]) for i in range(len(items))[batch]]
                size = self.sampling.max_frames
                video = torch.stack([_padded(each, size) for each in frames]).to(device)
                mask = torch.stack([torch.arange(size) < len(each) for each in frames]).to(device)
                yield self.model.encode_video(video, mask).float(), mask

    def _frames(self, decoder: Any) -> Tensor:
        """Sampled frames (n, 3, H, W), normalized, of a torchcodec ``VideoDecoder``."""
        indices = frame_indices(len(decoder), decoder.metadata.average_fps or 1.0, self.sampling)
        frames = decoder.get_frames_at(indices.tolist()).data.cpu()
        cropped = self.transform.crop(frames.permute(0, 2, 3, 1).numpy())
        return self.transform.normalize(cropped)


def _padded(frames: Tensor, size: int) -> Tensor:
    return torch.cat([frames, frames.new_zeros(size - len(frames), *frames.shape[1:])])
