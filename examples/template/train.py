"""A project in the shape that many Lightning projects have: Hydra builds data, model, callbacks, logger and trainer.

    python examples/template/train.py                  # as it was before
    python examples/template/train.py callbacks=sisa   # forgettable: one more entry in the callbacks

Without the file configs/callbacks/sisa.yaml the same entry can be made on the command line:

    python examples/template/train.py '+callbacks.sisa={_target_: pybrush_lightning.SISA, shards: 3, record: logs/r}'

tour.py trains, forgets and checks; unlearn.py is all that a project adds for requests.
"""

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf


def build(config):
    """Return data module, module and trainer as the configuration has them."""
    torch.set_num_threads(1)  # more of them only wait for each other in networks as small as this
    L.seed_everything(config.seed, workers=True)
    data = instantiate(config.data)
    model = instantiate(config.model)
    callbacks = [instantiate(entry) for entry in config.callbacks.values()]
    loggers = [instantiate(entry) for entry in config.logger.values()]
    return data, model, instantiate(config.trainer, callbacks=callbacks, logger=loggers)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config):
    data, model, trainer = build(config)
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    trainer.fit(model, datamodule=data)
    if config.test:
        trainer.test(model, datamodule=data)  # the model and no ckpt_path: all shards together answer


if __name__ == "__main__":
    main()
