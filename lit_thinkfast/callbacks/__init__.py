"""Callbacks of training: exporting the student, progress and speed in tokens, samples and figures in the log."""

from lit_thinkfast.callbacks.export import ExportStudent
from lit_thinkfast.callbacks.logs import LogConfig, LogReasoningFigure, LogSamples
from lit_thinkfast.callbacks.progress import TokensProgress
from lit_thinkfast.callbacks.throughput import Throughput

__all__ = ["ExportStudent", "LogConfig", "LogReasoningFigure", "LogSamples", "Throughput", "TokensProgress"]
