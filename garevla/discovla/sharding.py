"""DiscoVLA's distillation of a batch that several processes share (garevla/head/sharding.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from garevla.head.sharding import Shard


def sharded_distillation(
    frame_similarity: Tensor,
    video_similarity: Tensor,
    logit_scale: Tensor | float,
    variant: str,
    shard: Shard,
) -> Tensor:
    """:func:`garevla.alignment_distillation` of the whole batch.

    With teacher's logits a and student's b, KL = E[a − b] − lse(a) + lse(b), E under softmax(a).
    Of a row, each process has E and both logsumexps over its own videos, from which those of the
    row follow.

    Args:
        frame_similarity: (A, own videos), the teacher, of all processes' texts.
        video_similarity: (A, own videos).
        logit_scale: the factor itself.
        variant: as in :func:`garevla.alignment_distillation`.
        shard: this process's part of the batch.
    """
    student, teacher = video_similarity * logit_scale, frame_similarity * logit_scale
    if variant == "mean_detached":
        teacher = teacher.detach()

    def of(dim: int) -> tuple[Tensor, Tensor, Tensor]:
        expectation = (teacher.softmax(dim) * (teacher - student)).sum(dim)
        return teacher.logsumexp(dim), student.logsumexp(dim), expectation

    teachers, students, expectations = shard.complete_by_process(torch.stack(of(1))).unbind(dim=1)
    total = teachers.logsumexp(dim=0)
    expectation = ((teachers - total).exp() * expectations).sum(dim=0)
    rows = (expectation - total + students.logsumexp(dim=0)).sum()

    teacher_total, student_total, expectation = of(0)
    own_columns = (expectation - teacher_total + student_total).sum()
    columns = shard.complete_by_process(own_columns).sum()
    num_texts, num_videos = shard.num_texts, shard.num_videos
    if variant == "published":
        return 0.5 * (rows + columns) * 100.0 / (num_texts * num_videos)
    return 0.5 * (rows / num_texts + columns / num_videos)
