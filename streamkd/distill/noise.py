"""Label noise: what part of the labels is wrong, as far as sure answers tell.

    answers to records that nobody had learned yet ─► the most confident of them ─► how often the label says otherwise

Who is ignorant errs where he is unsure; a wrong label contradicts the sure as often as anybody. So the mistakes among
the most confident answers count the wrong labels, and leave out what is merely not known yet. (The small losses of
co-teaching, Han et al. 2018, turned round: there the records of which a network is sure are taken for clean ones.)

Two kinds of answers are of records not learned: a teacher's on the held-out records, and what the student said of each
remembered record as it came. Of the teachers the one is asked who is right most often: a bad one is sure and wrong for
reasons of its own, and the least surprised of many would be so by luck. Of the two the smaller share is taken: a
student who meets a new class is sure and wrong as well, and one who has learned little says little of the held-out
records.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.distill.memory import Memory, whole

FEWEST = 4  # confident answers; fewer tell nothing
HELD_OUT = 1 / 2  # they are few
ARRIVALS = 1 / 3  # of all that is remembered: what came first of a new class is surely taken for an old one
QUIET, LOUD = 0.05, 0.25  # a small part is ignorance as often as error


def surprise(
    logits: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    part: float,
) -> float | None:
    """The share of mistakes among the most confident ``part`` of the rows whose label is known, one right row added.

    ``None`` where fewer than ``FEWEST`` would be left.
    """
    heard = known.gather(1, labels.unsqueeze(1)).squeeze(1)
    count = int(int(heard.sum()) * part)
    if count < FEWEST:
        return None
    logits, labels = logits[heard].masked_fill(~known[heard], -torch.inf), labels[heard]
    confidence, answer = torch.softmax(logits, 1).max(1)
    surest = confidence.argsort(descending=True, stable=True)[:count]
    return int((answer[surest] != labels[surest]).sum()) / (count + 1)


def on_arrival(memory: Memory) -> float | None:
    """The surprise of the student at all remembered records, held out or not, when they came."""
    rings = [ring for ring in (whole(memory.holdout), whole(memory.replayed)) if ring is not None]
    if not rings:
        return None
    logits = torch.cat([ring.logits().float() for ring in rings])
    width = torch.cat([ring.width() for ring in rings])
    known = torch.arange(logits.shape[1], device=logits.device) < width.unsqueeze(1)
    return surprise(logits, known, torch.cat([ring.y for ring in rings]), ARRIVALS)


def label_noise(
    logits: Float[Tensor, "batch teachers classes"],
    known: Bool[Tensor, "batch teachers classes"],
    labels: Int[Tensor, "batch"],
    memory: Memory,
) -> float:
    """The smaller surprise, in [0, 1), of the best teacher at held-out records and the student at what is remembered.

    0 where neither can be asked.
    """
    found = [on_arrival(memory)]
    if logits.shape[1]:
        answers = logits.masked_fill(~known, -torch.inf).argmax(2)
        right = (answers == labels.unsqueeze(1)) & known.gather(2, answers.unsqueeze(2)).squeeze(2)
        best = int(right.sum(0).argmax())
        found.append(surprise(logits[:, best], known[:, best], labels, HELD_OUT))
    return min((share for share in found if share is not None), default=0.0)


def doubt(noise: float) -> float:
    """How far a label is to be doubted where a part ``noise`` of them seems wrong: 0 up to ``QUIET``, 1 at 0.3."""
    return min(1.0, max(0.0, (noise - QUIET) / LOUD))
