"""A teacher whose answers are kept on disk, for several epochs or students on the same rows.

Of each position the k likeliest tokens are kept: 6 bytes each, and 4 for the probability of all others, which at k = 64
is 388 bytes a token, 3.1 TB for 8 billion. That saves what the teacher costs of later passes, and nothing else: where a
row is seen once, use the teacher itself. There is one file for each packed row, whose name is a hash of the teacher's
name, of k, and of the tokens and document boundaries of the row; whatever else is changed, in data, batches or order,
rows that are the same are found again: in another run on the same data, and in later passes of
:class:`~lit_thinkfast.data.MathDataModule` with ``reshuffle=False``, which else packs each pass anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.distill import chunked
from lit_thinkfast.distill.signals import Signals, TopTokens
from lit_thinkfast.distill.teachers import HFTeacher, Teacher
from lit_thinkfast.records import PackedBatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger(__name__)

_Row = tuple[Tensor, Tensor]
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_WEIGHTS = (".safetensors", ".bin", ".gguf")


class CachedTeacher:
    """The likeliest tokens of another teacher, read from disk where they are there, else asked for and kept.

    The other teacher is loaded when it is first asked, so that a run on rows that are all known never loads it. Use
    :class:`~lit_thinkfast.distill.losses.TopKKL`: other losses need all tokens. Log-probabilities are kept in float16,
    which moves those of tokens above one in eight by less than 5e-4; what is read adds up to one with the rest again.
    Processes may share the folder: a file appears whole or not at all, and one that cannot be read is written anew.

    Args:
        teacher: Whom to ask.
        folder: Where answers are kept. Made if it is not there.
        k: Tokens kept of each position.
        name: What the teacher is called in the addresses of its answers. Needed for a teacher of your own; an
            :class:`HFTeacher` is known by its precision and a digest of samples of its weights, or by its hub id.

    Raises:
        ValueError: ``k`` below 1, or above the vocabulary, at :meth:`load`; a teacher that must be named and is not.
    """

    def __init__(self, teacher: Teacher, folder: str, *, k: int = 64, name: str | None = None) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if name is None and not isinstance(teacher, HFTeacher):
            raise ValueError(
                f"answers are kept by the teacher's name, and a {type(teacher).__name__} has none; set name"
            )
        self.teacher, self.folder, self.k, self.name = teacher, folder, k, name
        self._where: tuple[torch.device, DeviceMesh | None] | None = None
        self._is_loaded = self._has_warned = False

    def __repr__(self) -> str:
        return repr(self.teacher)

    def vocab_size(self) -> int:
        return self.teacher.vocab_size()

    def load(self, device: torch.device, *, mesh: DeviceMesh | None = None) -> None:
        """Remember where the other teacher is to be loaded, should it be needed."""
        if self.k > (size := self.vocab_size()):
            raise ValueError(f"k {self.k} is above the vocabulary of the teacher {self}, which is {size}")
        self._where = device, mesh

    @torch.no_grad()
    def signals(self, batch: PackedBatch, needs: frozenset[str]) -> Signals:
        """Return the likeliest tokens as ``top``.

        Raises:
            ValueError: Other signals are asked for.
        """
        if other := sorted(needs - {"logits"}):
            raise ValueError(
                f"a CachedTeacher keeps likely tokens, no {other[0]}; a loss that reads those needs the teacher itself"
            )
        ids = batch["input_ids"]
        files = self._files(batch)
        rows = [self._read(file, ids.shape[1]) for file in files]
        missing = [i for i, row in enumerate(rows) if row is None]
        if self._is_asked(bool(missing), ids.device):
            # ranks that share a teacher's weights must run it together, if only for one of them
            chosen = torch.tensor(missing or [0], device=ids.device)
            full: Any = batch
            some: Any = {key: values.index_select(0, chosen) for key, values in full.items()}
            for i, answer in zip(missing, self._ask(some), strict=False):
                self._write(files[i], *answer)
                rows[i] = self._read(files[i], ids.shape[1])  # rounded, as it will be the next time
        known = [row for row in rows if row is not None]
        assert len(known) == len(rows), "what was just written cannot be read"
        index, log_probs = (torch.stack(parts).to(ids.device) for parts in zip(*known, strict=True))
        return Signals(top=TopTokens(index=index, log_probs=log_probs))

    def _is_asked(self, missing: bool, device: torch.device) -> bool:
        mesh = None if self._where is None else self._where[1]
        if mesh is None:
            return missing
        flag = torch.tensor(int(missing), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=mesh.get_group())
        return bool(flag)

    def _ask(self, batch: PackedBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return ids, log-probabilities (t, k) and the probability of the rest (t,) for each row."""
        if not self._is_loaded and self._where is not None:
            self.teacher.load(self._where[0], mesh=self._where[1])
        self._is_loaded = True
        hidden, head = (chunked.as_autocast(x) for x in self.teacher.signals(batch, frozenset({"logits"})).final())
        rows, parts = hidden.shape[0], []
        with torch.autocast(hidden.device.type, enabled=False):
            for part in hidden.flatten(0, 1).split(chunked.default_chunk(hidden.device.type, hidden[..., 0].numel())):
                parts.append([x.cpu() for x in chunked.top_k_of(chunked.head_logits(part, head), self.k)])
        log_probs, ids, rest = (torch.cat(x).unflatten(0, (rows, -1)) for x in zip(*parts, strict=True))
        return list(zip(ids, log_probs, rest, strict=True))

    def _files(self, batch: PackedBatch) -> list[Path]:
        if self.name is None:
            self.name = _name_of(self.teacher)
        device = batch["input_ids"].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        head = f"1\0{self.name}\0{self.k}\0{precision}\0".encode()
        tokens, documents = (batch[key].to("cpu", torch.int32).numpy() for key in ("input_ids", "seq_idx"))
        names = [
            hashlib.blake2b(head + ids.tobytes() + of.tobytes(), digest_size=20).hexdigest()
            for ids, of in zip(tokens, documents, strict=True)
        ]
        return [Path(self.folder, name[:2], f"{name[2:]}.npz") for name in names]

    def _read(self, file: Path, length: int) -> _Row | None:
        """Return ids and log-probabilities (t, k) in fp32, or ``None`` if they are not there or cannot be used."""
        try:
            with np.load(file) as arrays:  # which compares checksums
                index, log_probs, rest = (torch.from_numpy(arrays[key]) for key in ("index", "log_probs", "rest"))
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._warn(file, str(error))
            return None
        if not index.shape == log_probs.shape == (length, self.k) or rest.shape != (length,):
            self._warn(file, f"its shape is {tuple(index.shape)}")
            return None
        log_probs = log_probs.float()
        log_probs += (torch.log1p(-rest) - log_probs.logsumexp(-1)).unsqueeze(1)
        return index.long(), log_probs

    def _write(self, file: Path, index: Tensor, log_probs: Tensor, rest: Tensor) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.partial")
        try:
            with open(partial, "xb") as out:
                np.savez(
                    out,
                    index=index.to(torch.int32).numpy(),
                    log_probs=log_probs.clamp(min=torch.finfo(torch.float16).min).to(torch.float16).numpy(),
                    rest=rest.clamp(max=1 - 1e-6).float().numpy(),
                )
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    def _warn(self, file: Path, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("%s cannot be used (%s) and is made anew; further ones are not reported", file, reason)


def _name_of(teacher: Any) -> str:
    """Return precision and hub id, or in the place of the latter a digest of what lies in the folder.

    A folder may be written again under the same name. Of each file the size and 64 samples are looked at: of weights
    that were trained on, nearly every block is another.
    """
    path = Path(teacher.path).expanduser()
    if not path.exists():
        return f"{teacher.dtype} {teacher.path}"
    digest = hashlib.blake2b(digest_size=20)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix not in _WEIGHTS and file.name != "config.json":
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as content:
            for i in range(_SAMPLES):
                content.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(content.read(_SAMPLE_BYTES))
    return f"{teacher.dtype} {digest.hexdigest()}"
