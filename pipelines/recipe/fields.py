"""Building blocks of the recipe's models: the strict base and the number types with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Section(BaseModel):
    """A part of the recipe: frozen, without unknown keys, and without silent conversions ("2" is not 2)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
