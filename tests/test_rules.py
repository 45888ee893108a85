"""What every rule promises; rounds, and the rules that choose round by round, against loops."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift import UsageError, rules
from gradsift.rules.budgeted import interest, successive
from gradsift.rules.hidden import hidden, stage
from gradsift.rules.pruned import kept
from picking import BATCH, RULES, N, generator, ones, tell, update, work

EVERY_RULE = pytest.mark.parametrize("name", RULES)
SCORES = st.lists(st.floats(0, 100) | st.just(math.nan), min_size=1, max_size=9)


@EVERY_RULE
def test_picks_are_ids_with_positive_weights_and_repeat_by_seed(name: str) -> None:
    first, again = (work(RULES[name].open(N), range(40), generator(3)) for _ in range(2))
    assert first == again
    for ids, weights, lr_factor, _ in first:
        assert len(ids) == len(weights) == BATCH
        assert all(0 <= k < N for k in ids)
        assert all(weight > 0 for weight in weights)
        assert lr_factor >= 1
    assert RULES[name].open(N).ready == (name in ROUNDS)


ROUNDS = ("random subset", "infobatch", "hidden", "p-sgd", "c-sgd")


@EVERY_RULE
@pytest.mark.parametrize("cut", [0, 2, 7, 21])
def test_what_is_saved_goes_on_to_the_bit(name: str, cut: int) -> None:
    whole = work(RULES[name].open(N), range(40), generator())
    source = generator()
    picker = RULES[name].open(N)
    before = work(picker, range(cut), source)
    file = io.BytesIO()
    torch.save(picker.state_dict(), file)
    work(picker, range(cut, 40), generator(9))  # what was saved does not change with it
    file.seek(0)
    taken_up = RULES[name].open(N)
    taken_up.load_state_dict(torch.load(file, weights_only=True))
    assert before + work(taken_up, range(cut, 40), source) == whole


@EVERY_RULE
def test_broken_scores_change_nothing(name: str) -> None:
    """A loss that is not finite must not spoil means, ranks or the pruning."""
    plain, broken = RULES[name].open(N), RULES[name].open(N)
    for picker in (plain, broken):
        if name == "fixed":
            picker.answer(update(range(N), range(1, N + 1)))
        tell(picker, [0.1 * k for k in range(N)], [k % 3 for k in range(N)])
        picker.draw(1, generator(2))
    broken.learn(update([0, 5], [math.nan, math.inf], [0, 2]), ones(2))
    for picker in (plain, broken):
        picker.learn(update([1], [0.5], [1]), ones(1))
    first, second = (picker.draw(12, generator(4)) for picker in (plain, broken))
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.weights, second.weights)


@EVERY_RULE
def test_a_rule_that_says_that_it_does_not_anneal_does_not(name: str) -> None:
    def picks(progress: float) -> Any:
        picker = RULES[name].open(N)
        if name == "fixed":
            picker.answer(update(range(N), range(1, N + 1)))
        tell(picker, [0.05 * k for k in range(N)], [k % 3 for k in range(N)])
        picker.progress = progress
        drawn = picker.draw(20, generator(1))
        return drawn.positions.tolist(), drawn.weights.tolist(), picker.lr_factor

    assert (picks(0.0) == picks(1.0)) != RULES[name].anneals


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_a_round_has_every_chosen_example_once_whatever_the_batch_size(share: float) -> None:
    picker = rules.RandomSubset(share).open(10)
    source = generator()
    stream = [k for size in (7, 1, 3, 25, 4) for k in picker.draw(size, source).positions.tolist()]
    length = round(10 * share)
    for start in range(0, len(stream) - length, length):
        assert len(set(stream[start : start + length])) == length
    seen = {tuple(sorted(stream[k : k + length])) for k in range(0, 40 - length, length)}
    assert (len(seen) > 1) == (share < 1)


@pytest.mark.parametrize("size", [1, 2])
def test_random_subsets_are_unbiased_by_enumeration(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all permutations that choose a round and order it, every example comes alike often."""
    counts = np.zeros(4)
    chosen = [torch.tensor(p) for p in itertools.permutations(range(4))]
    orders = [torch.tensor(p) for p in itertools.permutations(range(2))]
    outcomes = list(itertools.product(chosen, orders))
    for outcome in outcomes:
        given_out = iter(outcome)
        monkeypatch.setattr(torch, "randperm", lambda n, generator, it=given_out: next(it))
        drawn = rules.RandomSubset(0.5).open(4).draw(size, generator())
        monkeypatch.undo()
        np.add.at(counts, drawn.positions.numpy(), drawn.weights.numpy())
    np.testing.assert_allclose(counts / len(outcomes), size / 4, rtol=1e-12)


def slow_infobatch(
    scores: Sequence[float], prune: float, keys: Sequence[float]
) -> dict[int, float]:
    """Weight by example, as the paper says it, one example at a time."""
    known = [score for score in scores if not math.isnan(score)]
    mean = float(np.mean(known)) if known else 0.0
    below = [k for k, score in enumerate(scores) if score < mean]
    out = sorted(below, key=lambda k: (keys[k], k))[: int(prune * len(below))]
    weights = {}
    for k in range(len(scores)):
        if k in out:
            continue
        weights[k] = len(below) / (len(below) - len(out)) if k in below else 1.0
    return weights


@given(SCORES, st.floats(0, 0.99), st.randoms(use_true_random=False))
def test_infobatch_is_the_published_rule(scores: list[float], prune: float, random: Any) -> None:
    keys = [random.random() for _ in scores]
    ids, weights = kept(np.array(scores), prune, np.array(keys))
    assert dict(zip(ids.tolist(), weights.tolist(), strict=True)) == slow_infobatch(
        scores, prune, keys
    )


@pytest.mark.parametrize("prune", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize(
    "scores", [[1.0, 2.0, 3.0, 9.0, 10.0], [1.0, 1.0, 1.0, 50.0], [math.nan, 1.0, 2.0, 30.0], [2.0]]
)
def test_the_sum_of_a_round_is_unbiased_by_enumeration(scores: list[float], prune: float) -> None:
    """``E[Σ_kept w v] = Σ v`` for every v: over all orders of the keys each unit vector is kept."""
    n = len(scores)
    total = np.zeros(n)
    for keys in itertools.permutations(range(n)):
        ids, weights = kept(np.array(scores), prune, np.array(keys, dtype=float))
        np.add.at(total, ids, weights)
        assert weights.sum() == pytest.approx(n)  # so a step is N/kept times too large in the mean
    np.testing.assert_allclose(total / math.factorial(n), 1.0, rtol=1e-12)


def test_infobatch_ends_its_pruning_when_it_is_told_that_the_run_ends() -> None:
    picker: Any = rules.InfoBatch(prune=0.5, until=0.8).open(8)
    tell(picker, [0.0] * 6 + [9.0, 9.0])
    for progress, length in ((None, 5), (0.79, 5), (0.8, 8), (1.0, 8)):
        picker.progress = progress
        ids = picker.draw(length, generator()).positions.tolist()
        assert len(set(ids)) == length
        assert picker.left == 0


def test_the_first_round_of_infobatch_is_whole() -> None:
    drawn = rules.InfoBatch().open(6).draw(6, generator())
    assert sorted(drawn.positions.tolist()) == list(range(6))
    assert torch.equal(drawn.weights, ones(6))


@given(
    st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=9),
    st.floats(0.01, 0.99),
    st.floats(0.51, 1),
)
def test_hidden_examples_are_the_lowest_that_are_sure(
    doubts: list[float], share: float, confidence: float
) -> None:
    known = [k for k, doubt in enumerate(doubts) if not math.isnan(doubt)]
    lowest = sorted(known, key=lambda k: (doubts[k], k))[: int(share * len(doubts))]
    slow = [k for k in lowest if doubts[k] <= 1 - confidence]
    assert hidden(np.array(doubts), share, confidence).tolist() == slow


def test_what_is_hidden_is_looked_at_again_and_may_come_back() -> None:
    picker = rules.Hidden(share=0.5, confidence=0.7).open(6)
    tell(picker, [0.01, 0.02, 0.03, 0.5, 0.6, 0.7])
    first = picker.draw(2, generator())
    assert picker.lr_factor == pytest.approx(6 / 3)
    assert not len(picker.wanted(1))  # one of the round is still to come
    assert picker.wanted(2).tolist() == [0, 1, 2]
    assert picker.wanted(2).tolist() == [0, 1, 2]  # asking changes nothing
    picker.answer(update([0, 1, 2], [0.9, 0.02, 0.03]))
    assert not len(picker.wanted(2))
    rest = picker.draw(1, generator())
    assert sorted([*first.positions.tolist(), *rest.positions.tolist()]) == [3, 4, 5]
    second = picker.draw(4, generator())
    assert sorted(second.positions.tolist()) == [0, 3, 4, 5]
    assert picker.lr_factor == pytest.approx(6 / 4)


def test_the_hidden_share_falls_in_stages() -> None:
    expected = [(0.0, 1.0), (0.29, 1.0), (0.3, 0.8), (0.6, 0.6), (0.79, 0.6), (0.8, 0.4), (1, 0.4)]
    assert [(progress, stage(progress)) for progress, _ in expected] == expected
    picker = rules.Hidden(share=0.5).open(20)
    tell(picker, [0.0] * 20)
    picker.progress = 0.9
    picker.draw(1, generator())
    assert picker.lr_factor == pytest.approx(20 / (20 - 4))


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=8))
@pytest.mark.parametrize("measure", ["p", "c"])
def test_interest_is_the_published_one(measure: str, doubts: list[float]) -> None:
    values = [doubt if measure == "p" else doubt * (1 - doubt) for doubt in doubts]
    known = [value for value in values if not math.isnan(value)]
    found = interest(np.array(doubts), measure)
    if not known or math.fsum(known) <= 0:
        assert found.tolist() == [1.0] * len(doubts)
        return
    mean = math.fsum(known) / len(known)
    slow = [(max(known) if math.isnan(value) else value) + mean for value in values]
    np.testing.assert_allclose(found, slow, rtol=1e-12)


def test_budgeted_means_are_over_visits() -> None:
    """The mean decides, not the latest: visits of 1 and 0 are as undecided as two of 0.5."""
    picker = rules.Budgeted("c", share=0.5).open(2)
    for doubts in ([1.0, 0.5], [0.0, 0.5]):
        picker.learn(update([0, 1], doubts), ones(2))
    firsts = [picker.draw(1, generator(seed)).positions.item() for seed in range(400)]
    assert 140 < sum(firsts) < 260  # five standard deviations are 50


def test_successive_draws_follow_their_law() -> None:
    """Ordered pairs: ``v_i/Σv · v_j/(Σv − v_i)``, within five standard deviations."""
    values, draws = np.array([1.0, 2.0, 4.0, 0.5]), 8_000
    uniform = torch.rand(draws, 4, dtype=torch.float64, generator=generator(2)).numpy()
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for row in uniform:
        first, second = successive(values, 2, row).tolist()
        counts[first, second] += 1
    for (i, j), count in counts.items():
        law = values[i] / values.sum() * values[j] / (values.sum() - values[i])
        assert abs(count / draws - law) < 5 * math.sqrt(law * (1 - law) / draws)


def test_rounds_of_the_budget_have_its_size_and_no_copies() -> None:
    picker: Any = rules.Budgeted("p", share=0.4).open(10)
    tell(picker, [0.1 * k for k in range(10)])
    for _ in range(5):
        ids = picker.draw(4, generator()).positions.tolist()
        assert len(set(ids)) == 4
        assert picker.left == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rules.RandomSubset(0.0), "RandomSubset received share 0.0"),
        (lambda: rules.RandomSubset(math.nan), "RandomSubset received share nan"),
        (lambda: rules.InfoBatch(prune=1.0), "InfoBatch received prune=1.0"),
        (lambda: rules.InfoBatch(until=1.5), "until=1.5"),
        (lambda: rules.Hidden(share=1.0), "Hidden received share=1.0"),
        (lambda: rules.Hidden(confidence=0.5), r"a confidence in \(0.5, 1\]"),
        (lambda: rules.Budgeted("q"), "expected 'p' or 'c'"),
        (lambda: rules.Budgeted("p", 2.0), "Budgeted received share 2.0"),
        (lambda: rules.Prioritised(alpha=0.0), "expected alpha > 0"),
        (lambda: rules.Prioritised(beta=1.1), "beta from 0 to 1"),
        (lambda: rules.Prioritised(epsilon=0.0), "epsilon > 0"),
        (lambda: rules.RankedByLoss(pressure=0.5), "finite pressures of at least 1"),
        (lambda: rules.RankedByLoss(recompute=0.0), "a number of passes above 0"),
        (lambda: rules.LearntClasses(rate=0.0), "expected a positive rate"),
        (lambda: rules.LearntClasses(uniform=0.0), "a share in"),
        (lambda: rules.ClassGaussian(momentum=1.0), "ClassGaussian received momentum 1.0"),
        (lambda: rules.Fixed(power=0.0), "Fixed received power 0.0"),
    ],
)
def test_parameters_out_of_range(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
