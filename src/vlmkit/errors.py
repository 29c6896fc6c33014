"""What a user can get wrong, in one family: every message says what, where, what was found and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a datum came from.

    Attributes:
        file: Path of the manifest (or the benchmark's data) as the user gave it.
        row: Row in that file, counted from 1.
    """

    file: str
    row: int

    def __str__(self) -> str:
        """`file:row`, as compilers print it."""
        return f"{self.file}:{self.row}"


class VlmkitError(Exception):
    """An error the user can mend; the command line prints it without a traceback.

    Attributes:
        status: What the command exits with.
    """

    status = 1


class ConfigError(VlmkitError):
    """A setting, or a combination of settings, that cannot work. Names the config key."""


class DataError(VlmkitError):
    """A row or medium that cannot be used.

    Attributes:
        reason: A short stable word for the kind of fault (`missing_media`, `placeholder_count`, ...): counts go by it.
        finding: The message without its origin.
        origin: File and row, where they are known.
    """

    def __init__(self, finding: str, *, reason: str, origin: Origin | None = None) -> None:
        super().__init__(f"{origin}: {finding}" if origin else finding)
        self.finding = finding
        self.reason = reason
        self.origin = origin

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way from a worker process to the main one."""
        return _make_data_error, (self.finding, self.reason, self.origin)

    def at(self, origin: Origin) -> DataError:
        """The same error, with its file and row, from the caller that knows them."""
        return self if self.origin else DataError(self.finding, reason=self.reason, origin=origin)


def _make_data_error(finding: str, reason: str, origin: Origin | None) -> DataError:
    return DataError(finding, reason=reason, origin=origin)


class AssemblyError(VlmkitError):
    """Parts that do not fit into one model, or a proof that failed. Names the field or tensor."""


class CheckpointError(VlmkitError):
    """A checkpoint or run directory that cannot be read, written or continued. Names the path."""


class Interrupted(VlmkitError):
    """A run that a signal told to leave: saved, resumable. The status is that of a failure that passes (EX_TEMPFAIL)."""

    status = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory, of a device or of the machine, does not suffice; torch is not needed to tell."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in message
        for words in ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
    )
