"""A judge: a model behind an endpoint that scores answers, in a pass of its own over records; no guess, nothing asked twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlmkit.errors import ConfigError, VlmkitError
from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.judging import Ask, JudgedBenchmark, Steps, judging_figures
from vlmkit.evaluation.records import Record, append_records, read_records, replace_records
from vlmkit.evaluation.runner import UNSCORED, RunSettings
from vlmkit.evaluation.score import Score, failed
from vlmkit.generation.endpoint import ChatEndpoint, RequestError, in_parallel

SCHEMA = "vlmkit.judgement/1"
_HOTTER = 0.5
"""A question that was answered unreadably is put again, each time at a temperature so much higher."""
_SHOWN_CHARACTERS = 120


class ReplyCache:
    """Replies of judges, by the hash of all that was asked; each is on the disk before the next step.

    Args:
        path: JSON Lines.
        entries: What it holds.
    """

    def __init__(self, path: Path, entries: Iterable[Record]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._replies = {entry["key"]: entry for entry in entries}

    def get(self, key: str) -> Record | None:
        """What was replied; None where it was never asked."""
        return self._replies.get(key)

    def add(self, entry: Record) -> None:
        """Keep a reply."""
        with self._lock:
            self._replies[entry["key"]] = entry
            append_records(self.path, [entry])


def open_replies(path: Path) -> ReplyCache:
    """The replies of a file, which need not be there yet; a torn or damaged line is taken out of it, and said."""
    return ReplyCache(path, [entry for entry in read_records(path) if isinstance(entry.get("reply"), str)])


class Judge:
    """Asks a model what benchmarks want to know of answers.

    Args:
        base_url: Up to where `/chat/completions` follows, mostly `.../v1`.
        model: As the server names it.
        api_key_env: Name of the environment variable that holds the key; None: none is sent.
        temperature: Of the first asking; None: not sent.
        max_tokens: Longest reply; None: not sent.
        timeout_seconds: Longest wait for one reply.
        retries: Further tries of a request that met a time-out or a fault of the server.
        retry_seconds: Wait before the first retry; it doubles.
        concurrency: Requests at a time.
        rereads: How often a question that was answered unreadably is put again.
        input_price: Of a million tokens of questions; None: no cost is told.
        output_price: Of a million tokens of replies; None: no cost is told.
        extra_body: Further fields of every request; null takes one of ours out.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        temperature: float | None,
        max_tokens: int | None,
        timeout_seconds: float,
        retries: int,
        retry_seconds: float,
        concurrency: int,
        rereads: int,
        input_price: float | None,
        output_price: float | None,
        extra_body: Mapping[str, Any],
    ) -> None:
        if rereads < 0:
            raise ConfigError(f"judge.rereads={rereads}: must not be negative.")
        self.endpoint = ChatEndpoint(
            where="judge",
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            timeout_seconds=timeout_seconds,
            retries=retries,
            retry_seconds=retry_seconds,
            concurrency=concurrency,
        )
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.rereads = rereads
        self.input_price = input_price
        self.output_price = output_price
        self.extra_body = dict(extra_body)

    def identity(self, benchmark: JudgedBenchmark) -> dict[str, Any]:
        """What decides a judgement, as it stands in `summary.json`: two scores are alike only if this is."""
        return {
            "model": self.endpoint.model,
            "prompts": {prompt.label: prompt.fingerprint for prompt in benchmark.benchmark.judge_prompts},
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **({"extra_body": self.extra_body} if self.extra_body else {}),
        }

    def figures(self, benchmark: JudgedBenchmark, records: Sequence[Record]) -> dict[str, Any]:
        """`judge` and `judging` of a benchmark's figures."""
        counts = judging_figures(records, input_price=self.input_price, output_price=self.output_price)
        return {"judge": self.identity(benchmark), "judging": {"endpoint": self.endpoint.base_url, **counts}}

    def judge(self, steps: Steps, *, case_id: str, cache: ReplyCache) -> tuple[Score, dict[str, Any] | None]:
        """Follow the judgement of one answer.

        Returns:
            The score, and what was asked and replied, for the record; None where nothing was asked. A judgement that
            fails is a score with the outcome `failed`, its reason under `error`.

        Raises:
            EndpointError: nothing can be asked at all.
        """
        trail = _Trail(self.endpoint.model)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(self._answer(ask, trail, case_id, cache))
        except StopIteration as end:
            return end.value, trail.told() if trail.prompts else None
        except (RequestError, _UnreadableError) as error:
            return failed(), {**trail.told(), "error": str(error)}
        except ValueError as error:  # the case cannot be scored, whatever was replied
            return failed(), {**trail.told(), "error": f"cannot be scored ({error})"}

    def _answer(self, ask: Ask, trail: _Trail, case_id: str, cache: ReplyCache) -> object:
        """What was read in the reply to a question, put again where it could not be.

        Raises:
            RequestError: it cannot be asked.
            _UnreadableError: no reply could be read.
        """
        entry: Record = {}
        for attempt in range(self.rereads + 1):
            entry = self._reply(ask, attempt, trail, case_id, cache)
            if (found := ask.read(remove_reasoning(entry["reply"]).strip())) is not None:
                return found
        shown = " ".join(entry["reply"].split())[:_SHOWN_CHARACTERS]
        cut = f", cut at judge.max_tokens={self.max_tokens}" if entry.get("finish_reason") == "length" else ""
        raise _UnreadableError(f"the judge's reply {shown!r}{cut} is not {ask.prompt.wanted}")

    def _reply(self, ask: Ask, attempt: int, trail: _Trail, case_id: str, cache: ReplyCache) -> Record:
        fields = self._fields(attempt)
        key = reply_key(model=self.endpoint.model, text=ask.text, fields=fields, attempt=attempt)
        trail.prompts.append(ask.prompt.label)
        if (entry := cache.get(key)) is None:
            entry = self._send(ask, fields, key, case_id)
            cache.add(entry)
            trail.pay(entry)
        trail.replies.append(entry["reply"])
        trail.served.append(str(entry.get("served", "")))
        return entry

    def _send(self, ask: Ask, fields: Mapping[str, Any], key: str, case_id: str) -> Record:
        reply = self.endpoint.complete([{"role": "user", "content": ask.text}], fields=fields)
        return {
            "schema": SCHEMA,
            "key": key,
            "id": case_id,
            "model": self.endpoint.model,
            "served": reply.model,
            "prompt": ask.prompt.label,
            "reply": reply.text,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }

    def _fields(self, attempt: int) -> dict[str, Any]:
        hotter = None if self.temperature is None else self.temperature + _HOTTER * attempt
        return {"temperature": hotter, "max_tokens": self.max_tokens, **self.extra_body}


class _UnreadableError(Exception):
    """No reply of the judge could be read."""


class _Trail:
    """What was asked and replied on the way to one score."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.prompts: list[str] = []
        self.replies: list[str] = []
        self.served: list[str] = []
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    def pay(self, entry: Record) -> None:
        """Count a request."""
        self.requests += 1
        self.prompt_tokens += entry["prompt_tokens"]
        self.completion_tokens += entry["completion_tokens"]

    def told(self) -> dict[str, Any]:
        """For the record."""
        return {
            "judge": self.model,
            "served": sorted(set(self.served)),
            "prompts": self.prompts,
            "replies": self.replies,
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


def reply_key(*, model: str, text: str, fields: Mapping[str, Any], attempt: int) -> str:
    """Hash of all that decides a reply: model, question, parameters, and which asking it is."""
    told = json.dumps([model, text, dict(fields), attempt], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def judge_records(benchmark: JudgedBenchmark, judge: Judge, settings: RunSettings) -> list[Record]:
    """Score the records that are there by a judge; needs no model.

    Replies are kept in `judgements.jsonl` beside the records: what was asked once is not asked again, by this run or a
    later one, unless it failed for want of a reply.

    Returns:
        The judged records, in the order of the data; a `judgement` stands in those that a judge was asked about.

    Raises:
        VlmkitError: there are no records.
        EndpointError: the judge cannot be asked; the records stay as they are.
    """
    path = settings.output_dir / benchmark.name / "records.jsonl"
    by_id = {record["id"]: record for record in read_records(path)}
    if not by_id:
        raise VlmkitError(f"{path}: no records to judge. Run the evaluation without rescore=true first.")
    cache = open_replies(path.with_name("judgements.jsonl"))

    def decide(item: tuple[int, Case | BadCase, Record]) -> Record:
        _, case, record = item[0], item[1], dict(item[2])
        score, told = failed(), None
        if str(record.get("error") or "").startswith(UNSCORED):
            record["error"] = None  # the rule's trouble, not the answer's
        if isinstance(case, Case) and not record.get("error"):
            steps = benchmark.benchmark.judging(case, record["answer"])
            score, told = judge.judge(steps, case_id=case.id, cache=cache)
        record = {name: value for name, value in record.items() if name != "judgement"}
        record |= {"extracted": score.extracted, "score": score.value, "outcome": score.outcome}
        return record | ({"judgement": told} if told else {})

    def answered() -> Iterator[tuple[int, Case | BadCase, Record]]:
        for number, case in enumerate(islice(benchmark.cases(), settings.max_samples)):
            if (record := by_id.get(case.id)) is not None:
                yield number, case, record

    found: dict[int, Record] = {}
    total = min(len(by_id), settings.max_samples or len(by_id))
    title = f"{benchmark.name}, judged"
    with tqdm(total=total, desc=title, unit="case", disable=not settings.progress) as bar:
        for (number, _, _), record in in_parallel(decide, answered(), workers=judge.endpoint.concurrency):
            found[number] = record
            bar.update()
    judged = [found[number] for number in sorted(found)]
    ids = {record["id"] for record in judged}
    replace_records(path, [*judged, *(record for id_, record in by_id.items() if id_ not in ids)])
    return judged
