"""Media, manifests and the tiny processor, as the tests of the data room have them."""

from __future__ import annotations

from tests.data.conftest import corpus, datamodule, processor

__all__ = ["corpus", "datamodule", "processor"]
