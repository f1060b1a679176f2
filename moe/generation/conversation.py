"""Conversations as models were trained to see them."""

from __future__ import annotations

from typing import Any

from runtime.errors import UsageError


def conversation_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """Ids of a conversation, up to where the next answer begins.

    Args:
        tokenizer: of transformers, with a template.
        messages: ``role`` and ``content`` of each, as the template takes them.

    Raises:
        UsageError: there is no template, or it does not take these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("the model has no chat template; give it a prompt instead of messages")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"the model's chat template does not take these messages: {lines[0].rstrip('.')}"
        ) from error
    # The template writes by itself what a model wants at the start.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
