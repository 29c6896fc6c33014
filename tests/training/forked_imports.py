"""What a run imports, so that a forked one need not."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.figure  # noqa: E402, F401
import transformers.models.qwen3_vl.modeling_qwen3_vl  # noqa: E402
import transformers.models.qwen3_vl.processing_qwen3_vl  # noqa: E402, F401

import vlmkit.cli.train  # noqa: E402
import vlmkit.cli.training  # noqa: E402, F401
