"""The 2017 method in a training loop: warm-up, draws by predictions, resume, refusals."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from enumeration import float64
from gradsift import Recipe, UsageError, draws, recipes, scores
from gradsift.gate import TauThreshold
from gradsift.predictor import Prediction
from gradsift.records import ScoreUpdate
from gradsift.sampling.distributions import Power
from gradsift.sampling.resampling import Resampler, Resampling
from gradsift.sampling.smoothing import AddShare
from gradsift.sifting.predicted import Predicted

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH = 60, 6
SHORT = replace(
    recipes["katharopoulos2017"],
    prediction=Prediction(candidates=40, warm_up=4, refresh=5, lr=0.01),
    name="short",
)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 3
    x = torch.randn(N, 4, generator=generator) + 1.5 * torch.eye(3, 4)[y]
    return DataLoader(
        TensorDataset(x, y), BATCH, shuffle=True, generator=torch.Generator().manual_seed(1)
    )


class Run:
    """A user's own loop, which can be saved and taken up."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        self.train = gradsift.sift(loader(), self.model, LOSS, recipe=recipe)
        self._going = self.steps()

    def steps(self) -> Iterator[Any]:
        while True:
            for batch in self.train:
                loss = batch.loss(self.model(batch.inputs))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                yield batch

    def take(self, count: int) -> list[Any]:
        return [next(self._going) for _ in range(count)]

    @property
    def policy(self) -> Predicted:
        assert isinstance(self.train.policy, Predicted)
        return self.train.policy


def test_after_the_warm_up_batches_are_drawn() -> None:
    run = Run(SHORT)
    assert str(run.train) == "off: the first 4 steps are in your own order"
    batches = run.take(25)
    assert [batch.drawn for batch in batches] == [False] * 4 + [True] * 21
    assert run.train.gate is not None
    assert run.train.gate["opened_at_step"] == 5
    assert run.train.examples_scored == 0
    assert str(run.train).startswith("on: draws by predicted losses out of 40 candidates; ")
    assert all(len(batch) == BATCH == batch.size for batch in batches)
    assert any("biased on purpose" in notice for notice in run.train.notices)


def test_a_plan_is_candidates_predictions_and_a_draw() -> None:
    """The policy adds nothing of its own: the same generators give the same batch."""
    run = Run(SHORT)
    run.take(12)
    policy: Any = run.policy
    run.train.settle()
    generator = torch.Generator()
    generator.set_state(policy._generator.get_state())
    resampler = Resampler(SHORT.resampling)  # pyright: ignore[reportArgumentType]
    resampler.load_state_dict(policy.resampler.state_dict())
    plan = policy.plan(BATCH)
    ids = torch.randint(N, (40,), generator=generator)
    expected = resampler.draw(policy.predictor.predict(ids), BATCH, generator)
    assert torch.equal(plan.draw.positions, ids[expected.positions])
    assert torch.equal(plan.draw.weights, expected.weights)
    assert plan.source == "table"


def test_the_predictor_learns_the_losses_of_each_step_in_order() -> None:
    run, seen = Run(SHORT), []
    learn = run.policy.predictor.learn

    def remember(ids: Tensor, losses: Tensor, labels: Tensor | None = None) -> None:
        seen.append((ids.tolist(), losses, labels))
        learn(ids, losses, labels)

    run.policy.predictor.learn = remember  # pyright: ignore[reportAttributeAccessIssue]
    batches = []
    for _ in range(8):
        before = [value.detach().clone() for value in run.model.parameters()]
        (batch,) = run.take(1)
        batches.append((batch, before))
    run.train.settle()
    assert len(seen) == 8
    for (ids, losses, labels), (batch, _) in zip(seen, batches, strict=True):
        assert ids == batch.indices.tolist()
        assert labels is not None
        assert labels.tolist() == (batch.indices % 3).tolist()
        assert losses.dtype == torch.float64
    weight, bias = batches[0][1]
    first = LOSS(batches[0][0].inputs @ weight.T + bias, batches[0][0].targets)
    torch.testing.assert_close(seen[0][1].float(), first)


def test_losses_that_are_not_finite_are_left_out_with_their_classes() -> None:
    policy = Run(SHORT).policy
    seen: list[Any] = []
    predictor: Any = policy.predictor
    predictor.learn = lambda *found: seen.extend(found)
    update = ScoreUpdate(torch.arange(3), torch.tensor([1.0, torch.nan, 2.0]), 1, torch.arange(3))
    policy.learn(update, torch.ones(3), drawn=False)
    assert [part.tolist() for part in seen] == [[0, 2], [1.0, 2.0], [0, 2]]
    below = ScoreUpdate(torch.arange(1), torch.tensor([-1.0]), 2)
    with pytest.raises(UsageError, match="use a norm or a loss bounded below"):
        policy.learn(below, torch.ones(1), drawn=False)


@pytest.mark.parametrize("normaliser", ["previous", "population", "batch"])
@pytest.mark.parametrize("k", [1.0, 0.0])
def test_a_run_goes_on_to_the_bit(normaliser: str, k: float) -> None:
    resampling = Resampling(k, normaliser, AddShare(0.5))
    recipe = replace(SHORT, resampling=resampling)
    with torch.random.fork_rng():
        whole = Run(recipe)
        expected = [(b.indices.tolist(), b.weights.tolist()) for b in whole.take(26)]
        for cut in (2, 5, 13):
            first = Run(recipe)
            first.take(cut)
            file = io.BytesIO()
            parts = (first.model, first.optimizer, first.train)
            torch.save([part.state_dict() for part in parts], file)
            file.seek(0)
            second = Run(recipe, seed=7)
            parts = (second.model, second.optimizer, second.train)
            for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(state)
            found = [(b.indices.tolist(), b.weights.tolist()) for b in second.take(26 - cut)]
            assert found == expected[cut:]


def test_pools_with_powers_of_weights_go_on_too() -> None:
    recipe = recipes["katharopoulos2017-exact"]
    with torch.random.fork_rng():
        whole = Run(recipe)
        expected = [(b.indices.tolist(), b.weights.tolist()) for b in whole.take(12)]
        first, second = Run(recipe), Run(recipe, seed=7)
        first.take(5)
        for one, other in (
            (first.model, second.model),
            (first.optimizer, second.optimizer),
            (first.train, second.train),
        ):
            other.load_state_dict(one.state_dict())
        assert [(b.indices.tolist(), b.weights.tolist()) for b in second.take(7)] == expected[5:]
        assert whole.train.examples_scored == 12 * 4 * BATCH


def test_an_exact_pool_is_weighted_by_powers() -> None:
    """The first without a past, the second by the first: against the resampler itself."""
    run = Run(recipes["katharopoulos2017-exact"])
    seen: list[Tensor] = []
    chooser: Any = run.train._chooser
    draw = chooser.resampler.draw

    def remember(scores: Tensor, size: int, generator: torch.Generator) -> Any:
        seen.append(scores)
        return draw(scores, size, generator)

    chooser.resampler.draw = remember
    batches = run.take(2)
    twin = Resampler(Resampling(0.5))
    twin.observe(seen[0])
    smoothed = twin.smoothed(seen[1])
    for j, weight in enumerate(batches[1].weights.tolist()):
        possible = twin.weights(smoothed, torch.arange(len(smoothed)))
        assert float((possible - weight).abs().min()) < 1e-5, j
    first = seen[0].double().mean() / seen[0].double()
    assert all(float((first - w).abs().min()) < 1e-5 for w in batches[0].weights.tolist())


def test_the_population_is_surveyed_once_per_epoch() -> None:
    recipe = replace(SHORT, resampling=Resampling(0.5, "population"))
    run = Run(recipe)
    calls: list[int] = []
    survey = run.policy.resampler.survey

    def remember(found: Tensor) -> None:
        calls.append(len(found))
        survey(found)

    run.policy.resampler.survey = remember  # pyright: ignore[reportAttributeAccessIssue]
    run.take(4 + 2 * N // BATCH + 2)
    assert calls == [N] * 3 or calls == [N] * 2


def test_a_small_pool_of_candidates_is_as_large_as_the_batch() -> None:
    prediction = Prediction(candidates=1, warm_up=0)
    (batch,) = Run(replace(SHORT, prediction=prediction)).take(1)
    assert len(batch) == BATCH


def test_regression_has_no_classes() -> None:
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1))
    model = nn.Linear(3, 1)
    train = gradsift.sift(
        DataLoader(data, BATCH, shuffle=True),
        model,
        lambda outputs, targets: (outputs[:, 0] - targets).square(),
        recipe=SHORT,
    )
    for batch in train:
        batch.loss(model(batch.inputs))
    policy: Any = train.policy
    assert not policy.predictor._labels.any()


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="a Prediction belongs to the source 'predicted'"):
        Recipe(prediction=Prediction())
    with pytest.raises(UsageError, match="a Prediction belongs to the source 'predicted'"):
        Recipe(source="predicted", score=scores.Loss())
    with pytest.raises(UsageError, match="'predicted' needs a Resampling"):
        replace(SHORT, resampling=None)
    with pytest.raises(UsageError, match="no other does"):
        Recipe(source="loader", resampling=Resampling())
    for changes in (
        {"draw": draws.Systematic()},
        {"distribution": Power(0.5)},
        {"correction": gradsift.corrections.Clip(2.0)},
        {"gate": TauThreshold()},
    ):
        with pytest.raises(UsageError, match="a recipe with a resampling received"):
            replace(recipes["katharopoulos2017-exact"], **changes)
    with pytest.raises(UsageError, match="the normaliser 'population', whose losses"):
        Recipe(draw=draws.Multinomial(), resampling=Resampling(normaliser="population"))
    with pytest.raises(UsageError, match="the outputs of a training step determine"):
        replace(SHORT, score=lambda *_: float64([1.0]))


def test_bias_is_declared_by_the_exponent() -> None:
    names = ["katharopoulos2017", "katharopoulos2017-unbiased", "katharopoulos2017-exact"]
    assert [recipes[name].biased for name in names] == [True, False, True]
