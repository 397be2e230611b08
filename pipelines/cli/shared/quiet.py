"""Keeps what libraries print off the terminal of a command that builds or saves a model."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Call before a model is built: no guesses of DeepSpeed about the machine, no bars, no advice.

    What the environment asks for counts.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from transformers.utils import logging

    # transformers imports DeepSpeed where that is installed, which warns where it finds no accelerator
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.disable_progress_bar()
