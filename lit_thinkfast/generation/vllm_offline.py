"""vLLM inside this process, for who has it installed: ``vllm.LLM.generate`` with token ids in and out.

Times are those of vLLM's engine: a request is in flight from when it was first scheduled (``scheduled_ts``) to its last
token (``last_token_ts``). Written after ``vllm/entrypoints/llm.py`` and ``vllm/v1/metrics/stats.py`` of vLLM 0.26 to
0.32. A call of ``generate`` cannot be stopped from outside, so a run is cut into calls of a few batches each: what an
interruption loses is one call, and at the end of each call the batch runs empty.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from lit_thinkfast.generation.in_flight import Answer, EngineFacts, Job, Tick, divide

_BATCHES_A_CALL = 8


class OfflineEngine:
    """A model that vLLM has loaded in this process.

    Args:
        folder: Folder or hub id of a model that vLLM knows.
        width: Most requests in flight, vLLM's ``max_num_seqs``.
        options: Further arguments of ``vllm.LLM``, such as ``{"dtype": "float32"}``.

    Raises:
        ImportError: vLLM is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, width: int, options: Mapping[str, Any] | None = None) -> None:
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ImportError(
                f"vLLM cannot be imported ({error}); pip install 'lit-thinkfast[vllm]', or sample from a server"
            ) from None
        self._vllm = vllm
        self._model = os.fspath(folder)
        given = {"max_num_seqs": width, "disable_log_stats": False} | dict(options or {})
        self._llm: Any = vllm.LLM(model=self._model, **given)

    def facts(self) -> EngineFacts:
        """Return what was loaded."""
        return EngineFacts(self._model, self._vllm.__version__, self._llm.model_config.max_model_len)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones, by vLLM's tokenizer."""
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))

    def describe(self) -> dict[str, Any]:
        """Return the device of this machine that vLLM takes."""
        import torch

        from lit_thinkfast.generation.calibration import describe_machine

        return describe_machine("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, jobs: Iterator[Job], *, width: int, seconds: float | None = None) -> Generator[Answer | Tick]:
        """Generate call after call; see :class:`~lit_thinkfast.generation.in_flight.Engine`.

        With ``seconds``, the call in which the clock runs out goes on to its end, and what it finished later is lost.

        Raises:
            ValueError: vLLM gives no times, or saw another prompt.
        """
        clock = 0.0
        most = 0
        while (seconds is None or clock < seconds) and (call := list(itertools.islice(jobs, _BATCHES_A_CALL * width))):
            answers = self._generate(call, clock)
            most = max(most, min(width, len(call)))
            for answer in answers:
                if seconds is None or answer.share.finished <= seconds:
                    yield answer
            clock = answers[-1].share.finished
            yield Tick(clock if seconds is None else min(clock, seconds), 0, most)

    def _generate(self, call: list[Job], clock: float) -> list[Answer]:
        """Return the answers of one call that begins at ``clock``, in the order in which they were finished."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": job.prompt} for job in call],
            [self._vllm.SamplingParams(**job.parameters) for job in call],
            use_tqdm=False,
        )
        intervals = []
        for job, output in zip(call, outputs, strict=True):
            if output.metrics is None:
                raise ValueError("vLLM gives no times of its requests; leave disable_log_stats at False")
            if list(output.prompt_token_ids) != job.prompt:
                raise ValueError(f"problem {job.problem_id!r}: vLLM saw another prompt than the one that was given")
            intervals.append((output.metrics.scheduled_ts, output.metrics.last_token_ts))
        answers = [
            Answer(
                job,
                list(output.outputs[0].token_ids),
                str(output.outputs[0].finish_reason),
                share._replace(finished=clock + share.finished),
            )
            for job, output, share in zip(call, outputs, divide(intervals), strict=True)
        ]
        return sorted(answers, key=lambda answer: answer.share.finished)
