"""Routing over the course of training: how early decisions settle, how they depend on the token, how far
layers and seeds agree, and how well simple rules predict them. Arrays in, numbers out.

Decisions are a boolean array (N, E) over the tokens of a fixed batch: of depth routing one column, the
selected tokens; of experts one column each. W windows, T tokens, N = W * T, E experts, F features.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, log
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix, hstack
from scipy.stats import rankdata

Array = np.ndarray
#: Weight of the squared coefficients against a log-likelihood that is a sum over tokens: a token id seen
#: once moves the score, and one seen ten times decides it.
RIDGE = 1.0
#: Periods of the position that are among its features: strides of capacities down to 1/16.
_PERIODS = range(2, 17)
#: Piecewise-linear features of the position, and bins of the rank of a number in its window.
_KNOTS, _BINS = 32, 16
#: Parts of the positions, each of which is scored by a fit on the others.
_TURNS = 4
#: Of some 200 features of the position that are independent of a decision, none exceeds this in most
#: fits.
_STANDARD_ERRORS = 3.5
_PERMUTATIONS = 8


def saturation(chosen_NE: Array, final_NE: Array) -> float | None:
    """Share of the final decisions that are taken already (Muennighoff et al. 2024, OLMoE, section 5.1);
    None if there are none."""
    total = int(final_NE.sum())
    return int((chosen_NE & final_NE).sum()) / total if total else None


def agreement(first_NE: Array, second_NE: Array) -> float | None:
    """Decisions that two layers or seeds share, over the geometric mean of their numbers. Experts are
    matched one to one so that most are shared (the Hungarian method)."""
    both_EE = first_NE.T.astype(np.int64) @ second_NE.astype(np.int64)
    each = float(first_NE.sum()) * float(second_NE.sum())
    return float(both_EE[linear_sum_assignment(-both_EE)].sum() / each**0.5) if each else None


def load_measures(load_E: Array) -> dict[str, float]:
    """Entropy of the experts' load over that of an even one, the busiest expert's load over the mean,
    and the number of unused experts; empty without load, or for a single expert."""
    if not load_E.sum() or len(load_E) < 2:
        return {}
    return {
        "load_entropy": _entropy(load_E) / log(len(load_E)),
        "load_peak": float(load_E.max() / load_E.mean()),
        "unused_experts": float((load_E == 0).sum()),
    }


def specialisation(chosen_NE: Array, groups_N: Array) -> float | None:
    """Information that a token's group (its id, or its document) has on the decision, as a share of all
    that the token could have: 0 if they are independent, 1 if the group determines the decision. The
    information that shuffled groups appear to have is subtracted (as in adjusted mutual information).
    None if there is nothing to decide."""
    _, group_N = np.unique(groups_N, return_inverse=True)
    if chosen_NE.shape[1] == 1:
        chosen_NE = np.hstack((chosen_NE, ~chosen_NE))
    token_P, expert_P = np.nonzero(chosen_NE)  # pairs of a token and one of its experts
    if not len(token_P):
        return None
    several = float(np.log(chosen_NE.sum(1)[token_P]).mean())
    most = _entropy(np.bincount(expert_P)) - several

    def information(of_N: Array) -> float:
        joint_P = of_N[token_P] * chosen_NE.shape[1] + expert_P
        parts = np.bincount(expert_P), np.bincount(of_N[token_P])
        return sum(map(_entropy, parts)) - _entropy(np.bincount(joint_P))

    random = np.random.default_rng(0)
    chance = np.mean([information(random.permutation(group_N)) for _ in range(_PERMUTATIONS)])
    if most - chance < 1e-9:
        return None
    return float((information(group_N) - chance) / (most - chance))


def _entropy(counts: Array) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def auc(scores_N: Array, member_N: Array) -> float | None:
    """Area under the ROC curve of ``scores_N``: the probability that a member scores higher than another
    token, ties counting half. None without both."""
    members, others = int(member_N.sum()), int((~member_N).sum())
    if not members or not others:
        return None
    rank_N = rankdata(scores_N.round(9))
    return float((rank_N[member_N].sum() - members * (members + 1) / 2) / (members * others))


class Predictors:
    """The predictors of decisions on a batch, see `modbench.records.traces.Predictor`: ridge logistic
    models. ``ids_WT``: token ids; ``capacity``: of depth routing, for its stride; ``dense_WT``,
    ``changes_LN``: this token's loss under the dense model, and what each of its layers adds; None, or
    empty: there is none.

    They are fitted on every second window and scored on the others (``scored_N``): those of ids on
    tokens whose id the fitted half has. That of the position is scored on other positions than it is
    fitted on, in `_TURNS` turns, from those of its features that are related to the decision by
    `_STANDARD_ERRORS` or more, with a position as the unit: a set of positions that was drawn at random
    once, as by the control ``gaussian`` under the causal rule, is no rule that carries over to others.
    """

    def __init__(
        self,
        ids_WT: Array,
        *,
        capacity: float | None = None,
        dense_WT: Array | None = None,
        changes_LN: Sequence[Array] = (),
    ) -> None:
        windows, tokens = self._shape = ids_WT.shape
        self._changes_LN = changes_LN
        self.scored_N = (np.arange(windows) % 2 == 1).repeat(tokens)
        id_N = ids_WT.ravel()
        self._known_N = np.isin(id_N, id_N[~self.scored_N])
        before_WT = np.hstack((np.full((windows, 1), -1), ids_WT[:, :-1]))
        places_NF = np.tile(_position_features(tokens, capacity), (windows, 1))
        self._features: dict[str, Any] = {"position": places_NF, "id": _one_hot(id_N)}
        self._features["ids"] = hstack((self._features["id"], _one_hot(before_WT.ravel())), format="csr")
        if dense_WT is not None:
            self._features["dense_loss"] = self._number(dense_WT.ravel())
        turn_T = np.random.default_rng(0).permutation(tokens) % _TURNS
        self._turn_N = np.tile(turn_T, windows)

    def of(
        self, layer: int, chosen_NE: Array, reached_N: Array
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """The scores (N, E) of each predictor of ``layer`` for all tokens, and the area under its ROC
        curve, if that is known; of experts, the membership in each one is predicted, and areas are
        averaged by load."""
        features, scores, areas = dict(self._features), dict[str, Array](), dict[str, float]()
        if layer < len(self._changes_LN):
            features["dense_change"] = self._number(np.log(self._changes_LN[layer] + 1e-6))
        for name, features_NF in features.items():
            scores[name], of_turns = np.zeros(chosen_NE.shape), []
            for turn in range(_TURNS) if name == "position" else [None]:
                other_N = np.full(len(reached_N), True) if turn is None else self._turn_N == turn
                fitted_N = reached_N & ~self.scored_N & (~other_N | (turn is None))
                judged_N = reached_N & self.scored_N & other_N
                judged_N &= self._known_N | (name not in ("id", "ids"))
                for expert, member_N in enumerate(chosen_NE.T):
                    used_NF = features_NF
                    if name == "position":
                        used_NF = features_NF[:, self._related(features_NF, member_N, fitted_N)]
                    score_N = _fitted(used_NF, member_N, fitted_N)
                    scores[name][other_N, expert] = score_N[other_N]
                of_turns.append(_mean_auc(scores[name][judged_N], chosen_NE[judged_N]))
            if known := [area for area in of_turns if area is not None]:
                areas[name] = float(np.mean(known))
        return scores, areas

    def _related(self, places_NF: Array, member_N: Array, fitted_N: Array) -> Array:
        """The features (F,) bool of the position that are related to the decision on tokens
        ``fitted_N``."""
        place_N = np.arange(len(member_N)) % self._shape[1]
        count_T = np.bincount(place_N[fitted_N], minlength=self._shape[1])
        share_T = np.bincount(place_N[fitted_N & member_N], minlength=self._shape[1])
        rest_T = (share_T / np.maximum(count_T, 1) - share_T.sum() / max(count_T.sum(), 1))[count_T > 0]
        centred_TF = places_NF[: self._shape[1]][count_T > 0]
        centred_TF = centred_TF - centred_TF.mean(0, keepdims=True) if len(centred_TF) else centred_TF
        error_F = np.sqrt((centred_TF**2).sum(0) * (rest_T**2).sum() / max(len(rest_T), 1))
        related_F: Array = np.abs(rest_T @ centred_TF) > _STANDARD_ERRORS * error_F
        return related_F

    def _number(self, value_N: Array) -> Any:
        """Features of a number: its standard score, its rank in its window, and bins of that."""
        rank_N = (rankdata(value_N.reshape(self._shape), axis=1, method="ordinal") - 1).ravel()
        rank_N = rank_N / self._shape[1]
        standard_N = (value_N - value_N.mean()) / (value_N.std() or 1)
        bins = _one_hot((rank_N * _BINS).astype(int))
        return hstack((np.stack((standard_N, rank_N), axis=1), bins), format="csr")


def _fitted(features_NF: Any, member_N: Array, fitted_N: Array) -> Array:
    """The scores (N,) of a logistic model of ``member_N`` that is fitted on the tokens ``fitted_N``; 0
    without a feature, or if all or none of them are members."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    if not features_NF.shape[1] or len({*member_N[fitted_N].tolist()}) < 2:
        return np.zeros(len(member_N))
    model = LogisticRegression(C=1 / RIDGE, solver="newton-cg", max_iter=1000)
    scores_N: Array = model.fit(features_NF[fitted_N], member_N[fitted_N]).decision_function(features_NF)
    return scores_N


def _mean_auc(scores_NE: Array, chosen_NE: Array) -> float | None:
    areas = [auc(*of) for of in zip(scores_NE.T, chosen_NE.T, strict=True)]
    known = [(of, load) for of, load in zip(areas, chosen_NE.sum(0), strict=True) if of is not None]
    return sum(of * load for of, load in known) / sum(load for _, load in known) if known else None


def _one_hot(values_N: Array) -> Any:
    _, column_N = np.unique(values_N, return_inverse=True)
    return csr_matrix((np.ones(len(column_N)), (np.arange(len(column_N)), column_N)))


def _position_features(tokens: int, capacity: float | None) -> Array:
    """Features (T, F) of each position: itself and its logarithm, both also piecewise linear; its
    remainder for each of `_PERIODS`; and whether the stride of ``capacity`` selects it."""
    place_T = np.arange(tokens)
    scales = [place_T / tokens, np.log1p(place_T) / log(tokens + 1)]
    columns = [*scales]
    for scale_T in scales:
        knots = np.linspace(0, 1, min(_KNOTS, max(2, tokens // 8)))
        columns += [np.clip(1 - np.abs(scale_T - knot) / knots[1], 0, None) for knot in knots]
    for period in _PERIODS:
        columns += [(place_T % period == remainder).astype(float) for remainder in range(period)]
    if capacity is not None and 0 < capacity <= 1:
        share = Fraction(repr(float(capacity)))
        strided = {int(number / share) for number in range(ceil(tokens * share))}
        columns.append(np.isin(place_T, [*strided]).astype(float))
    return np.stack(columns, axis=1)


def chosen_like(scores_TE: Array, own_TE: Array, axis: int) -> Array:
    """The decisions (T, E) that score highest along ``axis``, as many as ``own_TE`` has there: 0, tokens
    of each expert, or 1, experts of each token. Ties go to the first."""
    rank_TE = (-scores_TE).argsort(axis, kind="stable").argsort(axis, kind="stable")
    return rank_TE < own_TE.sum(axis, keepdims=True)
