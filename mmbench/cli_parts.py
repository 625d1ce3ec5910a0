"""Verbs that come in groups: `data`, `backbone` and `new`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mmbench.cli_common import (
    FAILED,
    DeviceOption,
    OutOption,
    PluginOption,
    QuietOption,
    SetOption,
    guarded,
    use_plugins,
)

SuiteOrFolder = Annotated[Path, typer.Argument(help="A suite file, or a folder of pairs.")]
Subject = Annotated[Path, typer.Argument(help="A suite, a folder of pairs, or a data set that needs no files.")]

data_app = typer.Typer(help="Read data sets into stores.", no_args_is_help=True)
backbone_app = typer.Typer(help="Pre-train, fine-tune, import and inspect source models.", no_args_is_help=True)
new_app = typer.Typer(help="Write skeletons.", no_args_is_help=True)


@data_app.command("prepare")
@guarded
def data_prepare(
    suite: SuiteOrFolder, overrides: SetOption = None, plugin: PluginOption = None, quiet: QuietOption = False
) -> None:
    """Read every data set of a suite into its store, ahead of a run."""
    use_plugins(plugin)
    from mmbench.runner import prepare_command

    prepare_command(suite, tuple(overrides or ()), quiet)


@data_app.command("check")
@guarded
def data_check(suite: SuiteOrFolder, overrides: SetOption = None, plugin: PluginOption = None) -> None:
    """Verify the checksums of a suite's stores and describe the splits."""
    use_plugins(plugin)
    from mmbench.runner import check_command

    check_command(suite, tuple(overrides or ()))


@data_app.command("corrupt")
@guarded
def data_corrupt(
    suite: Subject,
    cases: Annotated[list[str] | None, typer.Option(help="A case, a set of cases, read/rain@1-5; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write, or to go on with.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell sizes and digests, write nothing.")] = False,
    check: Annotated[Path | None, typer.Option(help="Check the sets of this folder: bytes, and corrupt again.")] = None,
    overrides: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write the corrupted test sets of a suite once, for a suite's `frozen:` to read on any machine."""
    use_plugins(plugin)
    from mmbench.freeze_verb import FreezeRequest, freeze_command

    freeze_command(FreezeRequest(suite, tuple(cases or ()), out, dry_run, check, tuple(overrides or ())))


@data_app.command("extract")
@guarded
def data_extract(
    what: Annotated[Path, typer.Argument(help="A csv or json of clips, or a folder of videos by class.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or to go on with.")],
    videos: Annotated[Path | None, typer.Option(help="Folder of the listed videos.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Label csv of a checkpoint; the list's labels unless given.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=1000, help="Pictures a clip.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Longest clip.")] = 10.0,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the pictures, in pixels.")] = 224,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless given.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which a clip is given up.")] = 120.0,
    verify: Annotated[bool, typer.Option("--verify", help="Read what is finished again, byte for byte.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Take pictures and sound out of videos, for a suite's `cavmae-manifest`; the same command goes on."""
    from mmbench.data.extract_ledger import Settings
    from mmbench.extract_verb import ExtractRequest, extract_command

    settings = Settings(frames, seconds, size)
    if not extract_command(ExtractRequest(what, out, settings, videos, labels, workers, limit, verify), quiet):
        raise typer.Exit(FAILED)


@backbone_app.command("build")
@guarded
def backbone_build(
    suite: Path,
    out: OutOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune the source models of a suite on their clean data (into the cache, or into --out)."""
    from mmbench.backbones import build_command

    build_command(suite, out, tuple(overrides or ()), device, quiet)


def _training_verb(kind: str) -> Callable[..., None]:
    def verb(
        what: Subject,
        out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; the same command goes on in it.")],
        init: Annotated[Path | None, typer.Option(help="A pre-trained model to start from; else random.")] = None,
        recipe: Annotated[str | None, typer.Option(help="A published one, or tiny; else what fits the preset.")] = None,
        epochs: Annotated[int | None, typer.Option(help="This and the next ones: the recipe's unless given.")] = None,
        batch_size: Annotated[int | None, typer.Option(help="Of one step, of all processes together.")] = None,
        lr: float | None = None,
        seed: int | None = None,
        precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
        option: Annotated[list[str] | None, typer.Option(help="Another key of the recipe: contrast_weight=0.1")] = None,
        preset: Annotated[str | None, typer.Option(help="The suite's backbone unless given.")] = None,
        overrides: SetOption = None,
        device: DeviceOption = None,
        quiet: QuietOption = False,
    ) -> None:
        from mmbench.backbone_training import verb as verbs

        named = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "precision": precision}
        changes = (*(f"{key}={value}" for key, value in named.items() if value is not None), *(option or ()))
        request = verbs.TrainRequest(what, out, init, recipe, changes, preset, device, tuple(overrides or ()), quiet)
        getattr(verbs, f"{kind}_command")(request)

    return guarded(verb)


PRETRAIN_HELP = "Pre-train a backbone without labels: masked reconstruction and contrast. Runs under torchrun, too."
FINETUNE_HELP = "Fine-tune a backbone by CAV-MAE's recipe, for a suite's `path:`. Runs under torchrun, too."
backbone_app.command("pretrain", help=PRETRAIN_HELP)(_training_verb("pretrain"))
backbone_app.command("finetune", help=FINETUNE_HELP)(_training_verb("finetune"))


@backbone_app.command("import")
@guarded
def backbone_import(
    checkpoint: Annotated[Path, typer.Argument(help="An official fine-tuned CAV-MAE checkpoint (.pth).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    classes: Annotated[int | None, typer.Option(min=2, help="Classes of its head; read from it unless given.")] = None,
    backbone: Annotated[str, typer.Option(help="A preset of the checkpoint's size.")] = "cavmae-base",
) -> None:
    """Turn an official checkpoint into a backbone folder."""
    from mmbench.backbones import import_command

    import_command(checkpoint, out, classes, backbone)


@backbone_app.command("info")
@guarded
def backbone_info(path: Annotated[Path, typer.Argument(help="A backbone folder or an official checkpoint.")]) -> None:
    """Describe a backbone folder or a checkpoint."""
    from mmbench.backbones import info_command

    info_command(path)


@new_app.command("method")
@guarded
def new_method(name: str, out: Annotated[Path, typer.Option("--out", "-o")] = Path()) -> None:
    """Write the skeleton of a method: a file that runs as it is, for --plugin or for methods/."""
    from mmbench.scaffold import write_method

    typer.echo(str(write_method(name, out)))
