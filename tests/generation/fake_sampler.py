"""A sampler without a model: texts are hashes, every step of the engine takes a second of a clock that tests own."""

import hashlib

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.progress import Progress
from lit_thinkfast.generation.sampling import BaseSampler
from lit_thinkfast.records import Completion, Problem

PROBLEMS = [Problem(id=f"toy/{i}", question="q" * (i + 1), answer="4", source="toy") for i in range(5)]


class FakeSampler(BaseSampler):
    """Rows of 1 to 9 tokens, ``batch_size`` of them at a time, a row that ends is replaced at once.

    Args:
        changes: Of the settings.
        step_seconds: Engine time of a step.
        calibrations: What the machine measures, one after the other; the last for ever.
        on_step: Called with the number of steps so far; may raise.
    """

    def __init__(self, *, step_seconds=1.0, calibrations=(10.0,), on_step=lambda steps: None, **changes):
        settings = {"temperature": 0.9, "max_new_tokens": 20, "num_samples": 5, "batch_size": 4, **changes}
        super().__init__(None, SamplingConfig(**settings), name="fake", render=lambda p: [1] * len(p.question))
        self.step_seconds, self.on_step = step_seconds, on_step
        self.calibrations = list(calibrations)
        self.drawn = []

    def _complete(self, wanted, *, on_progress, time_budget, spent):
        queue = [(r, s) for r in wanted for s in r.samples]
        samples_total, samples_done, tokens, clock = len(queue), 0, 0, 0.0
        slots = []
        while queue or slots:
            while queue and len(slots) < self.config.batch_size:
                request, sample = queue.pop(0)
                slots.append({"request": request, "sample": sample, "tokens": 0, "seconds": 0.0, "from": clock})
            self.on_step(self.stats.steps)
            clock += self.step_seconds
            self.stats.steps += 1
            self.stats.row_steps += len(slots)
            self.stats.peak_rows = max(self.stats.peak_rows, len(slots))
            self.stats.decode_seconds += self.step_seconds
            tokens += len(slots)
            for slot in slots:
                slot["tokens"] += 1
                slot["seconds"] += self.step_seconds / len(slots)
            if on_progress is not None:
                on_progress(Progress(samples_done, samples_total, tokens, clock, len(slots), time_budget, spent))
            for slot in [slot for slot in slots if slot["tokens"] == self.length(slot)]:
                slots.remove(slot)
                samples_done += 1
                self.stats.samples += 1
                self.stats.tokens += slot["tokens"]
                self.drawn.append((slot["request"].problem.id, slot["sample"]))
                yield self.completion(slot, clock, spent)
            if time_budget is not None and spent + clock >= time_budget:
                return

    def hash(self, problem_id, sample):
        return hashlib.sha256(f"{self.config.seed}/{problem_id}/{sample}".encode()).hexdigest()

    def length(self, slot):
        return 1 + int(self.hash(slot["request"].problem.id, slot["sample"]), 16) % 9

    def completion(self, slot, clock, spent):
        problem = slot["request"].problem
        return Completion(
            problem_id=problem.id,
            sample=slot["sample"],
            text=self.hash(problem.id, slot["sample"])[: slot["tokens"]],
            num_prompt_tokens=len(slot["request"].prompt),
            num_tokens=slot["tokens"],
            finish_reason="stop",
            seconds=slot["seconds"],
            latency_seconds=clock - slot["from"],
            seed=self.config.seed,
            model=self.name,
            finished_seconds=spent + clock,
        )

    def identity(self):
        return {**self.config.identity(), "model": self.name}

    def describe(self):
        return {"model": self.name, "device": "fake", "device_name": "fake device", "threads": 1, "versions": {}}

    def calibrate(self):
        speed = self.calibrations.pop(0) if len(self.calibrations) > 1 else self.calibrations[0]
        return None if speed is None else {"gemm_gflops": speed, "copy_gb_per_second": 1.0}

    def end_tokens(self):
        return [0]

    vocabulary = 8
    positions = None
