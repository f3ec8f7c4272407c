"""Time budgets, Pareto fronts, intervals, figures, the terminal table and the HTML report.

Works on records and metadata alone: no model is loaded. matplotlib and rich are imported when a figure or a table is
made, so importing this room costs little.
"""

from lit_thinkfast.analysis.budget import Measured, budget_points, measure, measured_points, priced
from lit_thinkfast.analysis.bundle import write_bundle
from lit_thinkfast.analysis.comparison import BestAt, Comparison, compare_models
from lit_thinkfast.analysis.deadline import deadline_points
from lit_thinkfast.analysis.decode import figure_decode, save_decode_figures
from lit_thinkfast.analysis.difference import Difference, compare
from lit_thinkfast.analysis.flips import Flip
from lit_thinkfast.analysis.gain import Gain, selection_gains
from lit_thinkfast.analysis.groups import GroupValue
from lit_thinkfast.analysis.landmarks import (
    Area,
    Crossing,
    Landmarks,
    Reach,
    Speedup,
    areas,
    crossings,
    speedups,
    time_to_reach,
)
from lit_thinkfast.analysis.latex import latex_table
from lit_thinkfast.analysis.markdown import markdown_summary
from lit_thinkfast.analysis.pair_table import pair_table
from lit_thinkfast.analysis.pairs import PairComparison, PairRow, compare_pair
from lit_thinkfast.analysis.paper_figures import save_figures
from lit_thinkfast.analysis.pareto import Stretch, pareto_front, seconds_to_reach, winners
from lit_thinkfast.analysis.plots import figure_curves, figure_front, figure_winners
from lit_thinkfast.analysis.report import build_report
from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.analysis.table import table

__all__ = [
    "Area",
    "BestAt",
    "Comparison",
    "Crossing",
    "Difference",
    "Flip",
    "Gain",
    "GroupValue",
    "Landmarks",
    "Measured",
    "ModelRun",
    "PairComparison",
    "PairRow",
    "Reach",
    "Speedup",
    "Stretch",
    "areas",
    "budget_points",
    "build_report",
    "compare",
    "compare_models",
    "compare_pair",
    "crossings",
    "deadline_points",
    "figure_curves",
    "figure_decode",
    "figure_front",
    "figure_winners",
    "latex_table",
    "markdown_summary",
    "measure",
    "measured_points",
    "pair_table",
    "pareto_front",
    "priced",
    "save_decode_figures",
    "save_figures",
    "seconds_to_reach",
    "selection_gains",
    "speedups",
    "table",
    "time_to_reach",
    "winners",
    "write_bundle",
]
