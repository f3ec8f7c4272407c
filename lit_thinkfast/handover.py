"""The verbs that turn a model folder into another one: ``convert`` and ``export``. As in ``tools.py``."""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
import shutil
from pathlib import Path
from typing import Any, Literal

from lit_thinkfast.jobs import Dtype, numbers

ExportFormat = Literal["granite_hybrid", "bamba", "llama_cpp", "llamba", "mamba_in_llama"]


def convert_teacher(
    *,
    teacher: str,
    out: str,
    attention_layers: list[int] | str | None = None,
    attention_every: int | None = None,
    attention_ratio: float | None = None,
    mixer: str | None = None,
    init: Literal["attention", "mohawk", "random"] | None = None,
    mixer_options: dict[str, Any] | None = None,
    seed: int = 0,
    source: Literal["llamba", "mamba_in_llama"] | None = None,
    tokenizer: str | None = None,
    rope_scaling: Literal["none", "keep"] | None = None,
) -> None:
    """Make a student out of a teacher: some layers keep attention, the others get a mixer.

    Short: convert TEACHER OUT. With --from, which is --source, it is a checkpoint that another project released, and
    becomes a student as it is.

    Args:
        teacher: Folder or hub id of a decoder-only Transformer, or of a student whose mixers are kept.
        out: Folder of the student: model, tokenizer, chat template, generation settings.
        attention_layers: Layers, from 0, that keep attention, like 3,7; "none" for none of them, "published" for those
            of the paper's hybrid of this depth. To measure which ones matter: lit-thinkfast sensitivity.
        attention_every: Or the last of every so many layers.
        attention_ratio: Or their share, 0 to 1, spread evenly.
        mixer: What the other layers get, by its name in MIXERS; if not given mamba2, or what other layers of a student
            have.
        init: Start the mixers from the projections of the attention they replace, which they do if it is not given,
            neutrally as before MOHAWK's first stage, or at random.
        mixer_options: Options of the mixer, like --mixer_options.d_conv 3.
        seed: Of the random numbers.
        source: Or --from: format of a released checkpoint, Llamba, or MambaInLlama and M1.
        tokenizer: With --from, folder or hub id of the tokenizer, where the checkpoint comes without one.
        rope_scaling: With --from mamba_in_llama, leave out the scaling of RoPE in config.json as the published program
            does when it generates, or keep it.
    """
    from lit_thinkfast.models import convert_folder
    from lit_thinkfast.models.released import convert_released

    if source is None and (spare := _given(tokenizer=tokenizer, rope_scaling=rope_scaling)):
        raise ValueError(f"{spare} is for a released checkpoint; give its format with --from, or drop it")
    of_layers = _given(
        attention_layers=attention_layers,
        attention_every=attention_every,
        attention_ratio=attention_ratio,
        mixer=mixer,
        init=init,
        mixer_options=mixer_options,
    )
    if source is not None and of_layers:
        raise ValueError(f"--from takes a checkpoint with the layers that it has; drop {of_layers}")
    if source is not None:
        student = convert_released(
            teacher, out, source=source, tokenizer=tokenizer, rope_scaling=rope_scaling or "none"
        )
    else:
        student = convert_folder(
            teacher,
            out,
            attention_layers=_layers(attention_layers),
            attention_every=attention_every,
            attention_ratio=attention_ratio,
            mixer=mixer,
            init=init or "attention",
            mixer_options=mixer_options,
            seed=seed,
        )
    size = sum(parameter.numel() for parameter in student.parameters())
    print(f"{out}: {size:,} parameters, layers {' '.join(student.config.layer_mixers or [])}")


def export(
    *,
    model: str | None = None,
    out: str | None = None,
    to: ExportFormat | None = None,
    verify: str | None = None,
    dtype: Dtype | None = None,
    judge: Literal["signs", "likelihood"] | None = None,
) -> None:
    """Write a model as a folder for others: weights in a type of your choice, tokenizer, chat template, settings.

    A model whose layers all have attention is written as the stock class of its family, which any program reads. With
    --to, a student is written in the format of another project; its folder says how to load it and is verified.

    Args:
        model: Folder or hub id of a student or of a Transformer.
        out: Folder to write.
        to: Format of another project; granite_hybrid and bamba are classes of transformers, llama_cpp a bamba for it.
        verify: Check a folder that was written with --to, instead of writing one.
        dtype: Of the weights in the file, as they are if not given; decay parameters of mixers stay in float32.
        judge: Mark it as a reward model that judges lines by signs, or by likelihood.
    """
    if verify is not None:
        given = {"model": model, "out": out, "to": to, "dtype": dtype, "judge": judge}
        if spare := [f"--{name}" for name, value in given.items() if value is not None]:
            raise ValueError(f"--verify checks a folder and writes none; drop {', '.join(spare)}")
        from lit_thinkfast.models.export import verify_export

        print(f"{verify}: gives the logits of its student, largest relative error {verify_export(verify):.1e}")
        return
    if model is None or out is None:
        raise ValueError("export needs --model and --out, or a folder to --verify")
    if to is not None and judge is not None:
        raise ValueError("--judge marks a reward model of this package, --to writes for others; drop one of them")
    import torch

    from lit_thinkfast.distill.students import only_attention
    from lit_thinkfast.models.convert import to_stock
    from lit_thinkfast.models.folders import check_free, save_folder
    from lit_thinkfast.models.loading import load_stock, load_tokenizer
    from lit_thinkfast.verification.head import HEAD_FILE

    check_free(out)
    made = load_stock(model, dtype=None if dtype is None else getattr(torch, dtype))
    if to is not None:
        from lit_thinkfast.models.export import export_model

        error = export_model(made, load_tokenizer(model), out, to=to)  # type: ignore[arg-type]
        print(f"{out}: {to} in {made.dtype}, largest relative error {error:.1e}")
        return
    if only_attention(made):
        made = to_stock(made)  # type: ignore[arg-type]
    if judge is not None:
        made.config.reward_judge = judge
    save_folder(made, out, tokenizer=load_tokenizer(model))
    if (head := Path(model) / HEAD_FILE).is_file():
        shutil.copy(head, Path(out) / HEAD_FILE)
    print(f"{out}: {type(made).__name__}, {sum(p.numel() for p in made.parameters()):,} parameters in {made.dtype}")


def _given(**options: Any) -> str:
    """Name the options that are not ``None``."""
    return ", ".join(f"--{name}" for name, value in options.items() if value is not None)


def _layers(given: list[int] | str | None) -> list[int] | Literal["published"] | None:
    if given == "none":
        return []
    if given == "published":
        return "published"
    return given if given is None else numbers(given, option="attention_layers")
