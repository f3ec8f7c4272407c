"""What is shown in the log besides numbers: the config, sample completions, and accuracy against samples as a figure.

Made for TensorBoard; a logger with ``log_text`` or ``log_image`` of Lightning's form, such as that of Weights & Biases,
is given samples and figures too, and any other is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_thinkfast.analysis.text import RULE_NAMES, plain
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.records import BudgetPoint, Completion, Problem, Rule, Verdict
from lit_thinkfast.verification.grading import MathVerifier, Verifier, gradable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LogConfig(SaveConfigCallback):
    """Save the config of a training beside its checkpoints and show it in TensorBoard as text."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # other stages leave nothing that a config could belong to
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", verbatim(text), trainer.global_step)


class LogSamples(Callback):
    """Show what the student writes, at each validation: the same prompts and random numbers each time.

    Under ``val/samples`` (``test/samples`` in a test) stand question, completion and, for problems with a gold answer,
    that answer and the verdict. All ranks sample the same, since they would wait for each other anyway and each may
    hold a part of the weights; rank 0 grades and logs.

    Args:
        prompts: Questions put to the student. By default the first problems of the data module.
        count: How many problems.
        sampling: By default the likeliest token each time (greedy), 256 tokens at most. Training waits for it.
        verifier: Grades answers. By default :class:`~lit_thinkfast.verification.MathVerifier`.

    Raises:
        ValueError: ``count`` is below 1 or ``prompts`` is empty; later, there is nothing to sample from, or no
            tokenizer.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str] | None = None,
        count: int = 4,
        sampling: SamplingConfig | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count {count} is below 1; leave the callback out where no samples are wanted")
        if prompts is not None and not prompts:
            raise ValueError("prompts is empty; name some, or leave it out for problems of the data module")
        self.prompts = prompts
        self.count = count
        self.sampling = sampling or SamplingConfig(temperature=0.0, num_samples=1, max_new_tokens=256)
        self.verifier: Verifier = verifier or MathVerifier()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        problems = self._problems(trainer)
        with trainer.precision_plugin.forward_context():
            sampler = Sampler(pl_module.student, trainer.datamodule.tokenizer, self.sampling)  # type: ignore[arg-type, attr-defined]
            completions = list(sampler.sample(problems))
        if not trainer.is_global_zero:
            return
        place = {problem.id: number for number, problem in enumerate(problems)}
        completions.sort(
            key=lambda completion: (place[completion.problem_id], completion.sample)
        )  # they come as they end
        verdicts: list[Verdict | None] = [None] * len(completions)
        if self.prompts is None:
            verdicts = list(self.verifier.grade_batch(problems, completions))
        owners = [problems[place[completion.problem_id]] for completion in completions]
        log_samples(trainer, _tag(trainer, "samples"), list(zip(owners, completions, verdicts, strict=True)))

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def _problems(self, trainer: Trainer) -> list[Problem]:
        if self.prompts is not None:
            return [Problem(f"prompt {number}", prompt, "") for number, prompt in enumerate(self.prompts, start=1)]
        found = list(getattr(_data(trainer), "problem_set", None) or [])[: self.count]
        if isinstance(self.verifier, MathVerifier):
            found, _ = gradable(found)
        return found

    def _check(self, trainer: Trainer) -> None:
        if not self._problems(trainer):
            raise ValueError(
                "LogSamples has nothing to sample from; give it prompts, or the data module problems and the model an "
                "evaluator"
            )
        if getattr(_data(trainer), "tokenizer", None) is None:
            raise ValueError(
                "LogSamples needs the attribute tokenizer of the data module; use MathDataModule, or set it in setup"
            )


class LogReasoningFigure(Callback):
    """Draw accuracy against samples a problem, one line for each rule, from what validation measured.

    It stands under ``val/reasoning`` (``test/reasoning`` in a test) and needs an evaluator with two values of k at
    least; without one, nothing is drawn.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        tag = _tag(trainer, "reasoning")
        points = reasoning_points(trainer.callback_metrics, prefix=tag.removesuffix("reasoning"))
        if len({point.k for point in points}) < 2:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, reasoning_figure(points), trainer.global_step)
            elif hasattr(logger, "log_image"):
                logger.log_image(key=tag, images=[reasoning_figure(points)], step=trainer.global_step)

    on_test_end = on_validation_end


def reasoning_points(metrics: Mapping[str, Any], *, prefix: str) -> list[BudgetPoint]:
    """Return the metrics named ``<prefix><rule>@<k>`` as points without intervals, by rule and k."""
    points = []
    for name, value in metrics.items():
        if found := re.fullmatch(rf"{re.escape(prefix)}({'|'.join(RULE_NAMES)})@(\d+)", name):
            rule: Rule = found[1]  # type: ignore[assignment]
            share, number = float(value), int(metrics.get(f"{prefix}problems", 0))
            points.append(BudgetPoint("student", rule, int(found[2]), 0.0, share, share, share, number))
    return sorted(points, key=lambda p: (list(RULE_NAMES).index(p.rule), p.k))


def reasoning_figure(points: Sequence[BudgetPoint]) -> Figure:
    """Draw the rules of one model against samples a problem."""
    import matplotlib

    from lit_thinkfast.analysis.axes import k_axis, label_ends, panel, share_axis
    from lit_thinkfast.analysis.style import PAPER, RC, model_styles

    with matplotlib.rc_context({**RC, "figure.facecolor": PAPER[0]}):
        figure, axes = panel()
        ends = []
        for rule, style in model_styles(p.rule for p in points).items():
            own = [p for p in points if p.rule == rule]
            axes.plot([p.k for p in own], [p.value for p in own], color=style.colour, marker=style.marker, markersize=4)
            ends.append((RULE_NAMES[rule], own[-1].value, style.colour))
        share_axis(axes, points)
        k_axis(axes, [p.k for p in points])
        axes.set_title(f"share of {points[0].num_problems} problems solved", loc="left", fontsize=9)
        label_ends(axes, ends)
    return figure


def log_samples(trainer: Trainer, tag: str, samples: Sequence[tuple[Problem, Completion, Verdict | None]]) -> None:
    """Give samples to the loggers that take text."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            text = "\n\n".join(sample_markdown(*sample) for sample in samples)
            logger.experiment.add_text(tag, text, trainer.global_step)
        elif hasattr(logger, "log_text"):
            columns = ["problem", "question", "completion", "answer", "gold", "verdict"]
            rows = [
                [p.id, p.question, c.text, v.answer if v else None, p.answer if v else None, v.outcome if v else None]
                for p, c, v in samples
            ]
            logger.log_text(key=tag, columns=columns, data=rows, step=trainer.global_step)


def sample_markdown(problem: Problem, completion: Completion, verdict: Verdict | None) -> str:
    """Return one sample as Markdown in which no text of a model or data set can be more than text."""
    length = f"{completion.num_tokens} tokens" + (", cut off" if completion.finish_reason == "length" else "")
    facts = [problem.id, f"sample {completion.sample}, {length}"]
    if verdict is not None:
        facts.append(f"{verdict.outcome}: answer {verdict.answer or '(none)'}, gold {problem.answer}")
    return "\n\n".join(
        [
            "**Sample**",
            verbatim("\n".join(facts)),
            "Question",
            verbatim(problem.question),
            "Completion",
            verbatim(completion.text),
        ]
    )


def verbatim(text: str) -> str:
    """Return ``text`` as a block of code in Markdown, with characters that act instead of showing made visible."""
    return "\n".join(f"    {line}" for line in plain(text).split("\n")) if text.strip() else "    (nothing)"


def _tag(trainer: Trainer, name: str) -> str:
    return f"{'test' if trainer.testing else 'val'}/{name}"


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)  # Lightning sets it only when there is one
