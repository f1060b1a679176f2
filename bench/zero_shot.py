"""One table of several systems on several collections, and their rankings kept by hash.

    python bench/zero_shot.py table RESULTS/bm25 RESULTS/mini … --keep docs/runs
    python bench/zero_shot.py check docs/runs DATA

`table` reads what `lexpert eval beir COLLECTION… --out RESULTS/SYSTEM` and `lexpert eval fuse` left, one folder for
each system, and compares each with the first. ``--keep`` writes the ten best of each ranking, all that nDCG@10 sees,
as ``SHA256.trec.gz``, the hash of the text in it, and ``runs.json`` with what was measured on it. `check` measures
these files again, against the judgements under DATA, and says whether every hash and every figure is as written.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from evals.comparison import compare
from evals.metrics import mean
from evals.qrels import read_qrels
from evals.report import RUN_FILE, Report, load_report
from evals.run_file import measure_run_file
from retrieval.interop.trec_run import read_run, write_run

MEASURE, DEPTH = "nDCG@10", 10
RUNS = "runs.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    table = commands.add_parser("table")
    table.add_argument("systems", type=Path, nargs="+", help="the first is what the others are compared with")
    table.add_argument("--keep", type=Path)
    table.set_defaults(run=lambda given: print_table(given.systems, given.keep))
    check = commands.add_parser("check")
    check.add_argument("kept", type=Path)
    check.add_argument("data", type=Path)
    check.set_defaults(run=lambda given: check_kept(given.kept, given.data))
    given = parser.parse_args()
    given.run(given)


def print_table(systems: list[Path], keep: Path | None) -> None:
    """Print nDCG@10 as Markdown; a star where a system differs from the first with p below .05."""
    found = {
        system.name: {
            path.parent.name: load_report(path.parent) for path in sorted(system.glob("*/report.json"))
        }
        for system in systems
    }
    first, *others = found
    collections = [name for name in found[first] if all(name in found[other] for other in others)]
    left_out = sorted({name for reports in found.values() for name in reports} - set(collections))
    print(f"| collection | queries | {' | '.join(found)} |")
    print(f"|---|---|{'---|' * len(found)}")
    for name in collections:
        of_first = found[first][name]
        cells = []
        for reports in found.values():
            report = reports[name]
            star = ""
            if report is not of_first:
                rows = compare(of_first.per_query, report.per_query, [MEASURE]).measures
                star = "*" if rows[0].p_value < 0.05 else ""
            cells.append(f"{report.metrics[MEASURE]:.3f}{star}")
        print(f"| {name} | {of_first.queries:,} | {' | '.join(cells)} |")
    means = {
        system: sum(reports[name].metrics[MEASURE] for name in collections) / len(collections)
        for system, reports in found.items()
    }
    print(f"| **mean** | | {' | '.join(f'**{value:.3f}**' for value in means.values())} |")
    differences = (
        f"{value - means[first]:+.3f}" if system != first else "" for system, value in means.items()
    )
    print(f"| to {first} | | {' | '.join(differences)} |")
    if left_out:
        print(f"left out, for a system lacks them: {', '.join(left_out)}", file=sys.stderr)
    if keep is not None:
        keep_runs(
            {system: [reports[name] for name in collections] for system, reports in found.items()},
            systems,
            keep,
        )


def keep_runs(found: dict[str, list[Report]], systems: list[Path], keep: Path) -> None:
    """Write the ten best of each ranking under the hash of their lines."""
    keep.mkdir(parents=True, exist_ok=True)
    entries = []
    for system, folder in zip(found, systems, strict=True):
        for report in found[system]:
            run = read_run(folder / report.collection / RUN_FILE)
            with tempfile.TemporaryDirectory() as scratch:
                cut = Path(scratch) / RUN_FILE
                write_run({query: ranking[:DEPTH] for query, ranking in run.items()}, cut, tag=system)
                lines = cut.read_bytes()
            digest = hashlib.sha256(lines).hexdigest()
            (keep / f"{digest}.trec.gz").write_bytes(gzip.compress(lines, 9, mtime=0))
            entries.append(
                {
                    "system": system,
                    "collection": report.collection,
                    "split": report.split,
                    MEASURE: round(report.metrics[MEASURE], 6),
                    "encoder_fingerprint": report.encoder_fingerprint,
                    "sha256": digest,
                }
            )
    (keep / RUNS).write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    kept = {f"{entry['sha256']}.trec.gz" for entry in entries}
    for path in keep.glob("*.trec.gz"):
        if path.name not in kept:
            path.unlink()


def check_kept(kept: Path, data: Path) -> None:
    """Measure what is kept again; the exit code is 1 where anything differs."""
    entries = json.loads((kept / RUNS).read_text("utf-8"))
    wrong = 0
    for entry in entries:
        lines = gzip.decompress((kept / f"{entry['sha256']}.trec.gz").read_bytes())
        qrels = data / entry["collection"] / "qrels" / f"{entry['split']}.tsv"
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / RUN_FILE
            run.write_bytes(lines)
            report = measure_run_file(run, qrels, read_qrels(qrels))
        value = mean(report.per_query)[MEASURE]
        same = hashlib.sha256(lines).hexdigest() == entry["sha256"] and abs(value - entry[MEASURE]) < 1e-6
        wrong += not same
        print(f"{'same ' if same else 'OTHER'} {entry['system']:24} {entry['collection']:10} {value:.4f}")
    print(f"{len(entries) - wrong} of {len(entries)} are as written")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
