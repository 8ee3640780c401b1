"""What every part of the settings has in common."""

from typing import TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A frozen part of the settings that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


AnySection = TypeVar("AnySection", bound=Section)


def tagged(default: str | None = None) -> BeforeValidator:
    """`jsd` is short for `{type: jsd}`, and a mapping without a type has the default one."""

    def complete(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        if default is not None and isinstance(value, dict) and "type" not in value:
            return {"type": default, **value}
        return value

    return BeforeValidator(complete)
