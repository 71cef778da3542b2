"""Which settings mattered: shares of the variance between trials, tested against chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iadd_fast.seeds import derive
from iadd_fast.tuning.space import Choices, Range, Space
from iadd_fast.tuning.storage import import_optuna, quiet

TREES = 16
SHUFFLES = 24
#: Fewer trials are not analysed.
LEAST_TRIALS = 5
#: Trials per searched setting below which the shares are called unreliable: a rule of thumb.
TRIALS_PER_SETTING = 10


def importances(
    space: Space, trials: Sequence[tuple[Mapping[str, Any], float]], seed: int
) -> dict[str, Any]:
    """The share of a figure's variance over the space that each setting accounts for alone.

    Functional ANOVA on a random forest (Hutter, Hoos and Leyton-Brown, ICML 2014; Optuna's
    ``FanovaImportanceEvaluator``, 16 trees), with settings of a logarithmic range as logarithms.
    What the shares leave over is in their interactions. A forest also fits noise: the same is done
    24 times with the figures shuffled over the trials. ``chance`` is the 95 % quantile of the
    largest share there, and p of a setting is how often that largest share was at least its own,
    (1 + count) / 25, so the smallest p is 0.04. Later trials are drawn where earlier ones were
    good, not at random, so p is approximate. Time: about 3 ms per tree, setting and 100 trials.

    Args:
        space: what was searched.
        trials: of each, what was drawn and its figure, such as the accuracy.
        seed: fixes forest and shuffles.

    Returns:
        ``{"trials", "reliable", "note", "chance", "settings": [{"name", "share", "p"}, ...]}``,
        settings with the largest share first, shares in [0, 1]; no settings and ``chance`` None
        where there are fewer than 5 trials or their figures are all the same.
    """
    found: dict[str, Any] = {
        "trials": len(trials), "reliable": False, "note": "", "chance": None, "settings": [],
    }  # fmt: skip
    figures = np.array([figure for _, figure in trials])
    if len(trials) < LEAST_TRIALS:
        found["note"] = f"rests on {len(trials)} trials, too few to say anything"
        return found
    if np.ptp(figures) == 0:
        found["note"] = f"rests on {len(trials)} trials, which are all the same in it"
        return found
    drawn = [values for values, _ in trials]
    shares = _shares(space, drawn, figures, seed)
    draw = np.random.default_rng(derive(seed, "importances"))
    chance = [
        max(_shares(space, drawn, draw.permutation(figures), seed).values())
        for _ in range(SHUFFLES)
    ]
    wanted = TRIALS_PER_SETTING * len(space.searched)
    found["reliable"] = len(trials) >= wanted
    found["note"] = f"rests on {len(trials)} trials for {len(space.searched)} settings"
    if not found["reliable"]:
        found["note"] += f"; below {wanted} take it as a hint, it is not reliable"
    found["chance"] = float(np.quantile(chance, 0.95))
    found["settings"] = [
        {
            "name": name,
            "share": share,
            "p": (1 + sum(other >= share for other in chance)) / (1 + SHUFFLES),
        }
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    ]
    return found


def _shares(
    space: Space, drawn: Sequence[Mapping[str, Any]], figures: np.ndarray, seed: int
) -> dict[str, float]:
    optuna = import_optuna()
    # The evaluator's own measure of a range is linear whatever its scale.
    scales: dict[str, Any] = {}
    for name, kind in space.searched.items():
        if isinstance(kind, Choices):
            scales[name] = optuna.distributions.CategoricalDistribution(kind.values)
        else:
            ends = _even(kind, kind.low), _even(kind, kind.high)
            scales[name] = optuna.distributions.FloatDistribution(*ends)
    with quiet(optuna):
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={
                        name: _even(kind, values[name]) for name, kind in space.searched.items()
                    },
                    distributions=scales,
                    value=float(figure),
                )
                for values, figure in zip(drawn, figures, strict=True)
            ]
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(
            n_trees=TREES, seed=derive(seed, "forest") % 2**32
        )
        found = evaluator.evaluate(study)
    return {name: float(share) for name, share in found.items()}


def _even(kind: Range | Choices, value: Any) -> Any:
    return math.log10(value) if isinstance(kind, Range) and kind.log else value
