"""What processes say to each other: packed and unpacked, alone and together, in order and not."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from gradsift.errors import TrainingError, UsageError
from gradsift.records import ScoreUpdate, WeightedBatch
from gradsift.sifting import together
from gradsift.sifting.observations import Scored
from gradsift.sifting.ranks import Alone, EpochOverError, TogetherError
from gradsift.sifting.together import NO_LABEL, Together, find_ranks
from gradsift.sifting.versions import SILENT, Versions
from gradsift.sifting.wrapped import bare, eagerly, sharded
from twins import assert_close


def scored(ids: list[int], *, drawn: bool, version: int = 3, labels: bool = True) -> Scored:
    index = torch.tensor(ids, dtype=torch.int64)
    score = index.float() / 7 + 0.5
    label = index % 5 if labels else None
    update = ScoreUpdate(index, score, version, label)
    return Scored(update, index.double() + 0.25, drawn)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
            st.booleans(),
            st.integers(0, 2**40),
        ),
        max_size=5,
    )
)
def test_nothing_is_lost_on_the_way(parts: list[tuple[list[int], bool, int]]) -> None:
    """Ids beyond 2^24 and 2^53 come back as they were, scores to the bit, oldest versions."""
    found = [scored(ids, drawn=drawn, version=version) for ids, drawn, version in parts]
    back = together._unpacked(*together._packed(found))
    for drawn in (False, True):
        expected = [part for part in found if part.drawn == drawn]
        got = [part for part in back if part.drawn == drawn]
        assert len(got) == (1 if expected else 0)
        if not expected:
            continue
        (one,) = got
        assert one.update.index.tolist() == [
            i for part in expected for i in part.update.index.tolist()
        ]
        assert one.update.score.tolist() == [
            s for part in expected for s in part.update.score.tolist()
        ]
        assert one.weights.tolist() == [w for part in expected for w in part.weights.tolist()]
        assert one.update.version == min(part.update.version for part in expected)
        assert one.update.label is not None


def test_labels_are_known_where_all_are() -> None:
    both = [scored([1, 2], drawn=True), scored([3], drawn=True, labels=False)]
    (found,) = together._unpacked(*together._packed(both))
    assert found.update.label is None
    assert torch.iinfo(torch.int64).min == NO_LABEL


def test_alone_everything_is_ones_own() -> None:
    alone = Alone(rank=2)
    parts = [scored([4], drawn=False)]
    scores = torch.rand(3)
    assert alone.leads
    assert alone.agree(8, wish=True) == [8]
    assert alone.agree(None, wish=False) == [0]
    assert [alone.follows(wish) for wish in (True, False)] == [True, False]
    assert alone.gather(parts) == parts
    assert alone.gather_scores(scores) is scores
    alone.fail(ValueError("unheard"))


@pytest.fixture
def one() -> Iterator[None]:
    """A group of one process."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Heard(Together):
    """Together with processes that say what a test lets them say."""

    def __init__(self, *messages: list[int], told: Any = None) -> None:
        super().__init__("the same", timedelta(seconds=5))
        self.size = len(messages) + 1
        self.messages, self.told = messages, told

    def _heard(self, doing: Any, count: int, *, wish: bool = False) -> list[list[int]]:
        return [[int(doing), count, int(wish)], *self.messages]

    def _objects(self, mine: Any) -> list[Any]:
        others = getattr(self, "told", None)
        return super()._objects(mine) if others is None else [mine, *others]


@pytest.mark.usefixtures("one")
def test_a_group_of_one_says_the_same_as_nobody() -> None:
    group = Together("the same", timedelta(seconds=5))
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert group.agree(8, wish=True) == [8]
    assert group.follows(False)
    assert group.agree(8, wish=False) == [8]
    assert not group.follows(True)
    assert group.gather([]) == []
    (found,) = group.gather([scored([4, 9], drawn=True)])
    assert found.update.index.tolist() == [4, 9]
    assert_close(group.gather_scores(torch.tensor([1.5, 2.0])), torch.tensor([1.5, 2.0]).double())
    assert group.lead("mine") == "mine"


@pytest.mark.usefixtures("one")
def test_meetings_say_what_the_others_do() -> None:
    batch, ended, scores, failed = ([place, 8, 0] for place in (0, 1, 2, 4))
    assert Heard(batch).agree(8, wish=False) == [8, 8]
    with pytest.raises(EpochOverError):
        Heard(ended).agree(8, wish=False)
    with pytest.raises(EpochOverError):
        Heard(ended).gather_scores(torch.ones(2))
    with pytest.raises(TogetherError, match="different points of the loop") as raised:
        Heard(scores).agree(8, wish=False)
    assert isinstance(raised.value, TrainingError)
    with pytest.raises(TogetherError, match="rank 2 stopped: no disk"):
        Heard(batch, failed, told=[None, "no disk"]).agree(8, wish=False)
    assert Heard(ended).agree(None, wish=False) == [0, 8]


@pytest.mark.usefixtures("one")
def test_an_exchange_that_breaks_is_one_line() -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    group = Together("the same", timedelta(seconds=5))
    with pytest.raises(TogetherError, match="heard nothing from another rank within 5 s"):
        group._waiting(broken, [], torch.ones(1))


@pytest.mark.usefixtures("one")
def test_other_descriptions_are_refused() -> None:
    class Different(Together):
        def _objects(self, mine: Any) -> list[Any]:
            return [mine, "by recipe 'pool'"]

    with pytest.raises(UsageError, match=r"rank 1 sifts by recipe 'pool', rank 0 sifts by"):
        Different("by recipe 'table'", timedelta(seconds=5))


@pytest.mark.usefixtures("one")
def test_who_shares_scores() -> None:
    """A group of one has nobody to share with; the group of two is in `test_citizen_ranks.py`."""
    for rank, size in ((None, None), (0, None), (0, 1), (3, 8)):
        assert isinstance(find_ranks(rank, size, "", scored=True), Alone)


def test_without_a_group_the_given_rank_counts() -> None:
    assert find_ranks(None, None, "", scored=True).rank == 0
    assert find_ranks(5, 8, "", scored=True).rank == 5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_uneven_shares_have_the_mean_over_all(sizes: list[int], random: Any) -> None:
    values = [[random.random() for _ in range(size)] for size in sizes]
    means = []
    for mine in values:
        ones = torch.ones(len(mine), dtype=torch.float64)
        batch = WeightedBatch(
            None, None, ones, torch.arange(len(mine)), len(mine), False, loss, lambda *_: None
        )
        shared = batch.among(sizes)
        assert shared.several
        assert shared.drawn == (len(mine) * len(sizes) != sum(sizes))
        means.append(float(shared.mean(torch.tensor(mine, dtype=torch.float64))))
    everything = [value for mine in values for value in mine]
    assert sum(means) / len(means) == pytest.approx(sum(everything) / len(everything))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def test_alone_a_batch_stays_what_it_is() -> None:
    batch = WeightedBatch(
        None, None, torch.ones(3), torch.arange(3), 3, False, loss, lambda *_: None
    )
    assert batch.among([3]) is batch


def test_a_loss_that_is_not_finite_waits_for_the_others() -> None:
    bad = torch.tensor([1.0, torch.nan])
    batch = WeightedBatch(
        None, None, torch.ones(2), torch.arange(2), 2, False, loss, lambda *_: None
    )
    with pytest.raises(TrainingError, match="stopped before the update"):
        batch.loss(bad)
    shared = batch.among([2, 2])
    assert not shared.loss(bad).isfinite()
    with pytest.raises(TrainingError, match=r"is not finite \(ids 1\): lower"):
        shared.check_finite(bad)


@pytest.mark.parametrize("kind", ["sgd", "adam", "foreach"])
def test_versions_count_updates(kind: str) -> None:
    model = nn.Linear(2, 1)
    optimizers: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1),
        "adam": lambda: torch.optim.AdamW(model.parameters()),
        "foreach": lambda: torch.optim.SGD(model.parameters(), lr=0.1, foreach=True),
    }
    optimizer = optimizers[kind]()
    versions = Versions(model)
    expected = 1
    for updates in (True, False, False, True, True, False, True):
        model(torch.ones(3, 2)).sum().backward()
        assert versions.read() == expected
        if updates:
            optimizer.step()
            expected += 1


def test_updates_without_a_mark_are_counted_by_readings() -> None:
    """A fused optimiser, an update of ``.data``, a model that is no module."""
    model = nn.Linear(2, 1)
    versions = Versions(model)
    for reading in range(SILENT + 10):
        model.weight.data.add_(0.1)
        assert versions.read() == max(1, reading + 2 - SILENT)
    plain = Versions(torch.sin)
    assert [plain.read() for _ in range(3)] == [1, 2, 3]


def test_wrappers_are_looked_into() -> None:
    inner = nn.Linear(2, 1)
    assert bare(DataParallel(inner)) is inner
    assert bare(torch.compile(DataParallel(inner), backend="eager")) is inner
    compiled = torch.compile(inner, backend="eager")
    assert bare(compiled) is compiled
    assert bare(torch.sin) is torch.sin
    assert not sharded(inner)
    assert not sharded(torch.sin)


def test_eagerly_nothing_is_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = torch.compile(nn.Linear(2, 1), backend="eager")
    with eagerly():
        model(torch.ones(3, 2))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    model(torch.ones(3, 2))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
