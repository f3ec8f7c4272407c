"""The models: a card each, and what became of their samples, counted apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.page import chip, data_table, section
from lit_thinkfast.analysis.provenance import source
from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.table import attention_layers
from lit_thinkfast.analysis.text import count, dollars, duration, escape, factor, percent, shorten, whole
from lit_thinkfast.records import Outcome

_ONE_ROW = 40
OUTCOMES: dict[Outcome, str] = {
    "correct": "right",
    "incorrect": "wrong",
    "unparsable": "an answer that cannot be read, or none",
    "truncated": "cut off by the token limit before an answer",
    "timeout": "grading took too long",
    "oom": "grading took too much memory",
    "crashed": "grading crashed",
}


def models_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return one card a model and the table of outcomes."""
    cards = []
    for name, run in c.runs.items():
        role = "The baseline" if name == c.baseline and len(c.runs) > 1 else ""
        note = ". ".join(part for part in (role, escape(run.note)) if part)
        cards.append(
            f'<div class="card model m{styles[name].index}"><h3>{escape(shorten(name, 60))}</h3>'
            + (f'<p class="note">{note}</p>' if note else "")
            + _layers(run)
            + "<dl>"
            + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in _facts(c, name).items())
            + "</dl></div>"
        )
    known = any(run.layer_mixers for run in c.runs.values())
    intro = "Time is engine time: the share of its batch that a sample took." if c.timed else ""
    if known:
        intro += " One square a layer: filled is attention, hollow is recurrent."
    return section(
        "The models",
        intro,
        f'<div class="grid models">{"".join(cards)}</div>',
        outcomes_table(c, styles),
        anchor="models",
        source=escape(source(c)),
    )


def outcomes_table(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return how many samples of each model ended in which way; ways that nobody took are left out."""
    counts = {name: Counter(v.outcome for v in run.verdicts) for name, run in c.runs.items()}
    shown = [o for o in OUTCOMES if any(counter[o] for counter in counts.values())]
    rows = []
    for name, counter in counts.items():
        total = sum(counter.values())
        cells = [f"<td>{percent(counter[o] / total)}<small>{counter[o]:,}</small></td>" for o in shown]
        rows.append([f'<th scope="row">{chip(name, styles)}</th>', f"<td>{total:,}</td>", *cells])
    legend = "; ".join(f"<b>{o}</b>: {OUTCOMES[o]}" for o in shown)
    return (
        '<h3 class="rule">How the samples ended</h3>'
        + data_table(["model", "samples", *shown], rows, label="How the samples ended")
        + f'<p class="note">{legend[0].upper()}{legend[1:]}. Only correct ones count as solved.</p>'
    )


def _facts(c: Comparison, name: str) -> dict[str, str]:
    run, own = c.runs[name], float(c.measured[name].sample_seconds.mean())
    facts = {
        "parameters": "not recorded" if run.num_parameters is None else count(run.num_parameters),
        "attention layers": attention_layers(run) if run.layer_mixers else "not recorded",
        "tokens a sample": whole(run.tokens_per_completion),
    }
    if c.measured[name].timed:
        base = c.measured[c.baseline]
        other = name != c.baseline and base.timed
        facts["time a sample"] = duration(own)
        if other:
            facts["speed over baseline"] = factor(float(base.sample_seconds.mean()) / own)
        facts["tokens a second"] = whole(run.tokens_per_completion / run.seconds_per_sample)
        if name in c.prices:
            facts["1,000 samples cost"] = dollars(c.dollars(name, 1000 * own))
    else:
        facts["time a sample"] = "not recorded"
    return facts | {
        "cut off": percent(run.share_cut),
        "no answer": percent(run.share_without_answer),
    }


def _layers(run: ModelRun) -> str:
    mixers = run.layer_mixers
    if mixers is None:
        return ""
    squares = "".join(f"<i{' class=a' if m == 'attention' else ''}></i>" for m in mixers)
    label = f"{attention_layers(run)} layers use attention"
    row = "layers" if len(mixers) <= _ONE_ROW else "layers many"
    return f'<div class="{row}" role="img" aria-label="{label}">{squares}</div>'
