"""How a question becomes tokens: as it stands, or as a chat that vLLM formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deepconf.engines.base import as_messages
from deepconf.engines.vllm._outputs import reason_of
from deepconf.errors import InvalidInput

__all__ = ["Prompts"]


class Prompts:
    """Those of a model.

    Args:
        model: its name, for messages.
        llm: vLLM's engine.
        chat: whether a question given as a string is put into the model's chat template.
        options: passed to the chat template.

    Raises:
        InvalidInput: `chat` is True and the model has no chat template.
    """

    def __init__(
        self,
        model: str,
        llm: Any,
        chat: Literal["auto", True, False],
        options: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._renderer = llm.renderer
        self._tokenizer = llm.get_tokenizer()
        self._most = llm.vllm_config.model_config.max_model_len
        self._options = dict(options)
        self._chat = self._wants_chat(chat)

    def _wants_chat(self, chat: Literal["auto", True, False]) -> bool:
        if chat is False:
            return False
        has_template = self._has_template()
        if chat is True and not has_template:
            raise InvalidInput(f"chat=True: {self._model!r} has no chat template, set chat=False")
        return has_template

    def _has_template(self) -> bool:
        """Whether vLLM can format a chat for this model, by a template or in code."""
        from vllm.renderers.chat_utils import ChatTemplateResolutionError

        try:
            self._render([{"role": "user", "content": "?"}])
        except ChatTemplateResolutionError:
            return False
        except Exception:  # There is one, which wants something else.
            return True
        return True

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> Any:
        """Tokenises a prompt, or chat messages by the model's template.

        Raises:
            InvalidInput: it is no prompt, or leaves no room for an answer.
            InvalidType: it is neither a string nor messages.
        """
        from vllm.inputs import tokens_input

        if isinstance(question, str) and not self._chat:
            tokens = self._tokenizer.encode(question)
        else:
            tokens = self._apply_template(_checked_parts(as_messages(question)))
        most = self._most
        if not 0 < len(tokens) < most:
            raise InvalidInput(
                f"the question has {len(tokens)} tokens: must be between 1 and {most - 1}, since "
                f"the model's context holds {most} (max_model_len)"
            )
        # As vLLM's renderer gives it, which `generate` queues at once; a TokensPrompt is first
        # handed to another thread.
        return tokens_input(list(tokens))

    def _apply_template(self, messages: list[dict[str, Any]]) -> list[int]:
        from vllm.renderers.chat_utils import ChatTemplateResolutionError

        try:
            return self._render(messages)
        except ChatTemplateResolutionError:
            raise InvalidInput(
                f"chat messages need a chat template, {self._model!r} has none"
            ) from None
        except Exception as error:  # Templates raise what they like.
            raise InvalidInput(
                f"the chat template refuses the question: {reason_of(error)}"
            ) from error

    def _render(self, messages: list[dict[str, Any]]) -> list[int]:
        """By vLLM's renderer, which knows the models that format chats in code, too."""
        from vllm.renderers.params import ChatParams

        renderer = self._renderer
        options = {"add_generation_prompt": True, **self._options}
        template = options.pop("chat_template", None)
        chat = ChatParams(chat_template=template, chat_template_kwargs=options)
        # A question that is too long gets our own words.
        tokenizing = dataclasses.replace(renderer.default_chat_tok_params, max_total_tokens=None)
        _, (prompt,) = renderer.render_chat([messages], chat, tokenizing)
        return list(prompt["prompt_token_ids"])


def _checked_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, when all they hold is text."""
    for place, message in enumerate(messages):
        content = message["content"]
        if content is None or isinstance(content, str):
            continue
        for number, part in enumerate(content if isinstance(content, (list, tuple)) else [content]):
            is_text = isinstance(part, Mapping) and part.get("type") == "text"
            if not (is_text and isinstance(part.get("text"), str)):
                raise InvalidInput(
                    f"message {place} of the question, part {number}, is {part!r:.100}: must be "
                    '{"type": "text", "text": ...}, as only text is supported'
                )
    return messages
