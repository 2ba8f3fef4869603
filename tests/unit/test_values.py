"""Values between steps: each type's JSON, and what is refused of it."""

import dataclasses
import json
from typing import Any

import pytest

from medsam_core.base.config import StageConfig
from pipelines.base.values import (
    CacheRef,
    PartsMade,
    StorePartsMade,
    StoreRef,
    TeacherRef,
    TrainerJob,
    from_json,
    to_json,
)
from storage.base.errors import IntegrityError
from storage.base.references import ArtefactRef

RELEASE = ArtefactRef("release", "r" * 64, {"fingerprints": {"train": "t"}, "leaks": []}, reused=True)
PLAN = ArtefactRef("plan", "p" * 64, {"steps": 220}, reused=False)
TEACHER = TeacherRef("model", "e" * 64, {"sha256": "5"}, reused=True, teacher="stand_in")
CACHE = CacheRef("cached", "logits", "c" * 64, "f" * 64, teacher=TEACHER.fingerprint, plan=PLAN.fingerprint)
CONFIG = StageConfig(epochs=5, cached_epochs=3)
JOB = TrainerJob(
    stage="finetuning",
    config=CONFIG,
    release=RELEASE,
    statistics=None,
    plan=PLAN,
    teacher=TEACHER,
    cache=CACHE,
    starts_from=PLAN,
    keep_epochs=(3,),
    settings={"MEDSAM_HOME": "/home"},
    fingerprint="j" * 64,
    out="/home/out",
)

PLAIN: list[tuple[Any, dict[str, Any]]] = [
    (PLAN, {"kind": "plan", "fingerprint": "p" * 64, "info": {"steps": 220}, "reused": False}),
    (
        TEACHER,
        {"kind": "model", "fingerprint": "e" * 64, "info": {"sha256": "5"}, "reused": True, "teacher": "stand_in"},
    ),
    (
        StoreRef("CT", "a", ("part-1", "part-2"), {"CT/1": "gone"}),
        {"modality": "CT", "fingerprint": "a", "made": ["part-1", "part-2"], "lost": {"CT/1": "gone"}},
    ),
    (
        CACHE,
        {
            "mode": "cached",
            "answers": "logits",
            "cache": "c" * 64,
            "fingerprint": "f" * 64,
            "teacher": "e" * 64,
            "plan": "p" * 64,
        },
    ),
    (PartsMade(("part-1",)), {"made": ["part-1"]}),
    (StorePartsMade((), {"CT/1": "gone"}), {"made": [], "lost": {"CT/1": "gone"}}),
    (
        JOB,
        {
            "stage": "finetuning",
            "config": CONFIG.model_dump(mode="json"),
            "release": {
                "kind": "release",
                "fingerprint": "r" * 64,
                "info": {"fingerprints": {"train": "t"}, "leaks": []},
                "reused": True,
            },
            "statistics": None,
            "plan": {"kind": "plan", "fingerprint": "p" * 64, "info": {"steps": 220}, "reused": False},
            "teacher": to_json(TEACHER),
            "cache": to_json(CACHE),
            "starts_from": to_json(PLAN),
            "keep_epochs": [3],
            "settings": {"MEDSAM_HOME": "/home"},
            "fingerprint": "j" * 64,
            "out": "/home/out",
            "precision": "float32",
            "student": None,
        },
    ),
]
"""Each type with its JSON, which earlier versions wrote too but for `ADDED`."""

ADDED = {StoreRef: {"lost"}, TrainerJob: {"precision", "student"}}
"""Fields that JSON of earlier versions lacks."""

NAMED = [type(value).__name__ for value, _ in PLAIN]


@pytest.mark.parametrize(("value", "plain"), PLAIN, ids=NAMED)
def test_a_value_is_the_json_it_always_was_and_comes_back_equal(value: Any, plain: dict[str, Any]) -> None:
    text = json.dumps(to_json(value))
    assert json.loads(text) == plain
    assert from_json(type(value), json.loads(text), "x") == value


@pytest.mark.parametrize(("value", "plain"), PLAIN, ids=NAMED)
def test_a_value_does_not_change(value: Any, plain: dict[str, Any]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, next(iter(plain)), "other")


def test_what_is_none_of_the_types_is_left_as_it_is() -> None:
    for plain in (["part-1"], {"n": 1}, 3, None):
        assert to_json(plain) is plain


@pytest.mark.parametrize(("value", "plain"), PLAIN, ids=NAMED)
def test_a_missing_or_unknown_field_is_refused_with_the_asset_and_the_remedy(value: Any, plain: dict[str, Any]) -> None:
    for name in plain.keys() - ADDED.get(type(value), set()):
        lacking = {key: content for key, content in plain.items() if key != name}
        with pytest.raises(IntegrityError) as caught:
            from_json(type(value), {**lacking, "surplus": 1}, "proposed/student")
        message = str(caught.value)
        assert message.startswith(f"value of proposed/student: expected {type(value).__name__} (")
        assert "surplus: unknown" in message
        assert f"{name}: Field required" in message
        assert message.endswith("materialise proposed/student again")


def test_a_store_that_an_earlier_version_published_had_lost_nothing() -> None:
    earlier = {"modality": "CT", "fingerprint": "a", "made": ["part-1"]}
    assert from_json(StoreRef, earlier, "slice_store/CT") == StoreRef("CT", "a", ("part-1",), {})


@pytest.mark.parametrize("content", [None, [], 3, "text"])
def test_what_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(IntegrityError, match=r"value of a: expected PartsMade .made., found .*; materialise a again"):
        from_json(PartsMade, content, "a")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reused": "yes"}, "reused: Input should be a valid boolean"),
        ({"reused": 1}, "reused: Input should be a valid boolean"),
        ({"fingerprint": 3}, "fingerprint: Input should be a valid string"),
        ({"info": []}, "info: Input should be a"),
    ],
)
def test_a_field_of_another_type_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        from_json(ArtefactRef, {**PLAIN[0][1], **wrong}, "finetuning_plan")


def test_an_unknown_field_within_a_job_is_named_where_it_lies() -> None:
    plain = json.loads(json.dumps(to_json(JOB)))
    plain["cache"]["age"] = 3
    del plain["plan"]["kind"]
    with pytest.raises(IntegrityError, match=r"cache\.age: unknown; .*plan\.kind: Field required.*; train again"):
        from_json(TrainerJob, plain, "job.json", "train again")
