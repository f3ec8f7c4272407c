"""From verdicts to grids."""

import dataclasses

from lit_thinkfast.metrics.tables import accuracies, verdict_grid
from lit_thinkfast.records import Verdict


def test_best_of_n_ranks_by_log_odds_where_probabilities_are_equal():
    made = [
        Verdict("p", 0, "incorrect", "1", "1", score=1.0, log_odds=40.0),
        Verdict("p", 1, "correct", "2", "2", score=1.0, log_odds=41.0),
    ]
    assert accuracies(verdict_grid(made), [2])["best_of_n@2"] == 1.0
    partly = [made[0], dataclasses.replace(made[1], log_odds=None)]
    assert accuracies(verdict_grid(partly), [2])["best_of_n@2"] == 0.5, "scores and log-odds do not mix"
