"""vlmkit: assemble vision-language models out of parts, train them in stages, prove how good they are."""

__version__ = "0.1.0"
