"""Reports are handed over once, oldest first, with their contents unchanged."""

import torch
from torch import Tensor

from gradsift.records import ScoreUpdate, WeightedBatch
from gradsift.sifting.mailbox import Mailbox, Reported
from gradsift.sifting.observations import Scored


def report(number: int, *, scored: bool) -> Reported:
    ids = torch.tensor([number, number + 1])
    batch = WeightedBatch(
        inputs=ids,
        targets=ids,
        weights=torch.ones(2),
        ids=ids,
        size=2,
        drawn=True,
        loss_fn=lambda outputs, targets: outputs,
        report=lambda batch, outputs, losses: None,
    )
    scores: Tensor = ids.float() / 10
    if not scored:
        return Reported(batch, ids.float())
    found = Scored(ScoreUpdate(ids, scores, number), batch.weights, drawn=True)
    return Reported(batch, ids.float(), scores, (found,))


def test_an_empty_box_gives_nothing() -> None:
    box = Mailbox()
    assert box.collect() == []
    assert box.collect() == []


def test_reports_come_once_and_in_order() -> None:
    box = Mailbox()
    posted = [report(number, scored=number % 2 == 0) for number in range(3)]
    for one in posted:
        box.post(one)
    collected = box.collect()
    assert [one.batch for one in collected] == [one.batch for one in posted]
    assert box.collect() == []
    box.post(posted[0])
    assert [one.batch for one in box.collect()] == [posted[0].batch]


def test_the_contents_are_unchanged() -> None:
    box = Mailbox()
    box.post(report(4, scored=True))
    box.post(report(6, scored=False))
    first, second = box.collect()
    assert first.losses.tolist() == [4.0, 5.0]
    assert first.scores is not None
    assert first.scores.tolist() == [torch.tensor(0.4).item(), 0.5]
    (found,) = first.scored
    assert found.update.index.tolist() == [4, 5]
    assert found.update.score.tolist() == [torch.tensor(0.4).item(), 0.5]
    assert found.update.version == 4
    assert (second.scores, second.scored) == (None, ())
    assert second.losses.tolist() == [6.0, 7.0]
