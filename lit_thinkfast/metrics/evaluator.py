"""Measure reasoning by sampling: problems in, coverage, majority vote and best-of-N out, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_thinkfast.metrics.grid import SampleGrid
from lit_thinkfast.metrics.tables import accuracies, first_equal
from lit_thinkfast.records import Problem

if TYPE_CHECKING:
    from lit_thinkfast.generation.config import SamplingConfig
    from lit_thinkfast.verification.grading import Verifier
    from lit_thinkfast.verification.reward import RewardModel


class ReasoningEvaluator:
    """Sample answers to problems, grade and score them, and estimate accuracies at several numbers of samples.

    Each process evaluates the problems it is given; :meth:`compute` merges the processes. Samples are seeded by problem
    and sample number, so the numbers do not depend on who evaluates which problem.

    Args:
        sampling: What to sample. ``num_samples`` a problem are drawn.
        ks: Numbers of samples to report. Default: powers of two up to ``num_samples``.
        verifier: Default: :class:`~lit_thinkfast.verification.MathVerifier`.
        reward_model: Scores samples for the best-of-N rules; without one they are not reported.

    Raises:
        ValueError: A k outside 1 .. ``num_samples``.

    Example::

        evaluator = ReasoningEvaluator(SamplingConfig(num_samples=16), ks=[1, 16])
        evaluator.setup(len(problems))
        evaluator.evaluate(model, tokenizer, problems, list(range(len(problems))))
        evaluator.compute()  # {"problems": 100.0, "coverage@1": 0.41, "majority@1": 0.41, "coverage@16": 0.83, ...}
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        ks: Sequence[int] | None = None,
        verifier: Verifier | None = None,
        reward_model: RewardModel | None = None,
    ) -> None:
        most = sampling.num_samples
        self.ks = sorted(set(ks)) if ks else [1 << i for i in range(most.bit_length())]
        if not 1 <= self.ks[0] <= self.ks[-1] <= most:
            wrong = self.ks[-1] if self.ks[-1] > most else self.ks[0]
            raise ValueError(
                f"k {wrong} is not in 1..{most}, the num_samples of each problem; use a smaller k or draw more"
            )
        self.sampling = sampling
        self.verifier = verifier
        self.reward_model = reward_model
        self.grid: SampleGrid | None = None

    def setup(self, num_problems: int) -> None:
        """Make room for the problems of the whole evaluation set, and forget what was seen. The same on every process.

        Raises:
            ValueError: ``num_problems`` is below 1.
        """
        self.grid = SampleGrid(num_problems, num_samples=self.sampling.num_samples)

    def reset(self) -> None:
        """Forget what was seen."""
        self._ready().reset()

    def evaluate(self, model: Any, tokenizer: Any, problems: list[Problem], ids: list[int]) -> None:
        """Sample, grade and score ``problems`` on this process alone.

        A problem whose gold answer a ``MathVerifier`` cannot read is left out, and named in the log.

        Args:
            model: A ``HybridForCausalLM``.
            tokenizer: Of the model.
            problems: Some of the evaluation set; none is fine.
            ids: Index of each in the evaluation set, from 0.

        Raises:
            ValueError: Numbers of problems and ids differ, an id is outside the set, or sampling refuses a problem.
        """
        from lit_thinkfast.generation.sampler import Sampler
        from lit_thinkfast.verification.grading import MathVerifier, gradable
        from lit_thinkfast.verification.scores import checked_scores, name_of

        grid = self._ready()
        if len(problems) != len(ids):
            raise ValueError(f"{len(problems)} problems came with {len(ids)} ids; give one id for each")
        if not problems:
            return
        if self.verifier is None:
            self.verifier = MathVerifier()
        if isinstance(self.verifier, MathVerifier):
            readable = {problem.id for problem in gradable(problems)[0]}
            pairs = [(p, i) for p, i in zip(problems, ids, strict=True) if p.id in readable]
            problems, ids = [p for p, _ in pairs], [i for _, i in pairs]
        completions = list(Sampler(model, tokenizer, self.sampling).sample(problems))
        verdicts = self.verifier.grade_batch(problems, completions)
        scores = None
        if self.reward_model is not None:
            rewards = self.reward_model.score(problems, completions)
            rewards = checked_scores(rewards, completions, name_of(self.reward_model))
            scores = torch.tensor([reward.log_odds for reward in rewards], dtype=torch.float32)
        for problem, index in zip(problems, ids, strict=True):
            mine = [i for i, verdict in enumerate(verdicts) if verdict.problem_id == problem.id]
            samples = [verdicts[i].sample for i in mine]
            grid.update(
                torch.full((len(mine),), index),
                torch.tensor(samples),
                torch.tensor([verdicts[i].correct for i in mine]),
                torch.tensor(first_equal([verdicts[i].canonical for i in mine], samples)),
                None if scores is None else scores[mine],
            )

    def compute(self) -> dict[str, float]:
        """Return ``coverage@k``, ``majority@k`` and, with a reward model, ``weighted_best_of_n@k`` and ``best_of_n@k``.

        ``problems`` is the number of problems behind them. All processes must call it, and get the same numbers; votes
        are weighted by the probability that belongs to the reward's log-odds.

        Raises:
            ValueError: No process evaluated any problem.
        """
        metric = self._ready()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if torch.distributed.get_backend() == "nccl":
                metric.to(torch.device("cuda", torch.cuda.current_device()))
            metric.update(*(torch.empty(0, dtype=torch.int64) for _ in range(4)))  # an idle process has seen nothing
        grid = metric.compute()
        if grid.scored:
            grid = grid._replace(scores=torch.sigmoid(grid.scores), log_odds=grid.scores)
        return {"problems": float(len(grid.problem_ids)), **accuracies(grid, self.ks)}

    def _ready(self) -> SampleGrid:
        if self.grid is None:
            raise ValueError("the number of problems is not known yet; call setup(num_problems) first")
        return self.grid
