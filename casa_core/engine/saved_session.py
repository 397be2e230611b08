"""Saving a live stream: an exact snapshot as a file, and a transcript that restores it approximately.

*Exact*: the text KV, the current window's KV, the sampler's state and the tokens still to run; the restored
stream generates the same tokens. Its size is the text KV's (Helium1-2B: 115 kB per token in bf16).
*Approximate*: token ids and the latest frame; they are read again, and what earlier frames added to the text
KV is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casa_core.atomic import replacing
from casa_core.decoding.bounds import TextBounds
from casa_core.errors import StoreError

if TYPE_CHECKING:  # and late where they are used: an endpoint hands sessions on, and never loads torch
    import torch

    from casa_core.decoding.snapshot import SequenceSnapshot
    from casa_core.model import CasaForConditionalGeneration
    from casa_core.processing.processor import CasaProcessor

FORMAT = "casa-session/2"
TRANSIENT = ("dtype", "transformers_version", "architectures")
"""Configuration keys that depend on the last load or save, not on the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A stream's tokens, its latest frame and what waits to be read.

    Attributes:
        query, max_tokens_per_frame, max_tokens_per_prompt, bounds: As in the stream's settings; no bounds
            where its text KV has none.
        ids: Tokens in the text KV.
        pending: Tokens that are run with the next frame: the latest frame's stop token.
        words: Those generated so far in the middle of a caption; the last of them is not in ``ids`` yet.
        timestamp: The latest frame's time in the stream, seconds.
        frame: The latest frame's encoded bytes; ``None`` before the first, or where images are withheld.
        frame_at: How many of ``ids`` precede it.
        waiting: Time and encoded bytes of each frame that has not been read.
        prompts: Further prompts of the viewer that have not been read; the first is being answered if
            ``answering``.
    """

    query: str
    max_tokens_per_frame: int
    ids: tuple[int, ...]
    pending: tuple[int, ...]
    frame: bytes | None
    frame_at: int
    words: tuple[int, ...] = ()
    timestamp: float = 0.0
    waiting: tuple[tuple[float, bytes | None], ...] = ()
    prompts: tuple[str, ...] = ()
    answering: bool = False
    max_tokens_per_prompt: int = 64
    bounds: TextBounds | None = None

    def to_json(self) -> str:
        """As JSON text; frames in base64."""
        waiting = [(timestamp, _base64(frame)) for timestamp, frame in self.waiting]
        return json.dumps({**asdict(self), "frame": _base64(self.frame), "waiting": waiting})

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        fields |= {name: tuple(fields[name]) for name in ("ids", "pending", "words", "prompts")}
        fields["waiting"] = tuple((timestamp, _bytes(frame)) for timestamp, frame in fields["waiting"])
        fields["bounds"] = fields["bounds"] and TextBounds(**fields["bounds"])
        return cls(**fields | {"frame": _bytes(fields["frame"])})


def _base64(frame: bytes | None) -> str | None:
    return None if frame is None else base64.b64encode(frame).decode()


def _bytes(frame: str | None) -> bytes | None:
    return None if frame is None else base64.b64decode(frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """An exact snapshot of a stream.

    Attributes:
        identity: Hashes of the model and template that made it; see :func:`model_identity`.
        transcript: Tokens and latest frame.
        sequence: Keys, values and counts.
        sampler: Sampling settings, history and random state, as ``Sampler.slot_state``.
    """

    identity: dict[str, str]
    transcript: Transcript
    sequence: SequenceSnapshot
    sampler: dict[str, torch.Tensor]

    def write(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {f"sequence.{name}": tensor for name, tensor in self.sequence.tensors().items()}
        tensors |= {f"chooser.{name}": tensor for name, tensor in self.sampler.items()}
        metadata = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "transcript": self.transcript.to_json(),
            "sequence": json.dumps(self.sequence.numbers()),
        }
        with replacing(path) as partial:
            save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata)

    @classmethod
    def read(cls, path: str | Path) -> SavedSession:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: If the file cannot be read, or is not a snapshot of this version.
        """
        from safetensors import safe_open

        from casa_core.decoding.snapshot import SequenceSnapshot

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise StoreError(f"{path} cannot be read.", str(error), "Save the session again.") from error
        if metadata.get("format") != FORMAT:
            raise StoreError(
                f"{path} is not a session snapshot of this version.",
                f"Its format is {metadata.get('format')!r}, {FORMAT!r} is expected.",
                "Save the session again with this version.",
            )
        part = lambda prefix: {  # noqa: E731
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
        return cls(
            identity=json.loads(metadata["identity"]),
            transcript=Transcript.from_json(metadata["transcript"]),
            sequence=SequenceSnapshot.read(part("sequence."), json.loads(metadata["sequence"])),
            sampler=part("chooser."),
        )


def model_identity(model: CasaForConditionalGeneration, processor: CasaProcessor) -> dict[str, str]:
    """Hashes of what must be equal to restore a snapshot: configuration, weights, their type, template."""
    config = _lasting(model.config.to_dict())
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        # A slice of every tensor distinguishes checkpoints of one training run at a thousandth of the cost.
        digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return {
        "configuration": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": digest.hexdigest(),
        "type": str(model.dtype),
        "template": processor.template_hash(),
    }


def _lasting(config: Any) -> Any:
    """A configuration without the ``TRANSIENT`` and private keys, recursively."""
    if not isinstance(config, dict):
        return config
    return {
        str(key): _lasting(value)
        for key, value in config.items()
        if not str(key).startswith("_") and key not in TRANSIENT
    }
