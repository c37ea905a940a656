"""The fit of decode terms: known terms come back, a brute force agrees, intervals hold what they promise."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from edgeprune._fit import Row, fit, learn, leave_one_out, predict, without_rows
from edgeprune._prior import Prior, Term

NAMES = ("weights", "overhead", "attention")
TRUE = (1 / 50e9, 60e-6, 1 / 15e9)
MODELS = [(0.4e9, 24, 12288), (1e9, 28, 57344), (2.4e9, 28, 114688), (4.1e9, 32, 131072), (2.1e9, 32, 73728)]


def prior(spread=0.6, noise=0.05, kind_spread=0.1):
    """A factor of 1.5 off in every term."""
    return Prior(
        tuple(Term(n, t * f, spread) for n, t, f in zip(NAMES, TRUE, (1.5, 0.7, 1.5), strict=True)), noise, kind_spread
    )


def rows(models=MODELS, depths=(64, 2048), terms=TRUE, noise=0.0, seed=0, kinds=None):
    rng, found = np.random.default_rng(seed), []
    for (size, blocks, cache), depth in itertools.product(models, depths):
        for kind, (share, factor) in (kinds or {"": (1, 1)}).items():
            amounts = (size * share, float(blocks), float(cache * depth))
            seconds = amounts[0] * terms[0] * factor + amounts[1] * terms[1] + amounts[2] * terms[2]
            found.append(Row(f"{size:g}", amounts, seconds * math.exp(rng.normal(0, noise)), kind))
    return found


def brute_force(rows):
    """min Σ (predicted / measured - 1)² over terms ≥ 0, by trying every set of terms that are zero."""
    design = np.array([np.array(r.amounts) / r.seconds for r in rows])
    best = (math.inf, None)
    for used in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in (1, 2, 3)):
        x = np.zeros(3)
        scale = np.linalg.norm(design[:, used], axis=0)
        x[list(used)] = np.linalg.lstsq(design[:, used] / scale, np.ones(len(rows)), rcond=None)[0] / scale
        if (x >= 0).all():
            best = min(best, (float(np.sum((design @ x - 1) ** 2)), tuple(x)))
    return best[1]


def test_known_terms_come_back():
    found = fit(rows(noise=1e-4), prior(spread=2.0, noise=1e-3))
    assert [t.name for t in found.terms] == list(NAMES)
    for term, true in zip(found.terms, TRUE, strict=True):
        assert term.value == pytest.approx(true, rel=0.02)
    assert (found.n_rows, found.n_groups, found.undetermined, found.confounded) == (10, 5, (), ())


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_brute_force_where_the_prior_is_wide(seed):
    data = rows(noise=0.01, seed=seed)
    wide = fit(data, prior(spread=5.0))
    for term, expected in zip(wide.terms, brute_force(data), strict=True):
        assert term.value == pytest.approx(expected, rel=0.03)  # which weighs the far rows in full


def test_a_term_that_is_not_there_becomes_negligible():
    data = rows(terms=(TRUE[0], 0.0, TRUE[2]), noise=0.005)
    assert brute_force(data)[1] < 2e-6
    overhead = fit(data, prior(spread=3.0, noise=0.01)).terms[1]
    assert overhead.value * 32 < 0.02 * min(r.seconds for r in data)


def test_without_rows_it_is_the_prior():
    before = prior()
    found = without_rows(before)
    assert found.undetermined == NAMES
    for term, given in zip(found.terms, before.terms, strict=True):
        assert term == pytest.approx(given)
    # of a time that is all weights, the interval is the prior's own
    e = predict(found, (1e9, 0, 0))
    assert e.high / e.seconds == pytest.approx(math.exp(1.645 * math.hypot(0.6, 0.05)))


def test_more_rows_narrow_the_interval():
    amounts = (1e9, 28, 28 * 2048 * 1024)
    widths = [
        predict(fit(rows(MODELS[:n], noise=0.03), prior()), amounts).spread
        if n
        else predict(without_rows(prior()), amounts).spread
        for n in (0, 1, 5)
    ]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.2 * widths[0]


@pytest.mark.parametrize(
    ("data", "untold", "pairs"),
    [
        (rows(depths=(64,)), {"attention"}, set()),  # too short for the cache to matter
        (rows(depths=(0,)), {"attention"}, set()),
        (rows([(1e9, 28, 57344), (2e9, 56, 114688), (4e9, 112, 229376)]), {"weights", "overhead"}, {NAMES[:2]}),
        (rows([(4e8, 24, 49152)], depths=(4096,)), {"overhead"}, {NAMES[:2], ("weights", "attention"), NAMES[1:]}),
    ],
)
def test_says_what_the_rows_can_not_tell(data, untold, pairs):
    found = fit(data, prior(noise=0.01))
    assert untold <= set(found.undetermined) | {n for pair in found.confounded for n in pair}
    assert pairs <= set(found.confounded)


def test_quantisations_have_factors_of_their_own():
    kinds = {"Q4_K_M": (0.56, 1.1), "Q8_0": (1.06, 0.9)}
    found = fit(rows(kinds=kinds), prior(spread=1.0, noise=0.002))
    factors = {k.name: k.value for k in found.kinds}
    assert factors["Q4_K_M"] / factors["Q8_0"] == pytest.approx(1.1 / 0.9, rel=0.01)
    known, unknown = (predict(found, (1e9, 0, 0), k).spread for k in ("Q8_0", "Q2_K"))
    assert unknown > known, "a quantisation that was never measured is less sure"


def test_intervals_hold_nine_in_ten():
    """Devices drawn from the prior, one more model predicted from the rows of the others."""
    rng, before, inside = np.random.default_rng(1), prior(spread=0.4, noise=0.05), []
    for seed in range(40):
        terms = [t.value * math.exp(rng.normal(0, t.spread)) for t in before.terms]
        data = rows(terms=terms, noise=0.05, seed=seed, depths=(512,))
        known, new = data[: seed % 4], data[-1]
        e = predict(fit(known, before) if known else without_rows(before), new.amounts)
        inside.append(e.low < new.seconds < e.high)
    assert 0.82 <= statistics.mean(inside) <= 0.98


def test_leaving_a_model_out_leaves_all_of_its_rows_out():
    data = rows(noise=0.01)
    wrong = [r._replace(seconds=r.seconds * 3) if r.group == data[0].group else r for r in data]
    errors = {r.group: math.log(e.seconds / r.seconds) for r, e in leave_one_out(wrong, prior())}
    assert errors[data[0].group] == pytest.approx(-math.log(3), abs=0.25)
    assert len(leave_one_out(data, prior())) == len(data)


def test_a_prior_is_learned_from_devices():
    rng, devices = np.random.default_rng(2), []
    for seed in range(12):
        terms = [t * math.exp(rng.normal(0, 0.2)) for t in TRUE]
        devices.append(rows(terms=terms, noise=0.03, seed=seed))
    learned = learn(devices, prior(spread=0.6, noise=0.1))
    for term, true in zip(learned.terms, TRUE, strict=True):
        assert term.value == pytest.approx(true, rel=0.2)
        assert 0.1 < term.spread < 0.4
    assert 0.02 < learned.noise < 0.05
    assert (learned.n_rows, learned.n_devices) == (120, 12)


@pytest.mark.parametrize("bad", [(-1.0, 1.0, 1.0), (math.nan, 1.0, 1.0), (1.0, 1.0), (0.0, 0.0, 0.0)])
def test_rows_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="row"):
        fit([Row("m", bad, 0.1)], prior())
    with pytest.raises(ValueError, match="row"):
        fit([Row("m", (1.0, 1.0, 1.0), 0.0)], prior())
