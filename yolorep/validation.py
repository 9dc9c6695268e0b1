"""Turn what pydantic says of a wrong value into one sentence."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError


def sentence(error: ValidationError, schema: Any) -> str:
    """Return "FIELD must be ACCEPTED, got VALUE" for the first wrong value.

    schema: the pydantic class that raised; the `description` of each of its fields says which values are accepted.
    """
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    fields = getattr(schema, "model_fields", None) or schema.__pydantic_fields__
    accepted = fields[name].description if name in fields else first["msg"]
    return f"{name} must be {accepted}, got {short(first['input'])}"


def short(value: Any, length: int = 80) -> str:
    """Return `repr(value)`, cut after `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
