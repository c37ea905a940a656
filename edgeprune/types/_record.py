"""What all records share: frozen, their JSON, their digest."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self  # in typing from Python 3.11; pydantic brings this one

SCHEMA_VERSION = 1


def six(x: float) -> float:
    """In six digits: what records keep of a measured quality."""
    return float(f"{x:.6g}")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> str:
        """Deterministic text: same record, same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError in one line, naming the first field that does not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "document"
            raise ValueError(f"not a {cls.__name__} record: {where}: {first['msg']}") from None

    def digest(self) -> str:
        """SHA-256 of the JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
