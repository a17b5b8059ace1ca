"""Robustness tests that try to break kdad: `python -m benchmarks.hardening [ATTACK …]`.

The attacks are those of `ATTACKS`, in `benchmarks/attacks`. Every attack is seeded and runs in its own process. The
exit status is 1 if anything broke; failures are printed and saved.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.attacks import concurrent_users, kills, malformed, tampered
from benchmarks.attacks.tally import Tally
from kdad.detection.detector import Detector
from kdad.devices import hardware
from kdad.errors import UserError, one_of
from kdad.files import read_json_if_there, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "hardening.json"
BRICKS = ROOT / "trained_students" / "patterns-defects" / "vgg-cifar10" / "bricks"
PEOPLE = 20


def broken_files(work: Path, tries: int) -> dict[str, Tally]:
    """Feed mutated images, zip files and parquet files."""
    detector = Detector.load(BRICKS, device="cpu")
    tallies = malformed.images(detector, work, tries)
    return {**tallies, "zip": malformed.zips(work, tries), "parquet": malformed.parquets(work, tries)}


def tampered_students(work: Path, tries: int) -> dict[str, Tally]:
    """Change one file of a student at a time."""
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    return tampered.attack(BRICKS, images, work, tries)


def killed_runs(work: Path, tries: int) -> dict[str, Tally]:
    """Send SIGKILL at random moments, then run the same command again."""
    tallies = {}
    for name, attack in (
        ("train", kills.train),
        ("train, by Ctrl-C", kills.interrupted),
        ("sweep", kills.sweep),
        ("job of the app", kills.background_job),
    ):
        (work / name).mkdir()
        tallies[name] = attack(work / name, tries)
    return tallies


def app_with_many_users(work: Path, tries: int) -> dict[str, concurrent_users.ConcurrentUsers]:
    """Open many browsers at once during a training."""
    return {f"{PEOPLE} people": concurrent_users.attack(work, PEOPLE, tries)}


@dataclass(frozen=True)
class Attack:
    """An attack, and its default number of tries of each kind."""

    run: Callable[[Path, int], dict[str, Any]]
    tries: int


ATTACKS = {
    "files": Attack(broken_files, 200),
    "students": Attack(tampered_students, 50),
    "kills": Attack(killed_runs, 7),
    "users": Attack(app_with_many_users, 12),
}


def attacked(name: str, tries: int) -> dict[str, Any]:
    """Run one attack; returns its rows and this process's peak memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        tallies = ATTACKS[name].run(Path(work), tries)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    rows = {kind: tally.row() for kind, tally in tallies.items()}
    return {"rows": rows, "mib": round(most), "hardware": hardware("cpu")}


def main(argv: list[str] | None = None) -> None:
    """Attack, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"any of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--tries", type=int, help="tries of each kind (default: as in docs/hardening.md)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        known = read_json_if_there(args.results)
        for name in [one_of("attack", attack, ATTACKS) for attack in args.attacks or ATTACKS]:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                known[name] = process.submit(attacked, name, args.tries or ATTACKS[name].tries).result()
            write_json(args.results, known)
            print(name, json.dumps(known[name], indent=2))
    except (UserError, OSError, ValueError) as error:
        parser.error(str(error))
    if any(row["broken"] for attack in known.values() for row in attack["rows"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
