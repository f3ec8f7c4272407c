"""Reading models and tokenizers from folders, hub ids and GGUF files, with errors in one line.

Checkpoints that other projects released (Llamba, MambaInLlama, M1) are recognised: see ``released.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from lit_thinkfast.models.configuration import FAMILIES, HybridConfig
from lit_thinkfast.reading import first_line, read_causal_lm, told_in_one_line

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM


def load_model(
    path_or_id: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> HybridForCausalLM:
    """Load a student, a released checkpoint as a student, or a stock Llama-family model as one with attention only.

    All then run on the same code, so that their speeds and samples can be compared.

    Args:
        path_or_id: Folder, hub id, or ``.gguf`` file.
        dtype: Type of the weights; decay parameters stay in float32.
        device: Where to.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: No such folder, file or model.
        ValueError: As :func:`load_stock`, or no such device.
    """
    from lit_thinkfast.models.convert import convert
    from lit_thinkfast.models.modeling import HybridForCausalLM

    device = check_device(device)
    model = load_stock(path_or_id, dtype=dtype)
    if not isinstance(model, HybridForCausalLM):
        model = convert(model, mixer="attention")
    return model.to(device).eval()  # type: ignore[no-any-return]


def load_stock(path_or_id: str | os.PathLike[str], *, dtype: torch.dtype | None) -> PreTrainedModel:
    """Load a causal language model of a known family as the class it was saved as; a released checkpoint, as a student.

    Args:
        path_or_id: As in :func:`load_model`.
        dtype: Type of the weights, that of the file if ``None``.

    Raises:
        FileNotFoundError: No such folder, file or model.
        ValueError: Not a causal language model of a known family, or a configuration that is wrong or of other weights.
    """
    from lit_thinkfast.models.released import format_of, load_released

    where, options = locate(path_or_id)
    if not options and format_of(where) is not None:
        return load_released(path_or_id, dtype=dtype)
    with told_in_one_line(path_or_id):
        config = AutoConfig.from_pretrained(where, **options)
    if not isinstance(config, HybridConfig) and config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path_or_id}: cannot use a model of family {config.model_type!r}; known families: {known}")
    for architecture in config.architectures or []:
        if not architecture.endswith("ForCausalLM"):
            raise ValueError(f"{path_or_id}: {architecture} is not a decoder-only causal language model")
    model: PreTrainedModel = read_causal_lm(path_or_id, where, dtype="auto" if dtype is None else dtype, **options)
    # a file with both weights is right, whatever its config says
    both: Any = model
    model.config.tie_word_embeddings = both.lm_head.weight is both.model.embed_tokens.weight
    if "gguf_file" in options:
        _forget_quantization(model)
    return model


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> Any:
    """Load the tokenizer that lies beside a model.

    Raises:
        FileNotFoundError: No such folder, or no tokenizer in it.
        ValueError: The tokenizer contradicts itself.
    """
    where, options = locate(path_or_id)
    try:
        return AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        from lit_thinkfast.models.released import missing_tokenizer

        reason = ("" if options else missing_tokenizer(where)) or first_line(error)
        raise FileNotFoundError(f"no tokenizer in {path_or_id} ({reason})") from None
    except ImportError:  # a package is to be installed
        raise
    except Exception as error:  # of this very class where the tokenizers library raises it
        raise ValueError(f"the tokenizer in {path_or_id} cannot be used ({first_line(error)})") from error


def check_device(device: str | torch.device) -> torch.device:
    """Return the device if this machine has it.

    Raises:
        ValueError: Not a device, or not here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is not a device ({first_line(error)})") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported; use cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available on this machine; use --device cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not on this machine, which has {torch.cuda.device_count()} of them"
        )
    return found


def locate(path_or_id: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Split a location into what transformers calls name and options.

    Raises:
        FileNotFoundError: It looks like a path and nothing is there.
    """
    text = os.fspath(path_or_id)
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not any(path.iterdir()):
            raise FileNotFoundError(f"the folder {text} is empty")
        return str(path), {}
    if path.suffix == ".gguf" or path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(f"no model at {text}: neither a folder nor a .gguf file")
    return text, {}


def _forget_quantization(model: PreTrainedModel) -> None:
    """Take off the mark of a model whose weights were dequantized when they were read; marked, it cannot be saved."""
    for owner, mark in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        vars(owner).pop(mark, None)
    model.is_quantized = False
