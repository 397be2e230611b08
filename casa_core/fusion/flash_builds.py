"""Newer builds of FlashAttention behind torch's own functions: FA3 and FA4, where they are installed.

torch ships FlashAttention 2 and can route its functions (``torch.nn.attention.varlen``, and the flash path of
``scaled_dot_product_attention``) to another build, process-wide.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch.nn import attention

logger = logging.getLogger("casa.attention")

_BUILDS = {"FA3": (9,), "FA4": (9, 10)}
"""Builds and the major compute capabilities they run on, best first: FA3 splits long keys, FA4 does not yet
where both run."""


@cache
def use_newest_flash(device: torch.device) -> str:
    """Route torch's flash attention to the best build that is installed for a GPU, once; its name.

    What the user has activated stays.
    """
    torch_attention: Any = attention  # torch 2.10 has no builds to choose from
    if not hasattr(torch_attention, "activate_flash_attention_impl"):
        return "FA2"
    if (active := torch_attention.current_flash_attention_impl()) is not None:
        return active
    major, _ = torch.cuda.get_device_capability(device)
    for build, runs_on in _BUILDS.items():
        if major in runs_on and _activated(torch_attention, build):
            logger.info("attention runs on %s in this process", build)
            return build
    return "FA2"


def _activated(torch_attention: Any, build: str) -> bool:
    try:
        torch_attention.activate_flash_attention_impl(build)
    except (ImportError, ValueError) as error:  # not installed, or not known to this torch
        logger.debug("%s is not used: %s", build, error)
        return False
    except RuntimeError as error:
        logger.warning("%s is installed and cannot be used: %s", build, error)
        return False
    return True
