"""What the files of a run tell, ours or open_clip's, in one form."""

from __future__ import annotations

import ast
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfast.errors import UserError
from clipfast.eval.results import FILE_NAME as RESULTS
from clipfast.report import open_clip_run
from clipfast.report.evaluation import FOLDER, Evaluation, has_evaluation, read_evaluation
from clipfast.train.flags.parsing import parse_args
from clipfast.train.monitoring import examples, history


@dataclass
class Setting:
    """A flag's value, and whether it is its default."""

    name: str
    value: str
    default: str
    changed: bool


@dataclass
class RunData:
    """Attributes:
    name: the folder's.
    folder: the run's, or the evaluation's.
    is_run: False for an evaluation alone.
    history: as `History` writes it; of open_clip's runs, what there is of it.
    settings: of params.txt.
    faults: {"shard", "offset", "key", "reason"} each.
    examples: {"file", "caption", …} each, whose files are there.
    evaluation: by `clipfast eval`.
    """

    name: str
    folder: Path
    history: history.Recorded = field(default_factory=history.Recorded)
    is_run: bool = True
    settings: list[Setting] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    evaluation: Evaluation | None = None


def read_run(folder: Path) -> RunData:
    """Reads the folder of a run, with the evaluation in it, or that of an evaluation.

    Raises:
        UserError: it does not exist, or holds neither.
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folder of a run, logs/NAME; there is none")
    if not any((folder / name).exists() for name in (history.FILE_NAME, "out.log", "tensorboard")):
        if has_evaluation(folder):
            name = folder.resolve().name
            return RunData(name, folder, is_run=False, evaluation=read_evaluation(folder))
        raise UserError(
            f"{folder}: expected a run's {history.FILE_NAME}, out.log or tensorboard, or an "
            f"evaluation's {RESULTS}; got none of them"
        )
    evaluated = folder / FOLDER
    if (folder / history.FILE_NAME).exists():
        recorded = history.read_history(folder / history.FILE_NAME)
    else:
        recorded = open_clip_run.read(folder)
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        history=recorded,
        settings=_settings(folder / "params.txt"),
        faults=[
            fault for path in sorted(folder.glob("quarantine*.jsonl")) for fault in _lines(path)
        ],
        examples=_examples(folder / "examples"),
        evaluation=read_evaluation(evaluated) if has_evaluation(evaluated) else None,
    )


def _settings(path: Path) -> list[Setting]:
    """Those that differ from their defaults come first."""
    if not path.exists():
        return []
    pairs = (line.partition(": ") for line in path.read_text().splitlines() if ": " in line)
    values = {name: value for name, _, value in pairs}
    defaults = _defaults(values.get("model", ""))
    settings = []
    for name, value in values.items():
        default = defaults.get(name)
        changed = name in defaults and _plain(value) != _plain(default)
        settings.append(Setting(name, value, str(default), changed))
    return sorted(settings, key=lambda setting: not setting.changed)


def _defaults(model: str) -> dict[str, Any]:
    """Of every flag; those of the optimizer depend on the model's name."""
    named = ["--model", model] if model else []
    try:
        args = parse_args(["--train-data", "any", *named])
    except UserError:
        return {}
    return vars(args) | {"train_data": None, "model": "RN50"}


def _plain(value: Any) -> Any:
    """The same for 0.2 and "0.2", for 5e-4 and "0.0005"."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(str(value))
    return str(value)


def _examples(folder: Path) -> list[dict[str, Any]]:
    path = folder / examples.LIST
    if not path.exists():
        return []
    with contextlib.suppress(ValueError):
        return [e for e in json.loads(path.read_text()) if (folder / e["file"]).is_file()]
    return []


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
