"""Between tokens and the text they stand for.

Axes: B rows, T token positions.
"""

from bisect import bisect
from functools import partial

import torch


def noise_mask(tokenizer, roll, spans_B):
    """Character spans of every response -> noise_BT, true on the tokens that hold any of them."""
    noise_BT = torch.zeros_like(roll.mask_BT, dtype=torch.bool)
    for row, spans in enumerate(spans_B):
        if spans:
            columns = roll.mask_BT[row].nonzero()[:, 0]
            noise_BT[row, columns] = token_spans(
                tokenizer, roll.tokens_BT[row, columns].tolist(), spans
            ).to(noise_BT.device)
    return noise_BT


def token_spans(tokenizer, ids, spans):
    """Character spans of a decoded response -> bool per token, true where a token holds any
    character of a span.

    The text that ids[:k] decodes to only grows with k, so each border is found by bisection.
    """
    marked = torch.zeros(len(ids), dtype=torch.bool)

    def characters(k):
        return len(tokenizer.decode(ids[:k], skip_special_tokens=True))

    for start, end in spans:
        if end > start and ids:
            # the tokens that hold its first and its last character
            first = bisect(range(1, len(ids)), start, key=characters)
            last = bisect(range(1, len(ids)), end - 1, key=characters)
            marked[first : last + 1] = True
    return marked


class StreamingDetokenizer:
    """Token ids one after another -> the text each adds. A character that several tokens share
    comes with the last of them.
    """

    def __init__(self, tokenizer, **how):
        self.decode, self.shown, self.waiting = partial(tokenizer.decode, **how), [], []

    def __call__(self, token, last=False):
        self.waiting.append(token)
        before, now = self.decode(self.shown), self.decode(self.shown + self.waiting)
        if now.endswith("\ufffd") and not last and len(self.waiting) < 8:
            return ""
        self.shown, self.waiting = self.waiting, []
        return now[len(before) :]


def token_texts(tokenizer, ids):
    """Token ids -> the text each adds; joined they are the text."""
    add = StreamingDetokenizer(tokenizer)
    return [add(token, last=place == len(ids)) for place, token in enumerate(ids, 1)]
