"""Time budgets, Pareto fronts, intervals, figures, the terminal table and the HTML report.

Works on records and metadata alone: no model is loaded. matplotlib and rich are imported when a figure or a table is
made, so importing this room costs little.
"""

from lit_thinkfast.analysis.budget import Difference, Measured, budget_points, compare, measure, measured_points
from lit_thinkfast.analysis.comparison import BestAt, Comparison, compare_models
from lit_thinkfast.analysis.decode import figure_decode, save_decode_figures
from lit_thinkfast.analysis.gain import Gain, selection_gains
from lit_thinkfast.analysis.pareto import Stretch, pareto_front, seconds_to_reach, winners
from lit_thinkfast.analysis.plots import figure_curves, figure_front, figure_winners
from lit_thinkfast.analysis.report import build_report
from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.analysis.table import table

__all__ = [
    "BestAt",
    "Comparison",
    "Difference",
    "Gain",
    "Measured",
    "ModelRun",
    "Stretch",
    "budget_points",
    "build_report",
    "compare",
    "compare_models",
    "figure_curves",
    "figure_decode",
    "figure_front",
    "figure_winners",
    "measure",
    "measured_points",
    "pareto_front",
    "save_decode_figures",
    "seconds_to_reach",
    "selection_gains",
    "table",
    "winners",
]
