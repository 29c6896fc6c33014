"""Exact match of short answers (GQA).

Sources: lmms-eval `lmms_eval/api/metrics.py` (`exact_match_hf_evaluate`); VLMEvalKit
`vlmeval/dataset/utils/vqa_eval.py` (method `accuracy`).
"""

from __future__ import annotations

import string

from vlmkit.evaluation.score import ProtocolName, Score, grade

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(*, prediction: str, answer: str, protocol: ProtocolName = "lmms-eval") -> Score:
    """1 if prediction and answer are the same text, case ignored.

    `lmms-eval` also deletes the 32 ASCII punctuation characters from both (`t-shirt` is `tshirt`, not `t shirt`; `No.`
    is `no`) and strips the prediction only; `vlmevalkit` keeps punctuation and strips both. Neither touches articles,
    number words or inner spaces.
    """
    if protocol == "lmms-eval":
        given, wanted = delete_punctuation(prediction.strip()), delete_punctuation(answer)
    else:
        given, wanted = prediction.strip().lower(), answer.strip().lower()
    return grade(float(given == wanted), extracted=given)


def delete_punctuation(text: str) -> str:
    """Lower case without ASCII punctuation; nothing is stripped afterwards."""
    return text.lower().translate(_WITHOUT_PUNCTUATION)
