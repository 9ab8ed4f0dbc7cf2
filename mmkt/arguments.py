"""What can be typed: the commands, their arguments and options."""

from __future__ import annotations

import argparse
from typing import Any

from mmkt import __version__
from mmkt.parts import ROOMS


def parser() -> argparse.ArgumentParser:
    """All commands; ``command`` is the name of the function in ``mmkt.cli`` that runs one."""
    top = argparse.ArgumentParser("mmkt", description="Multimodal knowledge transfer.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: str, about: str, under: Any = commands, json_too: bool = True) -> argparse.ArgumentParser:
        made = under.add_parser(name, help=about, description=about)
        made.set_defaults(command=run)
        if json_too:
            made.add_argument(
                "--json", action="store_true", help="one JSON object on standard output, all else on standard error"
            )
        return made

    one = command("train", "train", "train an experiment, evaluate its best checkpoint")
    one.add_argument("config", help="an experiment file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as model.fusion=gated train.lr=3e-4")
    one.add_argument("--resume", action="store_true", help="continue the run in its folder, from its last save (or its start)")
    one.add_argument("--max-time", metavar="3h30m", help="stop in good order after this time, with exit status 75")
    one.add_argument("--dry-run", action="store_true", help="say what would happen: shapes, parameters, memory, time")
    one = command("find-lr", "find_lr", "raise the learning rate step by step on training batches, and suggest one")
    one.add_argument("config", help="an experiment file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as train.optimizer=sgd")
    one.add_argument("--from", dest="low", type=float, default=1e-6, help="the first rate (1e-6)")
    one.add_argument("--to", dest="high", type=float, default=1.0, help="the last rate (1)")
    one.add_argument("--steps", type=int, default=100, help="how many (100)")
    one.add_argument("--phase", help="of the transfer strategy; by default its last one")
    one.add_argument("--out", default="checkpoints/find-lr", help="the folder it writes (checkpoints/find-lr)")
    one = command("evaluate", "evaluate", "evaluate a checkpoint")
    one.add_argument("checkpoint", help="its folder, or a Hub id")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of data.… and evaluate.…, such as data.batch_size=1")
    one.add_argument("--out", help="where to write; by default evaluation-SPLIT in the checkpoint's folder")
    one.add_argument("--robustness", action="store_true", help="under attack too: the usual ones, or as evaluate.robustness says")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that its parts may come from")
    one = command("calibrate", "calibrate", "fit a temperature and prediction sets on validation; the checkpoint keeps them")
    one.add_argument("checkpoint", help="its folder")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of data.…, such as data.validation=holdout")
    one.add_argument("--coverage", type=float, default=0.9, help="how often a set should hold the true class (0.9)")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that its parts may come from")
    one = command("compare", "compare", "checkpoints on the same rows, each with the first: is the difference more than chance?")
    one.add_argument("paths", nargs="+", metavar="PATH", help="two runs, checkpoints or folders of evaluations, or more")
    one.add_argument("--split", default="test", help="of the evaluations (test)")
    one.add_argument("--metric", nargs="+", default=[], metavar="TASK/METRIC", help="by default each task's first one")
    one.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap and of the permutation test (10000)")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that metrics may come from")
    one = command("ensemble", "ensemble", "evaluate separately trained checkpoints that answer together")
    one.add_argument("checkpoints", nargs="+", help="two folders or Hub ids or more; settings of data.… and evaluate.… too")
    one.add_argument("--out", default="checkpoints/ensemble", help="where to write (checkpoints/ensemble)")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that their parts may come from")
    one = command("average", "average", "average checkpoints' weights into one: a soup, or with the model at its start")
    one.add_argument("checkpoints", nargs="+", help="folders or Hub ids of one model; settings of data.… too")
    one.add_argument("--out", required=True, help="the folder it writes, which must not be there")
    one.add_argument("--greedy", action="store_true", help="take only those that make the average no worse on validation")
    one.add_argument(
        "--with-start",
        nargs="*",
        type=float,
        metavar="ALPHA",
        help="average with the model as it was before training, ALPHA of the trained; by default the best of 0, 0.1 … 1",
    )
    one.add_argument("--metric", metavar="TASK/METRIC", help="by default what the first one was chosen by")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that their parts may come from")
    one = command("embed", "embed", "a manifest's rows as vectors: each modality in the shared space, and fused")
    one.add_argument("checkpoint", help="its folder, or a Hub id")
    one.add_argument("manifest", help="the rows; labels are not needed")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of data.…, such as data.columns.image=photo")
    one.add_argument("--out", help="a Parquet file; by default embeddings-MANIFEST.parquet in the checkpoint's folder")
    one.add_argument("--normalize", action="store_true", help="scale every vector to length 1")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that its parts may come from")
    one = command("folds", "folds", "cross-validate: train an experiment once a fold, each in RUN/fold-NAME")
    one.add_argument("config", help="an experiment file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as data.fold.validation=0.2")
    one.add_argument("--by", default="group", help="the column whose values are the folds; with --k, what stays together")
    one.add_argument("--k", type=int, help="make this many folds")
    one = command("transfer", "transfer", "a transfer study: sources, methods, learning rates, seeds, and what came of it")
    one.add_argument("study", help="a study file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of the study, such as run=checkpoints/mine")
    one.add_argument("--jobs", type=int, default=1, help="trainings at once; several GPUs are shared out")
    one.add_argument("--part", default="1/1", metavar="I/N", help="train every N-th cell alone, for N machines with one folder")
    one.add_argument("--report", action="store_true", help="train nothing: report what has ended")
    one = command(
        "ablate", "ablate", "an ablation: the same training with fusions (or any settings) exchanged, and what came of it"
    )
    one.add_argument("study", help="a study file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of the study, such as run=checkpoints/mine seeds=[0,1]")
    one.add_argument("--jobs", type=int, default=1, help="trainings at once; several GPUs are shared out")
    one.add_argument("--part", default="1/1", metavar="I/N", help="train every N-th cell alone, for N machines with one folder")
    one.add_argument("--report", action="store_true", help="train nothing: report what has ended")
    one.add_argument("--latex", action="store_true", help="the tables as LaTeX too (report.tex)")
    one = command("cache", "cache", "features of frozen encoders that runs share (data.features): list them, or clear")
    one.add_argument("folder", nargs="?", default="checkpoints/features", help="(checkpoints/features)")
    one.add_argument("--clear", nargs="*", metavar="KEY", help="remove these, or all")
    one = command("search", "search", "search for the settings with which an experiment does best on validation")
    one.add_argument("search", help="a search file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of the search, such as trials=50 run=checkpoints/mine")
    one.add_argument("--report", action="store_true", help="train nothing: report what has ended")
    one = command("verify-resume", "verify_resume", "kill and resume a short training: is it the same to the bit? exit 1 if not")
    one.add_argument("config", help="an experiment file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as train.accumulate=2 data.workers=2")
    one.add_argument("--kills", type=int, default=1, help="one in the middle (1), or several at moments of every kind")
    one.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    one.add_argument("--processes", type=int, default=1, help="of each training (1)")
    one.add_argument("--steps", type=int, default=12, help="of each training (12)")
    one.add_argument("--out", help="a folder for the runs; by default RUN-verify")
    one = command("transferability", "transferability", "rank a study's sources by their frozen features, without training")
    one.add_argument("study", help="a study file (YAML)")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="of the study, such as run=checkpoints/mine")
    one.add_argument("--method", help="of the study, whose trainings' figures are compared with (its first)")
    one.add_argument("--rows", type=int, default=2000, help="of the training split at the most (2000)")
    one.add_argument("--modality", help="whose encoder is the candidate; by default the only one")
    one = command("tokenizer", "tokenizer", "learn a tokenizer from a manifest's texts, for a small text body in any language")
    one.add_argument("manifest")
    one.add_argument("--out", required=True, help="the folder it writes: model.encoders.text.model=FOLDER, weights: random")
    one.add_argument("--column", default="text", help="of the texts")
    one.add_argument("--splits", nargs="+", default=["train"], help="that are read")
    for name, value, words in (
        ("vocabulary", 8000, "tokens at the most"),
        ("layers", 2, "of the body"),
        ("width", 256, "of the body"),
        ("heads", 4, "attention heads a layer"),
        ("max-tokens", 128, "of a text"),
    ):
        one.add_argument(f"--{name}", type=int, default=value, help=f"{words} ({value})")
    one = command("convert", "convert", "a checkpoint as another: adapters merged, or without what original models bring")
    one.add_argument("checkpoint", help="its folder, or a Hub id")
    one.add_argument("out", help="the folder it writes, which must not be there")
    one.add_argument("--merge", action="store_true", help="work the adapters into the bodies' own weights")
    one.add_argument("--delta", action="store_true", help="leave out what the original models and the seed give again")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that its parts may come from")
    one = command("predict", "predict", "answer for one row: mmkt predict CHECKPOINT --text … --image … --audio …")
    one.add_argument("checkpoint", help="its folder, or a Hub id")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that its parts may come from")
    one = command("list", "list_parts", "the parts of a room, or all rooms")
    one.add_argument("room", nargs="?", help=", ".join(ROOMS))
    one.add_argument("part", nargs="?", help="one of them: what it does, its facts and settings")
    one = command("check-part", "check_part", "hold a fusion to what every fusion must do; exit 1 where it breaks a point")
    one.add_argument("room", choices=["fusion"], help="fusion")
    one.add_argument("name", help="its name, or my_lab.NAME of the folder or package my_lab")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="its settings")
    one.add_argument("--plugins", nargs="+", default=[], help="folders or packages that it may come from")
    command("schema", "schema", "JSON schema of experiment files, for editors", json_too=False)
    one = command("push", "push", "upload a checkpoint with its card to the Hugging Face Hub")
    one.add_argument("checkpoint", help="its folder, such as RUN/best")
    one.add_argument("name", help="of the repository: owner/name")
    one.add_argument("--private", action="store_true", help="make the repository private")
    one = command("runs", "runs", "an index of runs: state, figures, the settings in which they differ")
    one.add_argument("folder", nargs="?", default="checkpoints")
    one = command("doctor", "doctor", "whether this machine can run mmkt; exit 1 where something keeps it from working")
    one.add_argument("folder", nargs="?", default="checkpoints", help="where runs are written")
    data = commands.add_parser("data", help="prepare and check data").add_subparsers(required=True, metavar="COMMAND")
    one = command("prepare", "prepare", "make a source's manifest", data)
    one.add_argument("source", help="see mmkt list data/sources")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="the source's settings")
    one.add_argument("--from", dest="origin", help="the folder it reads")
    one.add_argument("--out", help="the folder it writes; by default data/SOURCE")
    one = command("check", "check_data", "counts, balance, missing modalities, unreadable files, duplicates across splits", data)
    one.add_argument("manifest")
    one.add_argument("--labels", nargs="*", default=[], help="label columns")
    one.add_argument("--no-content", action="store_true", help="open no media")
    return top
