"""Run by a launcher in two processes: equips a tiny model as `test_equip` does in one."""

import json
import sys
from pathlib import Path

import torch
from test_equip import run_of, small_stages
from trainings import deepspeed_settings

from hiermem.ending import end
from hiermem.training.equip import equip


def main(model: Path, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    settings = folder / "ds.json"
    settings.write_text(json.dumps(deepspeed_settings(2)), "utf-8")  # both write the same
    equip(small_stages(), run_of(model, data, folder / "out", settings))


if __name__ == "__main__":
    main(*map(Path, sys.argv[-3:]))
    end(0)
