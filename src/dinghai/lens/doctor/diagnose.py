"""All checks of the doctor, and what they find in a run."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check
from dinghai.lens.doctor.checks import (
    bounds,
    course,
    duplicates,
    entropy,
    entropy_bounds,
    first_update,
    kl_tokens,
    lengths,
    noise_floor,
    relapse,
    rewards,
    signal,
    steps,
)
from dinghai.lens.doctor.finding import Finding

MODULES: tuple[ModuleType, ...] = (
    bounds,
    course,
    duplicates,
    entropy,
    entropy_bounds,
    first_update,
    kl_tokens,
    lengths,
    noise_floor,
    relapse,
    rewards,
    signal,
    steps,
)
"""The modules of `checks/`; each has its `CHECKS`."""

CHECKS: tuple[Check, ...] = tuple(check for module in MODULES for check in module.CHECKS)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, by how many checks, and which of them failed."""

    findings: list[Finding]  # the gravest first; of one grade that first which concerns the larger share
    looked: list[Check]
    failed: list[tuple[Check, Exception]]

    @property
    def notes(self) -> list[str]:
        """A sentence for each check that failed."""
        return [f"the check {check.name} failed: {type(error).__name__}: {error}" for check, error in self.failed]


def examine(case: Case, early: bool = False) -> Diagnosis:
    """Lets every check look at a run. One that fails does not take the others with it.

    early: while the run trains; then only checks look whose word holds after a few steps.
    """
    looked = [check for check in CHECKS if check.early or not early]
    findings: list[Finding] = []
    failed: list[tuple[Check, Exception]] = []
    for check in looked:
        try:
            finding = check.look(case)
        except Exception as error:
            failed.append((check, error))
            continue
        if finding is not None:
            findings.append(finding)
    findings.sort(key=lambda finding: (-finding.grade, -finding.share))
    return Diagnosis(findings, looked, failed)


def diagnose(case: Case, early: bool = False) -> list[Finding]:
    """As `examine`, for who wants to hear of a check that fails: its error is raised."""
    diagnosis = examine(case, early)
    for _, error in diagnosis.failed:
        raise error
    return diagnosis.findings
