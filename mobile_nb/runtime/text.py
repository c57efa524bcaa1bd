"""Token ids to text, a piece at a time. Knows nothing about models."""

from __future__ import annotations


class TextStream:
    """Turns ids into the pieces of text that they add; bytes of an unfinished character wait for the next token.

    Args:
        tokenizer: a Hugging Face tokenizer, or None: every piece is empty.
    """

    def __init__(self, tokenizer=None):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = self._start = 0  # ids whose text is out; where the window of context begins

    def add(self, token_id: int) -> str:
        """The text that this token adds."""
        if self._tokenizer is None:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or text.endswith("�"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


__all__ = ["TextStream"]
