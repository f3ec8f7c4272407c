"""What verbs and the quickstart share about models: loading, sampling into files, devices and places."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.generation.ranks import ALONE, Rank, rank_of
from lit_thinkfast.terminal import progress_bar, sampling_progress

if TYPE_CHECKING:
    from lit_thinkfast.generation import Progress, SamplingConfig
    from lit_thinkfast.generation.sampling import BaseSampler
    from lit_thinkfast.models import HybridForCausalLM
    from lit_thinkfast.records import Problem

Dtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["auto", "eager", "compile", "cuda_graphs"]
Engine = Literal["local", "vllm"]

_SAMPLES, _MOST_SAMPLES = 64, 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """How to sample, as :func:`sampling_job` reads it."""

    config: "SamplingConfig"
    name: str | None = None
    device: str = "auto"
    dtype: Dtype = "float32"
    engine: Engine = "local"
    url: str | None = None
    time_budget: float | None = None
    rank: Rank = ALONE

    def placed(self) -> str:
        """Return the device of this process."""
        return device_named(self.device, local_rank=self.rank.local_rank)

    @property
    def quiet(self) -> bool:
        """Whether another process draws the progress bar."""
        return self.rank.rank > 0


def sampling_job(
    *,
    name: str | None = None,
    num_samples: int | None = None,
    time_budget: float | str | None = None,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stop: list[str] | str | None = None,
    max_new_tokens: int = 1024,
    batch_size: int = 64,
    memory_budget_gib: float | None = None,
    prefill_chunk: int = 512,
    backend: Backend = "auto",
    system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
    engine: Engine = "local",
    url: str | None = None,
    rank: str = "auto",
) -> SamplingJob:
    """Read the options of sampling, which several verbs share.

    Args:
        name: Of the model in tables and figures; its folder's name if not given.
        num_samples: Completions a problem; 64, with a time budget as many as it pays for (10,000 at most), 1 if greedy.
            More can be added to a finished run: the texts of the others stay what they are.
        time_budget: Engine time after which to stop, like 60s, 10m or 2h, that of earlier sessions included: all
            problems get their first sample, then their second, and so on. What is not finished by then does not count.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Sample from the likeliest tokens that have this share of the probability.
        top_k: Sample from that many of the likeliest tokens; 0 is all.
        min_p: Sample from tokens at least this times as likely as the likeliest; 0 is all.
        stop: Text that ends a completion, or a list of such texts in JSON.
        max_new_tokens: Budget of a completion.
        batch_size: Completions decoded together, at most. Changes speed and memory, not the texts (in half precision,
            by rounding only).
        memory_budget_gib: Memory for weights and caches; the batch is made as small as it needs. Changes no text.
        prefill_chunk: Tokens of a prompt encoded at a time. Changes no text.
        backend: How a step is run; auto is the fastest for device and model. Changes no text.
        system: System prompt, or the name of one: boxed, search-and-learn.
        seed: Of the run; a sample depends on seed, problem and its index only.
        device: auto, cpu, cuda or cuda:1; auto is a GPU of its own for each process.
        dtype: Of the weights.
        engine: local, or vllm for a server that runs the model, see url.
        url: Of the server of vllm, like http://localhost:8000; model is then the folder with its tokenizer.
        rank: auto takes the place among several processes from torchrun or srun; 3/8 is the fourth of eight. Each
            samples its share, the last one merges them.
    """
    from lit_thinkfast.generation import SamplingConfig
    from lit_thinkfast.generation.budgets import parse_duration

    if (engine == "vllm") != (url is not None):
        remedy = "give --url" if url is None else "add --engine vllm"
        raise ValueError(f"engine {engine} and url {url} do not fit: the url is that of a server of vllm; {remedy}")
    budget = None if time_budget is None else parse_duration(time_budget)
    if num_samples is None:
        most = _SAMPLES if budget is None else _MOST_SAMPLES
        num_samples = most if temperature > 0 else 1  # greedy samples would be equal
    config = SamplingConfig(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        batch_size=batch_size,
        memory_budget_gib=memory_budget_gib,
        prefill_chunk=prefill_chunk,
        backend=backend,
        system=system,
        seed=seed,
    )
    return SamplingJob(
        config=config,
        name=name,
        device=device,
        dtype=dtype,
        engine=engine,
        url=url,
        time_budget=budget,
        rank=rank_of(rank),
    )


def sample_to_file(
    model: str,
    problems: "Sequence[Problem]",
    out: str | Path,
    *,
    sampling: "SamplingConfig",
    name: str | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Sample completions into a journal in this process, with a progress bar, and say what came out."""
    run_sampling(model, problems, out, job=SamplingJob(config=sampling, name=name, device=device, dtype=dtype))


def run_sampling(model: str, problems: "Sequence[Problem]", out: str | Path, *, job: SamplingJob) -> bool:
    """Sample completions into a journal, or this process's share of them, with a progress bar, and say what came out.

    Returns:
        Whether the journal is complete and this the one process that goes on with it.
    """
    from lit_thinkfast.generation import generate_to_file
    from lit_thinkfast.generation.run import generate_share

    check_place(out)
    sampler = _sampler(model, job)
    label = f"sampling {sampler.name}" + (", seconds" if job.time_budget is not None else "")
    with progress_bar(label, time_left=False, quiet=job.quiet) as update:

        def show(progress: "Progress") -> None:
            update(*sampling_progress(progress))

        meta: dict[str, Any] | None
        if job.rank.world_size == 1:
            meta = generate_to_file(sampler, problems, out, on_progress=show, time_budget=job.time_budget)
        else:
            meta = generate_share(sampler, problems, out, rank=job.rank, on_progress=show, time_budget=job.time_budget)
    if meta is None:
        print(f"{out}: {job.rank} is done; the last one to finish merges the parts")
        return False
    print(f"{out}: {_came_out(meta)}")
    return True


def _came_out(meta: "dict[str, Any]") -> str:
    seconds, devices = meta["engine_seconds"], meta["device_seconds"]
    text = f"{meta['total_samples']} completions, {meta['total_tokens']:,} tokens in {seconds:.1f} s"
    if devices > 1.001 * seconds:
        text += f" ({devices:.1f} s of all processes)"
    if meta["time_budget_seconds"] is not None:
        counts = meta["samples_per_problem"]
        text += (
            f" of {meta['time_budget_seconds']:g}, {counts['min']} to {counts['max']} samples a problem, "
            f"median {counts['median']:g}"
        )
    return text


def merge_to_file(out: str | Path) -> None:
    """Merge the parts of a run into its journal, and say what came out."""
    from lit_thinkfast.generation.parts import merge_parts

    print(f"{out}: {_came_out(merge_parts(out))}")


def _sampler(model: str, job: SamplingJob) -> "BaseSampler":
    if job.engine == "vllm":
        from lit_thinkfast.generation.vllm import VLLMSampler

        assert job.url is not None
        return VLLMSampler.connect(job.url, model, job.config, name=job.name)
    from lit_thinkfast.generation import Sampler
    from lit_thinkfast.models import load_tokenizer

    loaded = load_on(model, device=job.placed(), dtype=job.dtype)
    return Sampler(loaded, load_tokenizer(model), job.config, name=job.name or Path(model).resolve().name)


def load_on(path: str, *, device: str, dtype: Dtype) -> "HybridForCausalLM":
    """Load a model on a device of :func:`device_named`."""
    import torch

    from lit_thinkfast.models import load_model

    return load_model(path, dtype=getattr(torch, dtype), device=device_named(device))


def device_named(name: str, *, local_rank: int = 0) -> str:
    """Return the device to use; ``auto`` is the CUDA device of this process, or the CPU where there is none.

    Where a process sees one device only, its launcher has chosen it.

    Raises:
        ValueError: No such device, or fewer than processes.
    """
    import torch

    from lit_thinkfast.models.loading import check_device

    if name != "auto":
        return str(check_device(name))
    if not torch.cuda.is_available():
        return "cpu"
    if local_rank == 0 or (count := torch.cuda.device_count()) == 1:
        return "cuda"
    if local_rank >= count:
        raise ValueError(f"process {local_rank} here has none of the {count} GPUs; start {count}, or name --device")
    return f"cuda:{local_rank}"


def check_place(out: str | Path) -> None:
    """Check, before minutes are spent, that a file can be written.

    Raises:
        ValueError: It cannot.
    """
    path = Path(out).absolute()
    if path.is_dir():
        raise ValueError(f"{out} is a folder; name a file in it")
    place = next(place for place in (path, *path.parents) if place.exists())
    if place.is_file() != (place == path) or not os.access(place, os.W_OK):
        raise ValueError(f"{out} cannot be written: {place} is no folder, or may not be changed; choose another place")


def must_exist(path: str) -> None:
    """Raise ``FileNotFoundError`` unless there is such a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; name one that is there")


def numbers(given: Sequence[int] | str, *, option: str) -> list[int]:
    """Read ``3,7`` as ``[3, 7]``; lists of a configuration file pass.

    >>> numbers("3, 7", option="layers")
    [3, 7]
    """
    try:
        return [int(part) for part in given.split(",")] if isinstance(given, str) else list(given)
    except ValueError:
        raise ValueError(f"{option} {given!r} is not a list of whole numbers; write it like 3,7") from None
