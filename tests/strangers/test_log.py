"""Going on with the log of a run in a folder that somebody else may have filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from iadd_fast.metrics import MetricsLog

ROWS = '{"iteration": 0, "loss": 2.0}\n{"iteration": 1, "loss": 1.0}\n{"iteration": 2}\n'


@pytest.mark.parametrize(
    "content",
    ['{"a": 1}', "[1]\n", "7", "[" * 100_000, '{"iteration": 0}\nnonsense\n{"iteration": 1}\n'],
)
def test_a_damaged_log_is_refused_and_left(tmp_path: Path, content: str) -> None:
    """Breaks if it ends in a KeyError, TypeError or RecursionError, or is overwritten."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line \d: .*remove the file or give"):
        MetricsLog(tmp_path, 1)
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("torn", ["", '{"iter', '{"iteration": 3, "layer_weight": {"a": 1}'])
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, torn: str) -> None:
    """Breaks if a killed run cannot go on, or lines before or past its checkpoint are mixed up."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(ROWS + torn)
    with MetricsLog(tmp_path, 2) as log:
        log.write({"iteration": 2, "loss": 0.5})
    kept = ROWS.splitlines(keepends=True)[:2]
    assert path.read_text() == "".join(kept) + '{"iteration": 2, "loss": 0.5}\n'


def test_a_link_is_no_folder_for_tensorboard(tmp_path: Path) -> None:
    """Breaks if events are written into the folder that a link in a run's folder leads to."""
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="tensorboard: is a link to"):
        MetricsLog(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
