"""Parameters that several commands share: one type and one help text each.

The commands are functions, and the shell's options are made from their parameters; defaults stay
with the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

Model = Annotated[str, Doc("Folder, GGUF file, hub id, or 'embedded' (SmolLM2-135M).")]
Train = Annotated[Path, Doc("Private records: JSONL, CSV, TSV, Parquet or a datasets folder.")]
Output = Annotated[Path, Doc("Run folder to make.")]
ValidationIsPublic = Annotated[bool, Doc("Declare that the validation records are public.")]
Epsilon = Annotated[float | None, Doc("dp: target, in nats.")]
Delta = Annotated[
    float | None, Doc("dp: default: 1 / (10 N^1.1) for N units, rounded down to one digit.")
]
Unit = Annotated[
    str, Doc("dp: who is protected: record, or the column that names whose record it is.")
]
Adjacency = Annotated[Literal["add-remove", "replace"], Doc("dp: which data sets are neighbors.")]
MaxRecordsPerUnit = Annotated[
    int, Doc("dp with a column as --unit: most records of a unit in one step.")
]
AllowLargeDelta = Annotated[bool, Doc("dp: allow a delta of 1 / (10 x units) or more.")]
Edgeworth = Annotated[
    bool, Doc("dp: a third opinion on epsilon in the certificate, where it has one.")
]
LearningRateSchedule = Annotated[
    Literal["linear", "constant", "cosine"], Doc("Public decay of the learning rate.")
]
WarmupSteps = Annotated[
    int, Doc("First steps in which the learning rate rises, before the schedule begins.")
]
WeightDecay = Annotated[float, Doc("Decoupled weight decay.")]
Adapter = Annotated[Literal["lora", "full"], Doc("Train an adapter or all weights.")]
LoraRank = Annotated[int, Doc("Rank of the adapter.")]
LoraAlpha = Annotated[float, Doc("Scale of the adapter: alpha / rank.")]
LoraTargets = Annotated[list[str] | None, Doc("Linear layers to adapt; default: query and value.")]
LoraFirstLayer = Annotated[
    int, Doc("First block to adapt; later blocks only cost less to differentiate.")
]
LoraFactors = Annotated[
    Literal["b", "both"], Doc("Train B alone (A stays public and random), or both.")
]
Template = Annotated[str, Doc("Prompt of a classification.")]
Verbalizer = Annotated[
    list[str] | None, Doc("LABEL=WORD, once a label; default for two sentiment labels.")
]
MaxLength = Annotated[int | None, Doc("Longest record in tokens; default: the model's.")]
Truncate = Annotated[bool, Doc("Cut the beginning of records that are too long.")]
Seed = Annotated[int, Doc("Public seed of directions, candidates and adapter.")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Doc("Compute type.")]
Device = Annotated[str, Doc("auto, cpu, cuda or cuda:N.")]
TokensPerBatch = Annotated[int, Doc("Tokens a forward pass, padding included.")]
Retain = Annotated[
    Path | None,
    Doc(
        "With --optimizer and an adapter: public prompts and completions on which the model is "
        "held to its base, so that it forgets less."
    ),
]
RetainIsPublic = Annotated[bool, Doc("Declare that the texts of --retain are public.")]
RetainWeight = Annotated[
    float, Doc("Of a retained text's divergence from the base against a record's loss.")
]
RetainPerStep = Annotated[int, Doc("Retained texts a step; more cost time, not weight.")]
EvaluateEvery = Annotated[int | None, Doc("Steps between scores on --validation.")]
Resume = Annotated[bool, Doc("Continue an interrupted run; repeat its other settings.")]
