"""The settings of `rescue`."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveInt, model_validator

from tutelage.config.base import Section, tagged

Share = Annotated[float, Field(ge=0, le=1)]

ScoreName = Literal[
    "overlap", "kl", "teacher_pass_rate", "student_pass_rate", "learnability", "rescue"
]


class MinHash(Section):
    """Shared pairs of words, by MinHash and then exactly; works offline, and asks equal numbers."""

    type: Literal["minhash"] = "minhash"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Least Jaccard similarity of two questions' pairs of neighbouring words."""


class Semantic(Section):
    """Cosine of sentence embeddings, as the paper does it."""

    type: Literal["semantic"] = "semantic"
    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    """A sentence-transformers or model2vec encoder: a folder, or one of the hub that is on this
    machine already."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Least cosine."""


Near = Annotated[Annotated[MinHash | Semantic, Discriminator("type")], tagged()]


class Selection(Section):
    """Which prompts are kept for their scores; 0 is the easiest or best aligned."""

    by: ScoreName
    """overlap (high first), kl (low first), teacher_pass_rate (high first), student_pass_rate (high
    first), learnability, p(1-p) of the student's pass rate (high first), or rescue: the teacher's
    success from the student's wrong answers (high first)."""
    low: Share = 0.0
    """Quantile from which prompts are kept."""
    high: Share = 1.0
    """Quantile up to which they are."""

    @model_validator(mode="after")
    def _something_is_kept(self) -> "Selection":
        if self.low >= self.high:
            raise ValueError(
                f"low ({self.low}) must be below high ({self.high}), or nothing is kept"
            )
        return self


class Mixture(Section):
    """Prompts from elsewhere among the selected ones, against a loss of entropy."""

    prompts: str
    """Where they come from, in the forms of data.prompts; they are cleaned like the others."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Their share of all prompts that are written."""


class PromptsRescue(Section):
    """What `rescue prompts` does to a file of prompts."""

    prompts: str
    """The prompts to clean, in the forms of data.prompts."""
    against: tuple[str, ...] = ()
    """Prompts that these must not repeat: what a teacher was trained on before, say."""
    evaluation: tuple[str, ...] = ()
    """Evaluation sets, whose questions are leaks."""
    keep_leaks: bool = False
    """List leaks of evaluation questions and keep them, as the paper's training set does."""
    keep_copies: bool = False
    """List copies of earlier rows of the same file and keep them."""
    near: Near | None = MinHash()
    """How similar questions are found besides equal and contained ones."""
    written_in: str | None = None
    """The template that the prompts are in, with {question}; None learns templates from them."""
    template: str | None = None
    """The user's turn that is written for every question, with {question}; None keeps the rows'."""
    samples: PositiveInt = 4
    """Completions of each prompt from either side, where prompts are scored."""
    depth: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of a wrong answer of the student that the teacher goes on from."""
    select: Selection | None = None
    """Keep some prompts for their scores; needs the settings of a run, which name the models."""
    mix: Mixture | None = None
    """Prompts from elsewhere."""

    @model_validator(mode="after")
    def _template_has_a_place(self) -> "PromptsRescue":
        for name in ("template", "written_in"):
            template: str | None = getattr(self, name)
            if template is not None and template.count("{question}") != 1:
                raise ValueError(f"{name} must hold {{question}} once, not {template!r}")
        return self
