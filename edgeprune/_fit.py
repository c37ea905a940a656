"""Terms of a time that is a sum of parts, fitted to measured rows and to what was known before them.

    seconds = Σ_j amount_j · term_j · (factor of the row's kind, on the first term)

For decode the amounts are streamed bytes, blocks and attention's work; a kind is a quantisation. Terms are positive and
rows are compared by ratio, so the fit is of logarithms: with r = ln(predicted / measured) it minimises

    Σ_rows r² / noise²  +  Σ_terms (ln term − ln prior)² / spread²  +  Σ_kinds (ln factor)² / kind_spread²

the mode under log-normal priors (relative non-negative least squares where the prior is wide), with rows weighted as
under Student's t, so that one bad row does not move the rest. Without rows it is the prior, with many rows it is
theirs, and a term that the rows can't tell stays where the prior has it. The derivative of
ln seconds by ln term is the share of the time that the term takes: Jacobian, covariance (Laplace) and the interval of
a prediction all come from these shares.

Intervals hold 90 % if the logarithms are normal. The noise is estimated from rows of models that were left out of the
fit, where there are enough models, so that it covers what the formula misses and not only the scatter about it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgeprune._prior import Prior, Term, Z

TAIL = 4.0  # degrees of freedom of Student's t: a row far from the others pulls little
NOISE_ROWS = 4  # the prior's noise counts as so many rows
TOLD = 0.5  # rows tell a term when they at least halve the prior's spread
VISIBLE = 2.0  # standard deviations of the rows' noise that an effect must stand out by
SETTLED = 1e-2  # change of a spread that ends the learning
MIN_NOISE = 0.005  # no published or timed row is surer than this


# parameters -> residuals (rows), their derivatives (rows × parameters)
Look = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Row(NamedTuple):
    group: str  # rows of one model are left out together
    amounts: tuple[float, ...]  # units of each term
    seconds: float
    kind: str = ""  # scales the first term; "" has no factor of its own


class Fit(NamedTuple):
    terms: tuple[Term, ...]
    kinds: tuple[Term, ...]  # factor on the first term, for every kind in the rows
    covariance: np.ndarray  # of the logarithms: terms, then kinds
    kind_spread: float  # of a kind without rows
    noise: float
    n_rows: int
    n_groups: int
    undetermined: tuple[str, ...]  # terms that the rows say little about
    confounded: tuple[tuple[str, str], ...]  # pairs that the rows can't tell apart


class Estimate(NamedTuple):
    seconds: float
    spread: float

    @property
    def low(self) -> float:
        return self.seconds * math.exp(-Z * self.spread)

    @property
    def high(self) -> float:
        return self.seconds * math.exp(Z * self.spread)


def fit(rows: Sequence[Row], prior: Prior) -> Fit:
    """Terms from rows and prior. Raises ValueError for a row that is not positive and finite."""
    _check(rows, prior)
    found = _solve(rows, prior)
    left_out = [math.log(e.seconds / r.seconds) for r, e in _left_out(rows, prior)]
    if len({r.group for r in rows}) >= 3:
        found = found._replace(noise=_noise(left_out, len(left_out), prior))
    return found


def predict(found: Fit, amounts: Sequence[float], kind: str = "") -> Estimate:
    """Seconds for these amounts, with the spread of one more measurement."""
    names = [k.name for k in found.kinds]
    factor = found.kinds[names.index(kind)].value if kind in names else 1.0
    parts = [a * t.value for a, t in zip(amounts, found.terms, strict=True)]
    parts[0] *= factor
    shares = np.zeros(len(found.terms) + len(names))
    shares[: len(parts)] = np.array(parts) / sum(parts)
    variance = found.noise**2
    if kind in names:
        shares[len(parts) + names.index(kind)] = shares[0]
    elif kind:
        variance += (shares[0] * found.kind_spread) ** 2
    return Estimate(sum(parts), math.sqrt(variance + float(shares @ found.covariance @ shares)))


def leave_one_out(rows: Sequence[Row], prior: Prior) -> list[tuple[Row, Estimate]]:
    """Every row with the prediction of a fit that saw no row of its group."""
    _check(rows, prior)
    return _left_out(rows, prior, fit)


def without_rows(prior: Prior) -> Fit:
    """The prior as a fit."""
    return _solve((), prior)


def learn(devices: Sequence[Sequence[Row]], before: Prior, rounds: int = 40) -> Prior:
    """The prior for one more device like these: empirical Bayes, with `before` counting as one device.

    Expectation-maximisation of the hierarchy device terms ~ LogNormal(value, spread), rows ~ LogNormal(formula, noise):
    every device is fitted under the present prior, whose value and spread then become the mean and the second moment of
    the devices' terms, each with the variance that its own rows left it (Laplace).
    """
    devices = [d for d in devices if d]
    prior, size = before, len(before.terms)
    first = np.log([t.value for t in before.terms])
    first_variance = np.array([t.spread**2 for t in before.terms])
    fits: list[Fit | None] = [None] * len(devices)
    for _ in range(rounds):
        fits = [_solve(d, prior, update_noise=False, start=f) for d, f in zip(devices, fits, strict=True)]
        logs = np.array([[math.log(t.value) for t in f.terms] for f in fits]).reshape(-1, size)
        own = np.array([np.diag(f.covariance)[:size] for f in fits]).reshape(-1, size)
        mean = (first + logs.sum(0)) / (1 + len(fits))
        variance = (first_variance + ((logs - mean) ** 2 + own).sum(0)) / (1 + len(fits))
        kinds = [
            (math.log(k.value), v) for f in fits for k, v in zip(f.kinds, np.diag(f.covariance)[size:], strict=True)
        ]
        kind_variance = (2 * before.kind_spread**2 + sum(v**2 + c for v, c in kinds)) / (2 + len(kinds))
        squares = [_squares(d, f) for d, f in zip(devices, fits, strict=True)]
        count = sum(len(d) for d in devices)
        noise = math.sqrt((NOISE_ROWS * before.noise**2 + sum(squares)) / (NOISE_ROWS + count))
        terms = tuple(
            Term(t.name, math.exp(m), math.sqrt(v)) for t, m, v in zip(before.terms, mean, variance, strict=True)
        )
        moved = [t.spread / p.spread - 1 for t, p in zip(terms, prior.terms, strict=True)] + [noise / prior.noise - 1]
        prior = Prior(terms, noise, math.sqrt(kind_variance), count, len(devices))
        if max(abs(m) for m in moved) < SETTLED:
            break
    return prior


def _solve(rows: Sequence[Row], prior: Prior, update_noise: bool = True, start: Fit | None = None) -> Fit:
    """The mode, by iteratively re-weighted least squares; the noise is re-estimated from the residuals where asked."""
    kinds = sorted({r.kind for r in rows} - {""})
    size = len(prior.terms)
    amounts = np.array([r.amounts for r in rows], float).reshape(len(rows), size)
    measured = np.log([r.seconds for r in rows])
    of_kind = np.array([[r.kind == k for k in kinds] for r in rows], float).reshape(len(rows), len(kinds))
    centre = np.concatenate([np.log([t.value for t in prior.terms]), np.zeros(len(kinds))])
    spreads = [t.spread for t in prior.terms] + [max(prior.kind_spread, 1e-6)] * len(kinds)
    precision = np.diag(1 / np.square(spreads))

    def look(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = amounts * np.exp(x[:size])
        parts[:, 0] *= np.exp(of_kind @ x[size:])
        total = parts.sum(1)
        shares = parts / total[:, None]
        return np.log(total) - measured, np.hstack([shares, shares[:, :1] * of_kind])

    x, noise, weights = centre.copy(), prior.noise, np.ones(len(rows))
    if start is not None:
        x = np.log([t.value for t in (*start.terms, *start.kinds)])
        weights = (TAIL + 1) / (TAIL + (look(x)[0] / noise) ** 2)
    for _ in range(8 if rows else 1):
        x = _minimise(look, x, centre, precision, weights / noise**2)
        residuals, jacobian = look(x)
        information = (jacobian.T * weights) @ jacobian / noise**2
        covariance = np.linalg.inv(information + precision)
        if update_noise:
            used = float(np.trace(covariance @ information))  # parameters that the rows paid for
            noise = _noise(residuals * np.sqrt(weights), len(rows) - used, prior)
        before, weights = weights, (TAIL + 1) / (TAIL + (residuals / noise) ** 2)
        if np.allclose(before, weights, atol=0.02):
            break
    deviations = np.sqrt(np.diag(covariance))
    terms = tuple(Term(t.name, math.exp(v), float(s)) for t, v, s in zip(prior.terms, x, deviations, strict=False))
    factors = tuple(Term(k, math.exp(v), float(s)) for k, v, s in zip(kinds, x[size:], deviations[size:], strict=True))
    return Fit(
        terms,
        factors,
        covariance,
        prior.kind_spread,
        noise,
        len(rows),
        len({r.group for r in rows}),
        tuple(t.name for t, p in zip(terms, prior.terms, strict=True) if t.spread > TOLD * p.spread),
        _confounded(terms, jacobian, noise),
    )


def _minimise(look: Look, x: np.ndarray, centre: np.ndarray, precision: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Levenberg-Marquardt on Σ weight · r² and the prior's squares."""

    def cost(x: np.ndarray) -> float:
        residuals, away = look(x)[0], x - centre
        return float(residuals @ (weights * residuals) + away @ precision @ away)

    damping, now = 1e-3, cost(x)
    for _ in range(200):
        residuals, jacobian = look(x)
        weighted = jacobian.T * weights
        hessian = weighted @ jacobian + precision
        slope = weighted @ residuals + precision @ (x - centre)
        step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -slope)
        there = cost(x + step)
        if there <= now:
            x, gain, now, damping = x + step, now - there, there, damping / 4
            if gain < 1e-8 * (1 + now):
                break
        elif damping > 1e8:
            break
        else:
            damping *= 8
    return x


def _left_out(rows: Sequence[Row], prior: Prior, how=None) -> list[tuple[Row, Estimate]]:
    found = {g: (how or _solve)([r for r in rows if r.group != g], prior) for g in {r.group for r in rows}}
    return [(r, predict(found[r.group], r.amounts, r.kind)) for r in rows]


def _noise(residuals: Sequence[float] | np.ndarray, freedom: float, prior: Prior) -> float:
    total = float(np.sum(np.square(residuals))) + NOISE_ROWS * prior.noise**2
    return max(MIN_NOISE, math.sqrt(total / (max(freedom, 0.0) + NOISE_ROWS)))


def _squares(rows: Sequence[Row], found: Fit) -> float:
    """Expected squared residuals: those at the mode and what the terms' own uncertainty adds."""
    total = 0.0
    for r in rows:
        e = predict(found, r.amounts, r.kind)
        total += math.log(e.seconds / r.seconds) ** 2 + max(0.0, e.spread**2 - found.noise**2)
    return total


def _confounded(terms: Sequence[Term], jacobian: np.ndarray, noise: float) -> tuple[tuple[str, str], ...]:
    """Pairs whose shares of the time move together from row to row, as far as the noise lets one see."""
    found = []
    lengths = np.linalg.norm(jacobian, axis=0)
    for i, j in itertools.combinations(range(len(terms)), 2):
        least = min(lengths[i], lengths[j])
        if least < VISIBLE * noise:
            continue  # not visible at all: undetermined, but not for the other's sake
        cosine = float(jacobian[:, i] @ jacobian[:, j]) / (lengths[i] * lengths[j])
        if least * math.sqrt(max(0.0, 1 - cosine**2)) < VISIBLE * noise:
            found.append((terms[i].name, terms[j].name))
    return tuple(found)


def _check(rows: Sequence[Row], prior: Prior) -> None:
    for r in rows:
        values = (*r.amounts, r.seconds)
        if len(r.amounts) != len(prior.terms) or not all(math.isfinite(v) and v >= 0 for v in values):
            raise ValueError(f"not a row of {len(prior.terms)} terms ≥ 0: {r}")
        if r.seconds <= 0 or not any(r.amounts):
            raise ValueError(f"a row of no time or no work: {r}")
