"""The operating point that is kept with a student: operating_point.json. Imports no torch."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdad.errors import UserError, one_line
from kdad.files import write_json
from kdad.storage.layout import OPERATING_POINT
from kdad.storage.sealing import read_sealed, sealed


@dataclass(frozen=True)
class Costs:
    """The costs of wrong verdicts, in any one unit, and how common defects are.

    Args:
        miss: the cost of an anomalous image that is called normal.
        false_alarm: the cost of a normal image that is called anomalous.
        defects: the share in 0…1 of anomalous images among those to come.

    Raises:
        UserError: a cost is not positive and finite, or the share is not between 0 and 1.
    """

    miss: float
    false_alarm: float
    defects: float

    def __post_init__(self) -> None:
        for name, cost in (("miss", self.miss), ("false alarm", self.false_alarm)):
            if not (cost > 0 and math.isfinite(cost)):
                raise UserError(f"the cost of a {name} must be a positive number, not {cost:g}")
        if not 0 < self.defects < 1:
            raise UserError(f"the share of defects must lie between 0 and 1, not at {self.defects:g}")

    def expected(self, fpr: Any, found: Any) -> Any:
        """The expected cost of one image at a false-positive rate and a share of anomalies found; numbers or arrays."""
        return self.false_alarm * (1 - self.defects) * fpr + self.miss * self.defects * (1 - found)


@dataclass(frozen=True)
class OperatingPoint:
    """The false-positive rate of least expected cost, and what chose it.

    Args:
        fpr: the false-positive rate, which the student's calibration can hold.
        costs: for which it is the best.
        found: the share in 0…1 of the anomalous test images that are found at it. They chose it: it flatters.
        anomalies: how many anomalous test images chose it.
        weights_sha256: the student's weights, to which it belongs.
        calibration_sha256: the calibration on which it was chosen; a later version of the student has another.
    """

    fpr: float
    costs: Costs
    found: float
    anomalies: int
    weights_sha256: str
    calibration_sha256: str

    @property
    def expected_cost(self) -> float:
        """The expected cost of one image, in the unit of the costs."""
        return float(self.costs.expected(self.fpr, self.found))

    @property
    def line(self) -> str:
        """The point and its origin in one sentence."""
        costs = self.costs
        return (
            f"False-positive rate {100 * self.fpr:.3g} %, of least expected cost where a miss costs {costs.miss:g}, a "
            f"false alarm {costs.false_alarm:g} and {100 * costs.defects:.3g} % of images are anomalous. Chosen on the "
            f"{self.anomalies:,} anomalous test images, of which it finds {100 * self.found:.3g} %: figures at it "
            "flatter."
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OperatingPoint":
        """The point of what `dataclasses.asdict` gave.

        Raises:
            KeyError, TypeError, ValueError, UserError: a field is missing or impossible.
        """
        fpr, found = float(values["fpr"]), float(values["found"])
        if not (0 < fpr < 1 and 0 <= found <= 1):
            raise ValueError("its rates do not lie between 0 and 1")
        costs = Costs(**{name: float(value) for name, value in values["costs"].items()})
        weights, calibration = str(values["weights_sha256"]), str(values["calibration_sha256"])
        return cls(fpr, costs, found, int(values["anomalies"]), weights, calibration)


def load_operating_point(folder: Path, weights_sha256: str) -> OperatingPoint | None:
    """Read the operating point of a student folder; None if none is kept.

    Raises:
        UserError: the file is damaged, or belongs to other weights than those named.
    """
    file = Path(folder) / OPERATING_POINT
    if not file.is_file():
        return None
    remedy = f"set it anew by costs, or remove it: `kdad threshold {folder} --clear`"
    try:
        point = OperatingPoint.from_dict(read_sealed(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); {remedy}") from None
    if point.weights_sha256 != weights_sha256:
        raise UserError(f"{file} belongs to other weights; {remedy}")
    return point


def save_operating_point(folder: Path, point: OperatingPoint) -> None:
    """Write operating_point.json."""
    write_json(Path(folder) / OPERATING_POINT, sealed(asdict(point)))


def remove_operating_point(folder: Path) -> None:
    """Remove operating_point.json, if there is one."""
    (Path(folder) / OPERATING_POINT).unlink(missing_ok=True)
