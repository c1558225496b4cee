"""`python script.py unlearn ...` for a project that trains by LightningCLI.

    from pybrush_lightning.cli import UnlearnCLI

    UnlearnCLI(MyModule, MyData)  # in place of LightningCLI

    python script.py fit --trainer.callbacks+=SISA --trainer.callbacks.shards=4 --trainer.callbacks.record=records/r
    python script.py unlearn --config lightning_logs/version_0/config.yaml --forget_file ids.txt

Not imported with the package, since jsonargparse is optional. Guide: docs/pitfalls.md, "LightningCLI".
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.cli import LightningCLI

from pybrush import forget_file, tables
from pybrush.errors import ConfigurationError, ForgetError, MissingExtraError
from pybrush.result import UnlearnResult
from pybrush.settings import check_page
from pybrush_lightning.serving import record_of, sisa_of
from pybrush_lightning.unlearn import unlearn

for _package, _module in (("jsonargparse[signatures]", "jsonargparse"), ("rich", "rich")):
    if importlib.util.find_spec(_module) is None:
        raise MissingExtraError(f"UnlearnCLI needs {_package}, which is not installed: pip install '{_package}'.")

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

    Base = LightningCLI
else:
    Base = object

_TAKEN = ("rows", "missing", "before", "queued", "guarantee", "method", "duplicates", "purge", "dry_run")
"""Arguments of `trainer.unlearn` that a command line may hold; ids and persons come from a file."""

_SKIPPED = set(inspect.signature(unlearn).parameters) - set(_TAKEN)


class Unlearning(Base):
    """What `UnlearnCLI` adds to a LightningCLI, to be mixed into that of `pytorch_lightning` too.

    Attributes:
        result: what the request returned, once `unlearn` has run.

    Example:
        >>> import pytorch_lightning.cli  # doctest: +SKIP
        >>> class CLI(Unlearning, pytorch_lightning.cli.LightningCLI): ...  # doctest: +SKIP
    """

    result: UnlearnResult | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands and `unlearn`, each with the arguments that are no options."""
        return {**LightningCLI.subcommands(), "unlearn": _SKIPPED}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Set up the parser, with options for what is to be forgotten."""
        if isinstance(self.trainer_class, type) and not hasattr(self.trainer_class, "unlearn"):
            raise ConfigurationError(
                "PYBRUSH_NO_PATCH leaves Lightning's Trainer without unlearn; pass "
                "trainer_class=pybrush_lightning.Trainer to UnlearnCLI."
            )
        options = {**subparser_kwargs.get("unlearn", {}), "forgets": True}
        super().setup_parser(add_subcommands, main_kwargs, {**subparser_kwargs, "unlearn": options})

    def init_parser(self, forgets: bool = False, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser; that of `unlearn` takes a forget file and a page besides."""
        parser = super().init_parser(**kwargs)
        if forgets:
            _add_options(parser)
        return parser

    def before_instantiate_classes(self) -> None:
        """Keep out of the log folder what no request erases there.

        Of a request nothing is written, since rows may tell persons; a fit is refused whose configuration, which
        is written, holds ids or the secret key.

        Raises:
            ConfigurationError: naming what must not be in the configuration.
        """
        super().before_instantiate_classes()
        if self.subcommand == "unlearn":
            self.save_config_callback = None
        if self.save_config_callback is not None:
            _check_written(self.config[self.subcommand] if self.subcommand else self.config)

    def unlearn(self, model: Any, datamodule: Any = None, **asked: Any) -> UnlearnResult:
        """Serve the request, and show and keep its result."""
        given = self.config_init["unlearn"]
        if given.ckpt_path is not None:
            raise ForgetError("a request starts from its record and from no checkpoint; leave ckpt_path out.")
        ways = (given.forget_file, asked["rows"], asked["before"], asked["missing"] or None, asked["queued"] or None)
        if sum(way is not None for way in ways) != 1:
            raise ForgetError(
                "say in one way what to forget: --forget_file FILE, --rows '[3, 17]', --before 2026-01-31, --missing "
                "true or --queued true."
            )
        check_page(given.report)
        if given.forget_file is not None:
            asked |= self._named(Path(given.forget_file).expanduser(), given.forget_kind, given.forget_type)
        self.result = unlearn(self.trainer, model=model, datamodule=datamodule, **asked)
        tables.show_result(self.result)
        if given.report is not None:
            tables.show_line(f"report: {self.result.report(Path(given.report).expanduser())}")
        return self.result

    def _named(self, path: Path, kind: str, type_: str) -> dict[str, Any]:
        """Return the keyword argument of `unlearn` that a forget file stands for."""
        lines = forget_file.entries(path)
        return forget_file.named(record_of(sisa_of(self.trainer)), kind, type_, lines)


class UnlearnCLI(Unlearning, LightningCLI):
    """A LightningCLI with the subcommand `unlearn`; everything else is Lightning's."""


def _check_written(config: Any) -> None:
    """Refuse a configuration in which the arguments of SISA list ids or hold the key."""
    callbacks = config.trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        given = callback.get("init_args") or {}
        for name in ("ids", "subjects", "times", "key"):
            value = given.get(name)
            if callback.class_path.endswith(".SISA") and (isinstance(value, list) or (name == "key" and value)):
                raise ConfigurationError(
                    f"{name} of SISA would be written into the log folder with the rest of the configuration, where no "
                    "request erases it. Name a column of the data set instead, and leave key to its file."
                )


def _add_options(parser: LightningArgumentParser) -> None:
    group = parser.add_argument_group("what is to be forgotten")
    group.add_argument("--forget_file", type=str | None, default=None, help="text file, one entry a line")
    group.add_argument(
        "--forget_kind", type=Literal["ids", "subjects", "rows"], default="ids", help="what an entry of it names"
    )
    group.add_argument(
        "--forget_type", type=Literal["auto", "int", "str"], default="auto", help="type of its ids or subjects"
    )
    group.add_argument("--report", type=str | None, default=None, help="HTML page to write the result to")
    # A configuration that `fit` left has these two.
    for name in ("--ckpt_path", "--weights_only"):
        group.add_argument(name, type=Any, default=None, help="must be null: a request starts from its record")
