"""The calls as lmms-eval's `openai` model makes them: documents of a task, with pictures as PIL's.

It sends texts and pictures of user, system and assistant, `max_tokens` and `temperature`, and nothing else.
"""

from __future__ import annotations

import io
import re
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.models.chat.openai import OpenAICompatible
from PIL import Image, UnidentifiedImageError

from casa_core.errors import MediaError
from casa_core.media.data_uri import from_data_uri
from tests.support.clients.calls import CHAT, Call
from tests.support.clients.outcomes import Answered, InexpressibleError, Outcome, Refused

FAILED = "[LMMS_EVAL_REQUEST_FAILED"
SETTINGS = {"max_tokens": "max_new_tokens", "temperature": "temperature"}
STATUS = re.compile(r"Error code: (\d+) - ")


def ask(url: str, call: Call) -> Outcome:
    """A call as a document's, asked once."""
    document = [_message(message) for message in call.messages]
    fields = call.fields
    version = fields.pop("model")
    settings = {own: fields.pop(name) for name, own in SETTINGS.items() if name in fields}
    if fields or call.then or call.path != CHAT:
        raise InexpressibleError(f"it sends no {', '.join(fields) or 'such call'}")
    model = OpenAICompatible(
        model_version=version, base_url=f"{url}/v1", api_key="unused", max_retries=1, num_concurrent=1
    )
    model.task_dict = {"task": {"test": [document]}}
    instance = Instance(
        request_type="generate_until",
        arguments=("", lambda messages: messages, settings, 0, "task", "test"),
        idx=0,
        metadata={"task": "task", "doc_id": 0, "repeats": 1},
    )
    [answer] = model.generate_until([instance])
    if answer.text.startswith(FAILED):
        if not (refused := STATUS.search(answer.text)):
            raise InexpressibleError(answer.text)
        return Refused(int(refused[1]), None, None)  # it cuts the text off before code and param
    return Answered((answer.text,), None, answer.token_counts.output_tokens)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] not in ("user", "system", "assistant") or "name" in message:
        raise InexpressibleError("it has the roles user, system and assistant, without names")
    content = message["content"]
    if content is None:
        raise InexpressibleError("its contents are lists of parts")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_part(part) for part in parts]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    if part["image_url"].keys() != {"url"}:
        raise InexpressibleError("its pictures have no detail")
    try:
        picture = Image.open(io.BytesIO(from_data_uri(part["image_url"]["url"])))
        picture.load()
    except (MediaError, UnidentifiedImageError, OSError) as error:
        raise InexpressibleError("it reads pictures itself and sends them as PNG") from error
    return {"type": "image", "url": picture}
