"""One process that renders chats: a chat template is a program that somebody else wrote.

A job is JSON: the template, its arguments, the day it is told, and chats; its word is a pair
[text, error] for each chat.
"""

import json
from datetime import datetime
from importlib import import_module
from typing import Any

from tutelage.data.worker import Judge, limit_memory, serve

MEMORY = 2 * 1024**3
"""Bytes beyond which a template that grows is stopped."""


def prepare() -> Judge:
    """Import what transformers renders with, and bound the memory."""
    transformers: Any = import_module("transformers.utils.chat_template_utils")
    limit_memory(MEMORY)

    def render(job: bytes) -> list[list[str | None]]:
        asked = json.loads(job)
        transformers.datetime = _clock(asked["today"])
        rendered: list[list[str | None]] = []
        for chat in asked["chats"]:
            try:
                (text,), _ = transformers.render_jinja_template(
                    conversations=[chat],
                    chat_template=asked["template"],
                    add_generation_prompt=True,
                    **asked["arguments"],
                )
                rendered.append([text, None])
            except Exception as error:  # templates raise whatever they like
                rendered.append([None, str(error) or type(error).__name__])
        return rendered

    return render


def _clock(today: str | None) -> Any:
    """What a template's `strftime_now` reads: the day it is told, or this moment."""
    if today is None:
        return datetime
    moment = datetime.fromisoformat(today)

    class Told(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment

    return Told


if __name__ == "__main__":
    serve(prepare)
