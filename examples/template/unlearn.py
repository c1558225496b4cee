"""The one script that a project adds: it serves a request on the record that train.py left.

    python examples/template/unlearn.py callbacks=sisa forget_file=rows.txt

Rows come from a file, since Hydra writes its overrides to disk. The same configuration builds the same trainer,
and what `fit` was given `unlearn` is given.
"""

from pathlib import Path

import hydra
from train import build


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config):
    data, model, trainer = build(config)
    rows = [int(line) for line in Path(config.forget_file).read_text().split()]
    result = trainer.unlearn(rows=rows, model=model, datamodule=data)
    cost = result.cost
    print(type(result.guarantee).__name__, f"{cost.stages_rebuilt} of {cost.stages} stages", *result.notes, sep="; ")
    trainer.test(model, datamodule=data)


if __name__ == "__main__":
    main()
