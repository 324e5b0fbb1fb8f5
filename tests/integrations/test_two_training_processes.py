"""Data-parallel training of two processes: the first one measures, and neither trains otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hvp_engine

PROGRAM = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from trainings import OPTIONS, train

rank, store = int(sys.argv[1]), torch.distributed.FileStore(sys.argv[2], 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
measured = train({**OPTIONS, "every": 4, "out": "spectra"}, wrap=DistributedDataParallel)
print(measured.same(train(None, wrap=DistributedDataParallel)), list(measured.logger.history))
torch.distributed.destroy_process_group()
"""


def test_the_first_of_two_processes_measures_and_both_train_as_before(tmp_path: Path) -> None:
    places = [Path(hvp_engine.__file__).parents[1], Path(__file__).parent, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert said == ["True [0, 4]", "True []"]
    assert sorted(path.name for path in Path("spectra").iterdir()) == ["step-000000", "step-000004"]
