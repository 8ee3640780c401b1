"""The student as its own teacher: the same network, reading what the student does not."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tutelage.config.models import ModelConfig, PromptFormat, StudentConfig

Context = Literal["answer", "demonstration", "summary", "correct_and_wrong", "feedback"]

CONTEXTS: dict[Context, str] = {
    "answer": "{question}\n\nThe final answer is known to be {answer}.",
    "demonstration": "{question}\n\nA correct solution, for orientation:\n\n{correct}\n\n"
    "Now solve the problem in your own words.",
    "summary": "{question}\n\nThe idea of a correct solution:\n\n{summary}\n\n"
    "Now solve the problem in your own words.",
    "correct_and_wrong": "{question}\n\nA correct solution:\n\n{correct}\n\nA wrong one:\n\n"
    "{wrong}\n\nNow solve the problem in your own words.",
    "feedback": "{question}\n\nAn earlier attempt:\n\n{attempt}\n\nThis attempt is {verdict}. "
    "Now solve the problem in your own words.",
}
"""What a self-teacher reads; `{correct}`, `{wrong}` and `{attempt}` are other rollouts of the
student, `{verdict}` is right or wrong, of that attempt."""


class _SelfTeacher(PromptFormat):
    context: Context | None = None
    """A ready-made user_prompt: answer, demonstration, correct_and_wrong or feedback."""
    contrast: bool = True
    """Score evaluations under another question's context too, where rows have one."""

    @model_validator(mode="after")
    def _reads_more_than_the_student(self) -> "_SelfTeacher":
        if self.context == "summary":
            raise ValueError(
                "context summary needs summaries that the student writes, which `align` does and "
                "training does not; use demonstration, or a column of the data in user_prompt"
            )
        if self.context is not None and self.user_prompt is not None:
            raise ValueError("context and user_prompt both word the user's turn; give one of them")
        if self.context is None and not self.own_prompt:
            raise ValueError(
                "a student that teaches itself must read something that it does not read as a "
                "student, else both say the same; give context, user_prompt, system_prompt, "
                "template or chat_template"
            )
        return self


class InitialTeacher(_SelfTeacher):
    """The student as it was before the run."""

    type: Literal["initial"] = "initial"


class EMATeacher(_SelfTeacher):
    """A moving average of the student's weights, updated after each step."""

    type: Literal["ema"] = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """What is left of the average at each step."""


class CurrentTeacher(_SelfTeacher):
    """The student's present weights, without gradient."""

    type: Literal["current"] = "current"


SelfTeacher = InitialTeacher | EMATeacher | CurrentTeacher


def _kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "ModelConfig" if kind is None else str(kind)


def _plain_model(value: object) -> object:
    """`initial` is short for `{type: initial}`, and `type: model` says what is so without it."""
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, dict) and value.get("type") == "model":
        return {key: part for key, part in value.items() if key != "type"}
    return value


Teacher = Annotated[
    Annotated[
        Annotated[ModelConfig, Tag("ModelConfig")]
        | Annotated[InitialTeacher, Tag("initial")]
        | Annotated[EMATeacher, Tag("ema")]
        | Annotated[CurrentTeacher, Tag("current")],
        Discriminator(_kind),
    ],
    BeforeValidator(_plain_model),
]
"""A model of its own, or the student under another prompt."""


def as_model(teacher: ModelConfig | SelfTeacher, student: StudentConfig) -> ModelConfig:
    """The teacher as a model at a place; a self-teacher is where the student is.

    What it leaves open of its prompt is as the student's.
    """
    if isinstance(teacher, ModelConfig):
        return teacher
    place: dict[str, Any] = student.model_dump(
        include=set(ModelConfig.model_fields) - {"server"},
    )
    own = teacher.model_dump(include=set(PromptFormat.model_fields), exclude_defaults=True)
    if teacher.context is not None:
        own["user_prompt"] = CONTEXTS[teacher.context]
    return ModelConfig(**{**place, **own})
