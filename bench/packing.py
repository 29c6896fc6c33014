"""Plan a million rows: how full packs are, how even ranks are, how long it takes and how much memory.

Lengths are drawn as mixed data has them: a quarter text of 50 to 400 tokens, 60 % with one image of 300 to 1,600, the
rest long, cut at 2,000 tokens; four vision patches behind each visual token. `python bench/packing.py --help` for the
options.

Printed, and checked (exit status 1 where a target is missed):
- fill: share of the token budget of 4,096 that packs use, at least 99.5 %. Beside it: what batches of eight waste when
  they are padded to their longest row.
- balance: the heaviest rank of a step over the mean rank, averaged over steps, at most 1.1 in tokens and in patches.
- planning: under 10 s and under 500 MB for a million rows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from vlmkit.data.dealing import deal
from vlmkit.data.packing import Budget
from vlmkit.data.plan import Plan, PlanRows, make_plan

MIN_FILL = 0.995
MAX_IMBALANCE = 1.1
MAX_SECONDS_PER_MILLION, MAX_MIB_PER_MILLION = 10.0, 500
RANKS = ((2, 1), (2, 4), (8, 1), (8, 4))


def main() -> int:
    """Draw lengths, plan by every budget, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 rows; seconds and memory are not judged")
    options = parser.parse_args()
    if options.quick:
        options.rows = 20_000
    rows = draw(options.rows)
    met: list[bool] = []
    before = peak_mib()
    for number, budget in enumerate((Budget(tokens=4096), Budget(tokens=4096, patches=14_000), Budget(rows=8))):
        start = time.perf_counter()
        plan = make_plan(rows, budget=budget, seed=0, num_epochs=1)
        seconds = time.perf_counter() - start
        print(f"{describe(budget)}: {len(plan):,} packs in {seconds:.1f} s")
        if number == 0:
            memory, share = peak_mib() - before, options.rows / 1e6
            met += [
                judged("  fill", plan.fill or 0, f"at least {MIN_FILL:.1%}", (plan.fill or 0) >= MIN_FILL, "{:.2%}"),
                judged(
                    "  seconds",
                    seconds,
                    "under 10 a million",
                    options.quick or seconds < MAX_SECONDS_PER_MILLION * share,
                    "{:.1f}",
                ),
                judged(
                    "  MiB",
                    memory,
                    "under 500 a million",
                    options.quick or memory < MAX_MIB_PER_MILLION * share,
                    "{:.0f}",
                ),
            ]
        elif budget.tokens:
            print(f"  fill                 {plan.fill:.2%} of the tokens, {patch_fill(plan):.2%} of the patches")
        else:
            print(f"  padded to the longest row, {waste(rows, plan):.1%} would be padding")
        for num_ranks, accumulate in RANKS:
            name = f"  {num_ranks} ranks x {accumulate}"
            tokens, patches = imbalance(plan, num_ranks, accumulate)
            told = f"{tokens:.3f} in tokens, {patches:.3f} in patches"
            good = max(tokens, patches) <= MAX_IMBALANCE
            met.append(good or number > 0)
            print(f"{name:<22} {told:<38} {'at most 1.1' if number == 0 else ''}{'' if met[-1] else '   MISSED'}")
    return 0 if all(met) else 1


def draw(num_rows: int) -> PlanRows:
    """Lengths of mixed data."""
    rng = np.random.default_rng(0)
    kind = rng.random(num_rows)
    text, image = rng.integers(50, 401, num_rows), rng.integers(300, 1601, num_rows)
    long = np.minimum(rng.integers(1000, 4000, num_rows), 2000)
    tokens = np.select([kind < 0.25, kind < 0.85], [text, image], long).astype(np.int64)
    visual = np.where(kind < 0.25, 0, np.maximum(0, tokens - rng.integers(40, 200, num_rows)))
    return PlanRows(
        row=np.arange(num_rows, dtype=np.int64),
        source=np.zeros(num_rows, dtype=np.int64),
        num_tokens=tokens,
        num_supervised_tokens=tokens // 8 + 1,
        num_patches=4 * visual,
    )


def judged(name: str, value: float, target: str, good: bool, form: str) -> bool:
    """Print a figure beside its target."""
    print(f"{name:<22} {form.format(value):<38} {target}{'' if good else '   MISSED'}")
    return good


def describe(budget: Budget) -> str:
    """The budget in words."""
    if budget.rows:
        return f"packs of {budget.rows} rows"
    return f"{budget.tokens:,} tokens" + (f" and {budget.patches:,} patches" if budget.patches else "") + " a pack"


def patch_fill(plan: Plan) -> float:
    """Share of the patch budget that packs use."""
    return float(plan.num_patches.sum() / (len(plan) * (plan.budget.patches or 1)))


def waste(rows: PlanRows, plan: Plan) -> float:
    """Share of padding if every row of a pack were padded to the longest."""
    longest = np.maximum.reduceat(rows.num_tokens[plan.rows], plan.starts[:-1])
    return float(1 - plan.num_tokens.sum() / (longest * np.diff(plan.starts)).sum())


def imbalance(plan: Plan, num_ranks: int, accumulate: int) -> tuple[float, float]:
    """Heaviest rank over mean rank, averaged over the full steps: in tokens, in patches."""
    tokens, patches = deal(plan, num_ranks=num_ranks, accumulate=accumulate).rank_loads()
    first, second = (float((load.max(1) / load.mean(1))[:-1].mean()) for load in (tokens, patches))
    return first, second


def peak_mib() -> float:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
