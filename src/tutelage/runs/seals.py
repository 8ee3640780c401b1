"""A record with its own digest, so that what was changed since is not taken for what was found."""

import hashlib
from collections.abc import Mapping
from typing import Any

from tutelage.errors import DataError
from tutelage.runs.directory import to_json

SEAL = "seal"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record and its digest, as the last key."""
    return {**record, SEAL: digest_of(to_json(record))}


def unsealed(record: Any, where: str) -> dict[str, Any]:
    """What was sealed.

    Raises:
        DataError: it is no object, has no seal, or another content than was sealed; `where` names
            the place.
    """
    if not isinstance(record, dict) or SEAL not in record:
        raise DataError(f"{where} is damaged: it is no record with a {SEAL}")
    content = {key: value for key, value in record.items() if key != SEAL}
    try:
        whole = record[SEAL] == digest_of(to_json(content))
    except ValueError:  # NaN, or half a character
        whole = False
    if not whole:
        raise DataError(f"{where} is damaged: its content is not what was sealed")
    return content


def digest_of(text: str) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
