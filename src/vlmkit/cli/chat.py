"""`vlmkit-chat`: talk with a checkpoint about images and videos, on the terminal or in a page of this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from vlmkit.cli.checkpoints import model_directory
from vlmkit.cli.settings import check_settings
from vlmkit.config import run_command
from vlmkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vlmkit.generation.chat import Chat
    from vlmkit.generation.hf_backend import HFBackend
    from vlmkit.generation.streaming import Told

_HELP = """\
/image PATH   add an image to the next question
/video PATH   add a video to the next question
/clear        forget what was said
/help         this
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = ["serve=true" if argument == "--serve" else argument for argument in sys.argv[1:]]
    run_command("vlmkit-chat", "chat", _task)


def _task(config: DictConfig) -> None:
    _check_settings(config)
    media = [*_paths(config.image, "image"), *_paths(config.video, "video")]
    directory = model_directory(config, assembled=Path("runs/chat/model"))
    from vlmkit.cli.quiet import hush
    from vlmkit.generation.chat import Chat
    from vlmkit.generation.hf_backend import HFBackend

    hush()
    backend = HFBackend(directory=directory, device=config.device, dtype=config.dtype, workers=1)
    if config.serve:
        _serve(config, backend, directory)
        return
    chat = Chat(backend=backend, max_new_tokens=config.max_new_tokens, system=config.system)
    for path in media:
        _attach(chat, path)
    if config.question is not None:
        _answer(chat, str(config.question))
        return
    print(f"{directory} on {backend.device}. /help lists what can be typed besides questions.")
    _talk(chat)


def _check_settings(config: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        ConfigError: naming the key.
    """
    check_settings(config, "chat")
    if config.serve and any(config[key] is not None for key in ("image", "video", "question")):
        raise ConfigError(
            "serve=true: image=, video= and question= are for the terminal. Leave them out; the page asks."
        )


def _paths(told: object, kind: str) -> Iterator[Path]:
    """The files of `image=` or `video=`.

    Raises:
        DataError: one is not there.
    """
    for one in told if isinstance(told, ListConfig) else [] if told is None else [told]:
        path = Path(str(one)).expanduser()
        if path.is_dir():
            raise DataError(f"{kind}={one}: this is a directory. Name a file in it.", reason="missing_media")
        if not path.is_file():
            raise DataError(f"{kind}={one}: there is no such file. Check the path.", reason="missing_media")
        yield path


def _attach(chat: Chat, path: Path) -> None:
    from vlmkit.generation.chat import medium

    tokens = chat.attach(medium(path))
    print(f"{path}: {tokens} visual tokens")


def _talk(chat: Chat) -> None:
    """Questions and commands until the end of input."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit leaves.")
            continue
        if line in ("/quit", "/exit"):
            return
        if line:
            try:
                _do(chat, line)
            except DataError as error:
                print(error)


def _do(chat: Chat, line: str) -> None:
    """One line: a command or a question.

    Raises:
        DataError: a medium cannot be read.
    """
    command, _, rest = line.partition(" ")
    if not command.startswith("/"):
        _answer(chat, line)
    elif command in ("/image", "/video"):
        if not rest.strip():
            print(f"{command} needs the path of a file.")
            return
        _attach(chat, Path(rest.strip().strip("'\"")).expanduser())
    elif command == "/clear":
        chat.clear()
        print("Forgotten.")
    else:
        print(_HELP if command == "/help" else f"{command} is no command.\n{_HELP}")


def _answer(chat: Chat, question: str) -> None:
    """Print the answer as it comes, and what is known of it; Ctrl-C stops it."""
    items = chat.ask(question)
    try:
        for item in items:
            if isinstance(item, str):
                print(item, end="", flush=True)
            else:
                print(f"\n{_in_words(item)}")
    except KeyboardInterrupt:
        items.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
        print("\n(stopped; the question counts as not asked)")


def _in_words(told: Told) -> str:
    visual = f", {told.num_visual_tokens:,} of them visual" if told.num_visual_tokens else ""
    speed = f", {told.tokens_per_second:.1f} tokens/s" if told.tokens_per_second else ""
    ends = {"limit": "; cut at max_new_tokens", "stopped": "; stopped"}.get(told.ended, "")
    return (
        f"({told.num_prompt_tokens:,} tokens read{visual}; first token after "
        f"{told.seconds_to_encode + told.seconds_to_first:.2f} s; {told.num_tokens:,} tokens in {told.seconds:.2f} s{speed}{ends})"
    )


def _serve(config: DictConfig, backend: HFBackend, directory: Path) -> None:
    from vlmkit.pages.chat import ChatServer

    server = ChatServer(
        backend=backend,
        model=directory.name if directory.name != "hf" else directory.parent.name,
        max_new_tokens=config.max_new_tokens,
        system=config.system,
        port=config.port,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C, also where a shell has that ignored
    print(f"{directory} on {backend.device}: open {server.url} (this machine alone; Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
