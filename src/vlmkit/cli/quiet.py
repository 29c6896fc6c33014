"""Keep other libraries' chatter out of a command's output; their warnings and errors stay."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """Silence progress bars and tips of transformers and Lightning, and warnings that a user can do nothing about."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*modules? in eval mode.*")
