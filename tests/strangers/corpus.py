"""All hostile files by name."""

from __future__ import annotations

from tests.strangers import array_cases, cifar_cases, folder_cases, own_cases, torch_cases

CASES = {
    case.name: case
    for cases in (
        own_cases.CASES,
        torch_cases.CASES,
        cifar_cases.CASES,
        array_cases.CASES,
        folder_cases.CASES,
    )
    for case in cases
}
