"""The calls as LiteLLM makes them with its provider for vLLM's servers, `hosted_vllm/`."""

from __future__ import annotations

import os
from typing import Any

import openai

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no download when it is imported

import litellm

from tests.support.clients.calls import CHAT, Call
from tests.support.clients.outcomes import Answered, InexpressibleError, Outcome, Refused
from tests.support.clients.run_openai import outcome

litellm.suppress_debug_info = True


def ask(url: str, call: Call) -> Outcome:
    """A call, and after it the one that sends its `Message` back."""
    if call.path == "/v1/models":
        return _models(url)
    if call.path != CHAT:
        raise InexpressibleError("it retrieves no single model")
    messages: list[Any] = list(call.messages)
    try:
        answer = _complete(url, call, messages)
        if call.then:
            answer = _complete(url, call, [*messages, answer.choices[0].message, *call.then])
        return outcome(list(answer) if call.fields.get("stream") else answer)
    except litellm.UnsupportedParamsError as error:
        raise InexpressibleError(str(error).splitlines()[0]) from error
    except openai.APIStatusError as error:
        return Refused(error.status_code, error.code, error.param)


def _complete(url: str, call: Call, messages: list[Any]) -> Any:
    fields = call.fields
    model = f"hosted_vllm/{fields.pop('model')}"
    return litellm.completion(
        model=model, messages=messages, api_base=f"{url}/v1", api_key="unused", max_retries=0, **fields
    )


def _models(url: str) -> Answered:
    names = litellm.get_valid_models(
        check_provider_endpoint=True,
        custom_llm_provider="hosted_vllm",
        api_base=f"{url}/v1",
        api_key="unused",
    )
    return Answered(tuple(name.removeprefix("hosted_vllm/") for name in names), None)
